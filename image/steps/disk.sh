# The disk image: runs mkosi and names what it leaves.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/build and the other steps.

# Goals in bytes; that of the root is for the release's compression.
root_goal=120000000
uki_goal=16000000

# build_tools: sets $tools to the tree of programs that mkosi makes the image with.
build_tools() {
    tools=$cache/mkosi/tools-$mkosi_version-$(hash_of tools image/tools)
    [[ ! -d $tools ]] || return 0
    authorize
    run "building the tools that make the image" tools.log \
        as_root env PYTHONPATH="$mkosi" python3 -m mkosi \
        --directory "$root/image/tools" \
        --force \
        --package-cache-directory "$cache/mkosi/packages" \
        --workspace-directory "$cache/mkosi/workspace" \
        --output-directory "$cache/mkosi" \
        build
    as_root mv "$cache/mkosi/tools" "$tools"
}

# build_disk: makes $output from $upstream and $programs.
build_disk() {
    local work=$cache/mkosi tree=$cache/mkosi/tree made=$cache/mkosi/output
    stage_tree "$tree"
    authorize
    as_root rm -rf "$made"
    mkdir -p "$work"/cache "$made"

    local level=3
    [[ $mode == quick ]] || level=15
    # 64 KiB clusters: larger ones make each page fault unpack more. The ends of files share clusters.
    local erofs="-zzstd,level=$level -C65536 -Efragments"
    run "building the disk image ($mode compression)" mkosi.log \
        as_root env PYTHONPATH="$mkosi" python3 -m mkosi \
        --directory "$root" \
        --tools-tree "$tools" \
        --force \
        --cache-directory "$work/cache" \
        --package-cache-directory "$work/packages" \
        --workspace-directory "$work/workspace" \
        --output-directory "$made" \
        --image-version "$version" \
        --source-date-epoch "$(source_date)" \
        --extra-tree "$tree:/final" \
        --extra-tree "$programs/garboard-initrd:/first-stage/init" \
        --environment "SYSTEMD_REPART_MKFS_OPTIONS_EROFS='$erofs'" \
        build
    collect "$made" "$tree"
}

# stage_tree FOLDER: the programs where the machine has them, and their versions.
stage_tree() {
    local tree=$1 name
    rm -rf "$tree"
    mkdir -p "$tree"/usr/{bin,lib/garboard,share/garboard/images}
    for name in kubernetes etcd containerd containerd-shim-runc-v2 runc; do
        install -m 0755 "$upstream/$name" "$tree/usr/bin/$name"
    done
    for name in balancer bus cni dns init initrd operators; do
        install -m 0755 "$programs/garboard-$name" "$tree/usr/lib/garboard/garboard-$name"
    done
    install -m 0644 -t "$tree/usr/share/garboard/images" "$programs"/{pause,sample}.tar
    upstream_versions | install -m 0644 /dev/stdin "$tree/usr/share/garboard/upstream.json"
}

# collect FOLDER TREE: moves mkosi's results to $output under the project's names.
collect() {
    local made=$1 tree=$2 staged=$output.new image=garboard_$version
    as_root chown -R "$(id -u):$(id -g)" "$made"
    rm -rf "$staged"
    mkdir -p "$staged"
    mv "$made/$image.raw" "$staged/garboard.raw"
    mv "$made/$image.efi" "$staged/garboard.efi"
    mv "$made/$image.root.raw" "$staged/root.erofs"
    mv "$made/$image.verity.raw" "$staged/root.verity"
    run "writing garboard.qcow2" qcow2.log \
        qemu-img convert -c -o compression_type=zstd -O qcow2 "$staged/garboard.raw" "$staged/garboard.qcow2"
    python3 "$root/image/steps/release.py" --version "$version" --mode "$mode" --folder "$staged" \
        --root-hash "$(cat "$made/$image.roothash")" --packages "$made/packages.json" \
        --upstream "$tree/usr/share/garboard/upstream.json" \
        --root-goal "$root_goal" --uki-goal "$uki_goal"
    printf '%s\n' "$inputs" >"$staged/.inputs"
    rm -rf "$output"
    mv "$staged" "$output"
    # The one program is kubectl under that name.
    install -m 0755 "$upstream/kubernetes" "$root/target/image/kubectl"
    install -m 0755 "$programs/garboardctl" "$root/target/image/garboardctl"
    link_latest
}

# The root hash of the image in $output.
root_hash() {
    sed -n 's/^  "rootHash": "\(.*\)",$/\1/p' "$output/release.json"
}

# Makes target/image/latest the version just built.
link_latest() {
    ln -sfn "$version" "$root/target/image/latest"
}
