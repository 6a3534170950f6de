# The upstream programs, built from the pinned modules in image/upstream.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/build and the other steps.

# build_upstream: sets $upstream to a folder with kubernetes, etcd, containerd, containerd-shim-runc-v2 and runc.
build_upstream() {
    upstream=$cache/upstream/bin
    mkdir -p "$upstream"
    local v k8s
    k8s=$(module_version kubernetes k8s.io/kubernetes)
    v=$(for p in k8s.io/component-base k8s.io/client-go/pkg; do
        p=${p/base/base/version}
        p=${p/pkg/pkg/version}
        printf -- '-X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s -X %s.gitTreeState=clean ' \
            "$p" "$k8s" "$p" "$(cut -d. -f1 <<<"${k8s#v}")" "$p" "$(cut -d. -f2 <<<"$k8s")" "$p"
    done)
    go_build kubernetes kubernetes . 0 "" "$v"
    go_build etcd etcd . 0 "" ""
    v="-X github.com/containerd/containerd/v2/version.Version=$(module_version containerd github.com/containerd/containerd/v2)"
    # Snapshotters that the image's kernel or programs do not serve.
    local tags=no_btrfs,no_devmapper,no_zfs,static_build,netgo,osusergo
    go_build containerd containerd . 0 "$tags" "$v"
    go_build containerd containerd-shim-runc-v2 ./shim 0 "$tags" "$v"
    # runc enters namespaces in C before Go's runtime starts, so it needs cgo.
    go_build runc runc github.com/opencontainers/runc 1 seccomp,netgo,osusergo "-extldflags -static"
}

# module_version FOLDER MODULE: the version that a go.mod pins.
module_version() {
    sed -nE "s|^(require)?[[:space:]]*$2 (v[^ ]*).*|\2|p" "$root/image/upstream/$1/go.mod" | head -n 1
}

# upstream_versions: what the modules pin, as JSON.
upstream_versions() {
    printf '{"kubernetes": "%s", "etcd": "%s", "containerd": "%s", "runc": "%s"}\n' \
        "$(module_version kubernetes k8s.io/kubernetes)" \
        "$(module_version etcd go.etcd.io/etcd/server/v3)" \
        "$(module_version containerd github.com/containerd/containerd/v2)" \
        "$(module_version runc github.com/opencontainers/runc)"
}

# go_build FOLDER NAME PACKAGE CGO TAGS LDFLAGS: builds one program unless the cache has it.
go_build() {
    local folder=$1 name=$2 package=$3 cgo=$4 tags=$5 ldflags=$6 key kept
    key=$(hash_of "$name $package $cgo $tags $ldflags $go_version" "image/upstream/$folder")
    kept=$cache/upstream/$name-$key
    if [[ ! -f $kept ]]; then
        run "building $name (upstream $folder)" "$name.log" \
            env -C "$root/image/upstream/$folder" CGO_ENABLED="$cgo" \
            go build -v -trimpath -tags "$tags" -ldflags "-s -w -buildid= $ldflags" -o "$kept.new" "$package"
        mv "$kept.new" "$kept"
    fi
    touch "$kept"
    ln -sfn "$kept" "$upstream/$name"
}
