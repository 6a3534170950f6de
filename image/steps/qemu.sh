# The machines in QEMU and their network: the only place of these scripts that knows QEMU's arguments.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/boot and the other steps.

# running NAME: whether that machine is on.
running() {
    local pid
    pid=$(cat "$run/$1/qemu.pid" 2>/dev/null) && [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == *qemu-system* ]]
}

# firmware KIND: the UEFI firmware's file, CODE or VARS.
firmware() {
    local file
    for file in /usr/share/OVMF/OVMF_"$1"_4M.fd /usr/share/OVMF/OVMF_"$1".fd; do
        [[ ! -f $file ]] || { echo "$file" && return; }
    done
    die "no UEFI firmware for QEMU: install the package ovmf"
}

# accelerator: kvm where it truly runs our kernel, else tcg. On some hosts /dev/kvm exists and guests crash
# in their first instructions, so a trial decides; its result is kept until the host or the kernel changes.
accelerator() {
    local key kept=$cache/accelerator
    key="$(cat /proc/sys/kernel/random/boot_id) $(stat -Lc '%Y %s' "$image/garboard.efi" 2>/dev/null) $EUID"
    if [[ $(sed -n 1p "$kept" 2>/dev/null) != "$key" ]]; then
        mkdir -p "$cache"
        if kvm_works; then
            printf '%s\nkvm\n' "$key" >"$kept"
        else
            printf '%s\ntcg\n' "$key" >"$kept"
        fi
    fi
    sed -n 2p "$kept"
}

# Boots the image's kernel under KVM, without a root, for as long as it takes to say its version.
kvm_works() {
    [[ -w /dev/kvm && -f $image/garboard.efi ]] || return 1
    local trial status=1
    trial=$(mktemp -d)
    if objcopy -O binary --only-section=.linux "$image/garboard.efi" "$trial/kernel" 2>/dev/null; then
        # In a subshell, which keeps bash's word on how QEMU died to itself.
        (timeout 5 qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 512 -nodefaults -display none -no-reboot \
            -kernel "$trial/kernel" -append "console=ttyS0 panic=-1" -serial "file:$trial/console" || true) >/dev/null 2>&1
        # The panic for lack of a root: the kernel has come through all of its own start.
        ! grep -qs 'Kernel panic - not syncing: VFS' "$trial/console" || status=0
    fi
    rm -rf "$trial"
    return $status
}

# new_machine NAME: makes its disk over the built image, and its firmware's variables.
new_machine() {
    mkdir -p "$run/$1"
    qemu-img create -q -f qcow2 -F qcow2 -b "$(realpath "$image/garboard.qcow2")" "$run/$1/disk.qcow2" 8G
    cp "$(firmware VARS)" "$run/$1/vars.fd"
}

# Starts the link that all machines are on, in the background, with its router; the first machine that asks gets 10.0.2.15.
start_link() {
    setsid "$root/image/steps/link.py" "$run" "$api_port" 10.0.2.15 6443 "$machine_port" 10.0.2.15 7443 \
        >"$run/link.log" 2>&1 9>&- </dev/null &
    echo $! >"$run/link.pid"
    local begin=$SECONDS
    until [[ -S $run/router.sock ]]; do
        if ((SECONDS - begin > 20)) || ! kill -0 "$(cat "$run/link.pid")" 2>/dev/null; then
            die "the link did not start: $(cat "$run/link.log")"
        fi
        sleep 0.1
    done
}

# qmp SOCKET COMMAND: has a QEMU carry out a command, in JSON.
qmp() {
    python3 - "$@" <<'EOF'
import json, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
file = connection.makefile("rw")
file.readline()
for command in ('{"execute": "qmp_capabilities"}', sys.argv[2]):
    file.write(command + "\n")
    file.flush()
    answer = json.loads(file.readline())
    # The monitor's own commands say nothing when they succeed.
    if "error" in answer or answer.get("return") not in ({}, "", None):
        sys.exit(json.dumps(answer))
EOF
}

# forward PORT ADDRESS THERE: a port of this host leads to one of a machine.
forward() {
    local line="hostfwd_add router tcp:127.0.0.1:$1-$2:$3"
    qmp "$run/router.sock" "{\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": \"$line\"}}" ||
        die "port $1 of this host does not lead to $2"
}

# power_on NAME MEMORY: powers a machine on, in the background.
power_on() {
    local cpu machine=$run/$1 number=${1#node-}
    case $(accelerator) in
        kvm) cpu=(-machine q35 -accel kvm -cpu host) ;;
        # What newer processors than Nehalem have is slow to emulate; so are the guards against the faults of real ones, which an
        # emulated one does not have.
        *) cpu=(-machine q35 -accel "tcg,thread=multi,tb-size=1024" -cpu Nehalem
            -smbios "type=11,value=io.systemd.stub.kernel-cmdline-extra=mitigations=off") ;;
    esac
    rm -f "$machine/console.log"
    qemu-system-x86_64 "${cpu[@]}" -m "$2" -smp "$cpus" -nodefaults -display none \
        -drive "if=pflash,format=raw,readonly=on,file=$(firmware CODE)" \
        -drive "if=pflash,format=raw,file=$machine/vars.fd" \
        -drive "if=virtio,format=qcow2,cache=unsafe,discard=unmap,file=$machine/disk.qcow2" \
        -netdev "dgram,id=n0,local.type=unix,local.path=$run/machine-$number.sock,remote.type=unix,remote.path=$run/switch-$number.sock" \
        -device "virtio-net-pci,netdev=n0,mac=$(printf '52:54:00:12:34:%02x' "$number")" \
        -device virtio-rng-pci \
        -device i6300esb -action watchdog=reset \
        -serial "file:$machine/console.log" \
        -qmp "unix:$machine/qmp.sock,server=on,wait=off" \
        -fw_cfg "name=opt/dev.garboard/manifests,file=$machine/manifests.yaml" \
        -daemonize -pidfile "$machine/qemu.pid" || die "QEMU did not start"
}

# Presses the power button of each machine and waits; one that does not go off in time is cut off.
power_off() {
    local on=() each begin=$SECONDS
    for each in "$run"/node-*/; do
        each=$(basename "$each")
        ! running "$each" || on+=("$each")
    done
    ((${#on[@]})) || say "no machine is running"
    for each in "${on[@]}"; do
        say "shutting $each down"
        qmp "$run/$each/qmp.sock" '{"execute": "system_powerdown"}' || true
    done
    for each in "${on[@]}"; do
        while running "$each"; do
            if ((SECONDS - begin > 120)); then
                say "$each did not go off within 120 seconds: cutting its power"
                kill "$(cat "$run/$each/qemu.pid")"
                break
            fi
            sleep 0.5
        done
        rm -f "$run/$each/qemu.pid"
        say "$each is off; its disk is kept: image/boot --keep boots it again"
    done
    if [[ -f $run/link.pid ]]; then
        kill "$(cat "$run/link.pid")" 2>/dev/null || true
        rm -f "$run/link.pid" "$run/router.sock"
    fi
}
