# Progress of a build: what runs, for how long, and what it said last.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/build and the other steps.

# Says a line with the seconds since the start.
say() {
    printf '[%3ds] %s\n' "$SECONDS" "$*"
}

# Says why the build cannot go on, and ends it.
die() {
    printf '\nimage: %s\n' "$*" >&2
    exit 1
}

# last_line FILE: the last line of a file that is not empty.
last_line() {
    tail -c 400 "$1" | tr -dc '[:print:]\n' | sed '/^ *$/d' | tail -n 1
}

# run TEXT LOG COMMAND...: runs a command with its output in $cache/log/LOG and shows that it is alive: on a
# terminal each second, elsewhere every twenty. On failure shows the end of the log and ends the build.
run() {
    local text=$1 log=$cache/log/$2 begin=$SECONDS shown=$SECONDS last pid
    shift 2
    say "$text"
    # A process group of its own, so that an interrupted build leaves nothing running.
    set -m
    "$@" >"$log" 2>&1 9>&- </dev/null &
    pid=$!
    set +m
    # shellcheck disable=SC2064 # The pid of this very command.
    trap "kill -- -$pid 2>/dev/null" EXIT
    trap 'exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        if [[ -t 1 ]]; then
            last=$(last_line "$log")
            printf '\r\033[K       %4ds  %s' "$((SECONDS - begin))" "${last:0:$((${COLUMNS:-80} - 16))}"
        elif ((SECONDS - shown >= 20)); then
            shown=$SECONDS
            last=$(last_line "$log")
            printf '       %4ds  %s\n' "$((SECONDS - begin))" "${last:0:100}"
        fi
    done
    [[ -t 1 ]] && printf '\r\033[K'
    trap - EXIT INT TERM
    if ! wait "$pid"; then
        tail -n 30 "$log" >&2
        die "failed: $text (the whole log: $log)"
    fi
}
