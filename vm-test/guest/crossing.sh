#!/bin/bash
# crossing.sh first|next|last eager|lazy PROGRAM: one leg of a program's way from kernel to kernel; its directory is a disk that goes along.
#
# first: runs it, undisturbed to its end for comparison, then with checkpoints. next: restarts it. last: restarts it to its end.
# All but the last leg end with kill -9 of everything, right after a checkpoint.
set -u
leg=$1 mode=$2 program=$VICTIMS/$3
steps=4000 period=1000
cd /mnt || exit 1
: "${CKPTBPF:?}" "${VICTIMS:?}"
export VICTIM_HOLD=/mnt/let-go

fail() { echo "crossing: $*"; tail -n 20 said; exit 1; }
newest() { "$CKPTBPF" list --json job 2>/dev/null | tr ',{' '\n\n' | sed -n 's/^"id":\([0-9]*\)$/\1/p' | tail -n 1; }

# Waits until COMMAND succeeds, while the job runs.
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
has_newer() { [ "$(newest)" -gt "$1" ] 2>/dev/null; }

case $leg in
first)
    touch let-go
    "$program" expected $steps 0 > /dev/null || fail "the undisturbed run"
    rm let-go
    "$CKPTBPF" launch -d job -i 0.5 -- "$program" numbers $steps $period > printed 2> said &
    before=0
    ;;
*)
    before=$(newest)
    case $mode in lazy) option=--lazy ;; *) option= ;; esac
    "$CKPTBPF" restart $option --take-over -i 0.5 job >> printed 2> said &
    ;;
esac
supervisor=$!
if [ "$leg" = last ]; then
    until_so "a checkpoint here" has_newer "$before"
    touch let-go
    wait "$supervisor" || fail "the program ended with $?"
    cmp expected numbers || fail "its file is not that of an undisturbed run"
    exit 0
fi
# Two: the second is a delta, and holds what this kernel has made of the memory.
until_so "a checkpoint here" has_newer "$((before + 1))"
kill -9 "$supervisor" $("$CKPTBPF" status --json 2>/dev/null | tr ',{' '\n\n' | sed -n 's/^"pid":\([0-9]*\)$/\1/p')
wait "$supervisor"
"$CKPTBPF" verify job > verified || fail "$(cat verified)"
sync
