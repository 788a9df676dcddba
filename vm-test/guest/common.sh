# What the scripts of this folder have in common; they are sourced by bash(1), each with `name` set.
: "${name:?}" "${CKPTBPF:?}" "${VICTIMS:?}"

fail() {
    echo "$name: $*"
    exit 1
}

# The newest checkpoint of the job in folder $1.
newest() { "$CKPTBPF" list --json "$1" 2>/dev/null | tr ',{' '\n\n' | sed -n 's/^"id":\([0-9]*\)$/\1/p' | tail -n 1; }
has_newer() { [ "$(newest "$1")" -gt "$2" ] 2>/dev/null; }

# The first process of the only job that runs here.
program_of_job() { "$CKPTBPF" status --json 2>/dev/null | tr ',{' '\n\n' | sed -n 's/^"pid":\([0-9]*\)$/\1/p' | head -n 1; }

# until_so WHAT COMMAND…: waits until COMMAND succeeds, while $supervisor runs.
until_so() {
    local what=$1
    shift
    for _ in $(seq 1200); do
        "$@" && return 0
        kill -0 "$supervisor" 2>/dev/null || fail "the job ended before $what"
        sleep 0.1
    done
    fail "$what did not come"
}

# The value of vm.$1 on the kernel's command line.
word() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^vm\.$1=//p"; }
