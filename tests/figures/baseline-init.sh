#!/bin/sh
# A bare script as init, what `tests/bench boot` compares our boot with. It runs twice: as the initrd's init, which mounts the
# image's root and goes there, and in that root, where it starts the image's programs for Kubernetes and keeps them running.
#
# Beside it in /baseline are the certificates in pki and the CNI reference plugins in cni. busybox is the shell and its tools.
set -eu

here=/run/baseline

from_initrd_to_root() {
    /bin/busybox mount -t proc proc /proc
    /bin/busybox --install -s /bin
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    mount -t tmpfs tmpfs /run
    cp -R /baseline "$here"
    mkdir "$here/bin"
    cp /bin/busybox "$here/bin/busybox"

    # From the image's own initrd, which this script's is joined with. The kernel itself asks for a checksum of erofs.
    ln -s bin /sbin
    modprobe -a virtio_blk erofs
    mount -t erofs -o ro "/dev/$(block_device 'PARTNAME=root-' uevent)" /sysroot
    for folder in dev proc sys run; do mount -o move "/$folder" "/sysroot/$folder"; done
    exec switch_root /sysroot "$here/bin/busybox" sh "$here/init" in-root
}

# block_device START FILE: the device whose FILE in sysfs has a line that starts so. The order of devices is not theirs to keep.
block_device() {
    until grep -l "^$1" /sys/class/block/*/"$2" 2>/dev/null; do sleep 0.1; done | sed -n '1s|/sys/class/block/\([^/]*\)/.*|\1|p'
}

prepare_machine() {
    "$here/bin/busybox" --install -s "$here/bin"
    export PATH="$here/bin:/usr/sbin:/usr/bin"
    # What the kernel asks for by itself, such as expressions of nftables, the image's own helper loads.
    modprobe -a virtio_net virtio_rng ext4 overlay br_netfilter
    mkdir /dev/pts /dev/shm
    mount -t devpts -o ptmxmode=0666 devpts /dev/pts
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs tmpfs /tmp
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    for controller in cpu cpuset io memory pids; do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done
    mount -t ext4 "/dev/$(block_device var serial)" /var
    mkdir -p /var/lib/kubelet /var/log
    mount --make-rshared /

    # The image's /etc points there.
    mkdir -p /run/garboard/etc
    printf "127.0.0.1 localhost\n10.0.2.15 node-1\n" >/run/garboard/etc/hosts
    echo "nameserver 10.0.2.3" >/run/garboard/etc/resolv.conf
    tr -d - </proc/sys/kernel/random/uuid >/run/garboard/etc/machine-id
    hostname node-1

    # QEMU's own network, as its DHCP would give it.
    ip link set lo up
    ip link set eth0 up
    ip address add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
    echo 1 >/proc/sys/net/ipv4/ip_forward
}

write_files() {
    cat >"$here/kubeconfig" <<TEXT
apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: "https://127.0.0.1:6443", certificate-authority: $here/pki/ca.crt}}]
users: [{name: admin, user: {client-certificate: $here/pki/admin.crt, client-key: $here/pki/admin.key}}]
contexts: [{name: local, context: {cluster: local, user: admin}}]
current-context: local
TEXT
    cat >"$here/kubelet.yaml" <<TEXT
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $here/pki/ca.crt}}
authorization: {mode: AlwaysAllow}
# One that it makes itself is of no use if it ends while it writes it: it then never starts again.
tlsCertFile: $here/pki/server.crt
tlsPrivateKeyFile: $here/pki/server.key
# The default lies in the read-only root.
volumePluginDir: /var/lib/kubelet/volume-plugins
TEXT
    cat >"$here/containerd.toml" <<TEXT
version = 4
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["$here/cni", "/usr/lib/cni"]
  conf_dir = "$here/net.d"
TEXT
    mkdir "$here/net.d"
    cat >"$here/net.d/bridge.conflist" <<TEXT
{"cniVersion": "1.0.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam":
    {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
TEXT
}

# start NAME ARGUMENT...: runs a program of the image, again and again.
start() {
    name=$1
    shift
    while :; do
        PATH=/usr/sbin:/usr/bin "/usr/bin/$name" "$@" >>"/var/log/$name.log" 2>&1 || true
        echo "baseline: $name ended: $(tail -n 1 "/var/log/$name.log")"
        sleep 1
    done &
}

start_programs() {
    start etcd --data-dir=/var/lib/etcd
    start kube-apiserver \
        --etcd-servers=http://127.0.0.1:2379 \
        --advertise-address=10.0.2.15 \
        --allow-privileged=true \
        --authorization-mode=RBAC \
        --client-ca-file="$here/pki/ca.crt" \
        --tls-cert-file="$here/pki/server.crt" \
        --tls-private-key-file="$here/pki/server.key" \
        --kubelet-client-certificate="$here/pki/admin.crt" \
        --kubelet-client-key="$here/pki/admin.key" \
        --service-cluster-ip-range=10.96.0.0/12 \
        --service-account-issuer=https://kubernetes.default.svc \
        --service-account-key-file="$here/pki/service-account.pub" \
        --service-account-signing-key-file="$here/pki/service-account.key"
    start containerd --config="$here/containerd.toml"
    echo "baseline: the API server is started"

    # kubelet ends without its runtime.
    until [ -S /run/containerd/containerd.sock ]; do sleep 0.1; done
    start kubelet --config="$here/kubelet.yaml" --kubeconfig="$here/kubeconfig" --hostname-override=node-1 --node-ip=10.0.2.15

    # The others end without an API server that is ready; until then they would only take of its time. busybox does not know
    # its TLS, and starting kubectl for each question would take as much time as they do.
    until grep -q 'Serving securely' /var/log/kube-apiserver.log; do sleep 0.1; done
    /usr/bin/kubectl --kubeconfig="$here/kubeconfig" proxy --port=8001 >/dev/null 2>&1 &
    proxy=$!
    until wget -q -O /dev/null http://127.0.0.1:8001/readyz 2>/dev/null; do sleep 0.2; done
    kill "$proxy"
    echo "baseline: the API server is ready"
    start kube-controller-manager --kubeconfig="$here/kubeconfig" --leader-elect=false \
        --root-ca-file="$here/pki/ca.crt" --service-account-private-key-file="$here/pki/service-account.key"
    start kube-scheduler --kubeconfig="$here/kubeconfig" --leader-elect=false
    start kube-proxy --kubeconfig="$here/kubeconfig" --hostname-override=node-1 --proxy-mode=nftables --cluster-cidr=10.244.0.0/24
}

if [ "${1:-}" != in-root ]; then from_initrd_to_root; fi
prepare_machine
write_files
start_programs
wait
