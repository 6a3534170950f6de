# What the building host needs: Debian packages, a Go and a Rust toolchain, mkosi.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/build and the other steps.

# Toolchains and tools by version, because they are inputs of the image.
go_version=1.26.8
rust_version=1.95
mkosi_version=27.1
musl=x86_64-unknown-linux-musl

# Runs a command as root.
as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# Asks for the password now, on the terminal: what runs later under run() has none.
authorize() {
    # Who may do without a password is not asked for one, which `sudo -v` alone would do if any other rule wants it.
    ((EUID == 0)) || sudo -n true 2>/dev/null || sudo -v
}

# need_packages PACKAGE...: installs the Debian packages that are missing.
need_packages() {
    local package missing=()
    for package; do
        [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == *' installed' ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "apt-get is missing: image/build needs Debian or Ubuntu"
    [[ $install == yes ]] || die "these packages are missing: ${missing[*]}"
    ((EUID == 0)) || command -v sudo >/dev/null || die "become root, or install sudo"
    authorize
    run "refreshing the package lists" apt.log as_root apt-get update
    run "installing ${missing[*]}" apt.log as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${missing[@]}"
}

# version_at_least HAVE WANT
version_at_least() {
    [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# Makes `go` the pinned toolchain. Any Go since 1.21 fetches it by itself.
need_go() {
    PATH=$PATH:/usr/local/go/bin:/usr/lib/go/bin
    command -v go >/dev/null || need_packages golang-go
    export GOTOOLCHAIN=go$go_version GOFLAGS=-buildvcs=false
    if version_at_least "$(GOTOOLCHAIN=local go env GOVERSION | tr -d go)" 1.21; then
        run "preparing Go $go_version" go.log go version
        return
    fi
    # Older ones cannot, but can download the module that the toolchain is.
    local module=golang.org/toolchain@v0.0.1-go$go_version.linux-amd64 folder
    folder=$(go env GOMODCACHE)/$module
    if [[ -d $folder ]]; then
        PATH=$folder/bin:$PATH
        export GOROOT=$folder
        return
    fi
    run "downloading Go $go_version" go.log env -u GOTOOLCHAIN -u GOFLAGS go mod download "$module"
    # What a newer Go does after the download: a module's archive has neither modes nor nested go.mod files.
    chmod -R u+w "$folder"
    chmod -R u+x "$folder/bin" "$folder/pkg/tool"
    find "$folder" -name _go.mod -execdir mv _go.mod go.mod \;
    PATH=$folder/bin:$PATH
    export GOROOT=$folder
}

# Makes `cargo` one that is new enough and can build for musl.
need_rust() {
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    if ! command -v rustup >/dev/null; then
        # Read to its end: a program whose reader has gone fails, and its pipeline with it.
        if apt-cache policy rustup 2>/dev/null | grep 'Candidate: [0-9]' >/dev/null; then
            need_packages rustup
        else
            [[ $install == yes ]] || die "rustup is missing"
            need_packages curl ca-certificates
            run "downloading rustup" rust.log curl --fail --silent --show-error --output "$cache/rustup-init.sh" \
                https://static.rust-lang.org/rustup/rustup-init.sh
            run "installing rustup" rust.log sh "$cache/rustup-init.sh" \
                -y --no-modify-path --profile minimal --default-toolchain none
        fi
    fi
    local have
    have=$(cd "$root" && cargo --version 2>/dev/null | cut -d ' ' -f 2) || true
    if [[ -z $have ]] || ! version_at_least "$have" "$rust_version"; then
        export RUSTUP_TOOLCHAIN=$rust_version
        run "installing Rust $rust_version" rust.log rustup toolchain install --profile minimal "$rust_version"
    fi
    if ! (cd "$root" && rustup target list --installed) | grep -x "$musl" >/dev/null; then
        run "installing Rust's $musl" rust.log rustup target add "$musl"
    fi
}

# Unpacks the pinned mkosi of Debian's next release into the cache and sets $mkosi. apt checks its signature.
need_mkosi() {
    mkosi=$cache/mkosi/$mkosi_version
    [[ ! -d $mkosi/mkosi ]] || return 0
    local apt=$cache/mkosi/apt options
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    printf 'deb [signed-by=%s] http://deb.debian.org/debian forky main\n' \
        /usr/share/keyrings/debian-archive-keyring.gpg >"$apt/sources.list"
    options=(-o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt" -o Debug::NoLocking=1
        -o Acquire::Languages=none -o APT::Architecture=amd64 -o APT::Sandbox::User=root
        # The version is pinned, so an old index is as good as a new one.
        -o Acquire::Check-Valid-Until=false)
    run "looking up mkosi" mkosi-apt.log apt-get "${options[@]}" update
    run "downloading mkosi $mkosi_version" mkosi-apt.log \
        env -C "$apt" apt-get "${options[@]}" download "mkosi=$mkosi_version-*"
    dpkg-deb -x "$apt"/mkosi_"$mkosi_version"-*_all.deb "$apt/unpacked"
    mv "$apt/unpacked/usr/lib/python3/dist-packages" "$mkosi"
}

# Everything that the later steps need from the host.
prepare_host() {
    [[ $(uname -m) == x86_64 ]] || die "this is $(uname -m): the image is built on x86-64"
    need_packages binutils ca-certificates cpio debian-archive-keyring gcc git libc6-dev libseccomp-dev \
        musl-tools ovmf pkg-config protobuf-compiler python3 qemu-system-x86 qemu-utils xz-utils zstd
    need_go
    need_rust
    need_mkosi
}
