# Garboard's own programs and the container images that carry two of them.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/build and the other steps.

# build_programs: sets $programs to a folder with all of Garboard's programs and the container images.
build_programs() {
    local key kept target
    key=$(hash_of "$version $mode $(cd "$root" && rustc --version)" Cargo.toml Cargo.lock init services operators \
        image/steps/programs.sh image/steps/oci.py)
    kept=$cache/programs/$key
    programs=$kept
    if [[ ! -d $kept ]]; then
        # Builds go on where the last one stopped, in the cache: not in the way of a developer's own.
        target=$cache/cargo
        run "building Garboard's programs" programs.log build_rust "$target"
        rm -rf "$kept.new"
        mkdir -p "$kept.new"
        cp "$target/$musl/release/"garboard{-balancer,-bus,-cni,-dns,-init,-initrd,-operators,-pause,-sample,ctl} "$kept.new/"
        pack pause "$kept.new"
        pack sample "$kept.new" serve
        mv "$kept.new" "$kept"
    fi
    touch "$kept"
}

# build_rust TARGET: all packages that have programs, static, without this host's paths in them. Cargo names the
# sources of the workspace relative to it; were its path among the flags, each clone would build everything anew.
build_rust() {
    local flags lto=fat
    flags="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$1=/target"
    # The addresses that a program corrects when it is loaded take a hundredth of the space in this form.
    flags+=" -C link-arg=-Wl,-z,pack-relative-relocs"
    # Optimising across crates at each link makes programs a fifth smaller and a rebuild several times slower.
    [[ $mode == release ]] || lto=off
    cd "$root" || return
    # Cargo tells by times whether a source has changed: between two clones they say nothing.
    if [[ $(cat "$1/clone" 2>/dev/null) != "$root" ]]; then
        CARGO_TARGET_DIR="$1" cargo clean --quiet --workspace --release --target "$musl"
        printf '%s\n' "$root" >"$1/clone"
    fi
    # Those whose tasks belong together end at a panic, and are started again: without a way back from each call they are a
    # tenth smaller. The others answer many at a time, and who asks for what makes them panic harms nobody else.
    local whole=(-p garboard-bus -p garboard-cni -p garboard-operators)
    local packages=(-p garboard-balancer -p garboard-dns -p garboard-init -p garboard-pause -p garboard-sample -p garboardctl)
    export CARGO_TARGET_DIR="$1" CARGO_PROFILE_RELEASE_LTO="$lto" CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="$flags"
    if [[ $mode == release ]]; then
        CARGO_PROFILE_RELEASE_PANIC=abort cargo build --release --locked --target "$musl" "${whole[@]}" || return
    else
        packages+=("${whole[@]}")
    fi
    cargo build --release --locked --target "$musl" "${packages[@]}"
}

# pack NAME FOLDER [ARGUMENT...]: FOLDER/NAME.tar, a container image with the program garboard-NAME.
pack() {
    local name=$1 folder=$2
    shift 2
    python3 "$root/image/steps/oci.py" --name "garboard.dev/$name:$version" --program "$folder/garboard-$name" \
        --output "$folder/$name.tar" -- "$@"
}
