# What a part of the image is made from, as a hash: equal hashes are built once.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/build and the other steps.

# hash_of TEXT PATH...: sha256 of a text and of the files at or under the paths that git would keep.
hash_of() {
    local text=$1
    shift
    {
        printf '%s\n' "$text"
        cd "$root" || exit
        if git rev-parse --git-dir >/dev/null 2>&1; then
            git ls-files -z --cached --others --exclude-standard -- "$@"
        else
            find "$@" -type f -print0
        fi | sort -zu | while IFS= read -r -d '' path; do
            # A file that git lists may have been deleted in the work tree.
            [[ ! -f $path ]] || printf '%s\0' "$path"
        done | xargs -0r sha256sum
    } | sha256sum | cut -c 1-32
}

# What the image is made from.
input_paths=(Cargo.toml Cargo.lock mkosi.conf image init services operators)

# hash_inputs MODE: all inputs of an image.
hash_inputs() {
    hash_of "$1 $version $(source_date)" "${input_paths[@]}"
}

# The time that files in the image bear: that of the last commit that changed an input.
source_date() {
    git -C "$root" log -1 --format=%ct -- "${input_paths[@]}" 2>/dev/null || stat -c %Y "$root/Cargo.lock"
}

# Removes what no build has used for a month.
prune_cache() {
    find "$cache"/{upstream,programs} -mindepth 1 -maxdepth 1 ! -name bin -mtime +30 -exec rm -rf {} +
    # The tree belongs to root.
    as_root find "$cache/mkosi" -maxdepth 1 -name 'tools-*' ! -path "$tools" -mtime +30 -exec rm -rf {} +
}
