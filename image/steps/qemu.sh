# The machine in QEMU: the only place of these scripts that knows QEMU's arguments.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/boot and the other steps.

# Whether the machine of target/run is on.
running() {
    local pid
    pid=$(cat "$machine/qemu.pid" 2>/dev/null) && [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == *qemu-system* ]]
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

# Makes the machine's disk over the built image, and its firmware's variables.
new_disk() {
    qemu-img create -q -f qcow2 -F qcow2 -b "$(realpath "$image/garboard.qcow2")" "$machine/disk.qcow2" 8G
    cp "$(firmware VARS)" "$machine/vars.fd"
}

# Powers the machine on, in the background.
power_on() {
    local cpu
    case $(accelerator) in
        kvm) cpu=(-machine q35 -accel kvm -cpu host) ;;
        # What newer processors than Nehalem have is slow to emulate; so are the guards against the faults of real ones, which an
        # emulated one does not have.
        *) cpu=(-machine q35 -accel "tcg,thread=multi,tb-size=1024" -cpu Nehalem
            -smbios "type=11,value=io.systemd.stub.kernel-cmdline-extra=mitigations=off") ;;
    esac
    rm -f "$machine/console.log"
    qemu-system-x86_64 "${cpu[@]}" -m "$memory" -smp "$cpus" -nodefaults -display none \
        -drive "if=pflash,format=raw,readonly=on,file=$(firmware CODE)" \
        -drive "if=pflash,format=raw,file=$machine/vars.fd" \
        -drive "if=virtio,format=qcow2,cache=unsafe,discard=unmap,file=$machine/disk.qcow2" \
        -netdev "user,id=n0,hostfwd=tcp:127.0.0.1:$api_port-:6443,hostfwd=tcp:127.0.0.1:$machine_port-:7443" \
        -device virtio-net-pci,netdev=n0 -device virtio-rng-pci \
        -device i6300esb -action watchdog=reset \
        -serial "file:$machine/console.log" \
        -qmp "unix:$machine/qmp.sock,server=on,wait=off" \
        -fw_cfg "name=opt/dev.garboard/manifests,file=$machine/manifests.yaml" \
        -daemonize -pidfile "$machine/qemu.pid" || die "QEMU did not start"
}

# Presses the power button and waits; a machine that does not go off in time is cut off.
power_off() {
    running || { say "no machine is running" && return; }
    local pid
    pid=$(cat "$machine/qemu.pid")
    say "shutting the machine down"
    python3 - "$machine/qmp.sock" <<'EOF' || true
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
file = connection.makefile("rw")
file.readline()
for command in ("qmp_capabilities", "system_powerdown"):
    file.write('{"execute": "%s"}\n' % command)
    file.flush()
    file.readline()
EOF
    local begin=$SECONDS
    while running; do
        if ((SECONDS - begin > 120)); then
            say "it did not go off within 120 seconds: cutting its power"
            kill "$pid"
            break
        fi
        sleep 0.5
    done
    rm -f "$machine/qemu.pid"
    say "the machine is off; its disk is kept: image/boot --keep boots it again"
}
