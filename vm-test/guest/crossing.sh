#!/bin/bash
# crossing.sh first|next|last|refused eager|lazy PROGRAM [REASON]: one leg of a program's way from machine to machine; its
# directory is a disk that goes along.
#
# first: runs it, undisturbed to its end for comparison, then with checkpoints. next: restarts it. last: restarts it to its end.
# refused: a restart names REASON and changes nothing. All but the last leg end with kill -9 of everything, right after a
# checkpoint.
# vm.baseline=LEVEL on the kernel's command line: of what processor the program is told, if not of the one that is there.
set -u
leg=$1 mode=$2 program=$VICTIMS/$3 reason=${4:-}
name=crossing
. "$(dirname "$0")/common.sh"
steps=4000 period=1000
cd /mnt || exit 1
export VICTIM_HOLD=/mnt/let-go
case $mode in lazy) option=--lazy ;; *) option= ;; esac

case $leg in
first)
    touch let-go
    "$program" expected $steps 0 > /dev/null || fail "the undisturbed run"
    rm let-go
    baseline=$(word baseline)
    "$CKPTBPF" launch ${baseline:+--cpu-baseline "$baseline"} -d job -i 0.5 -- "$program" numbers $steps $period > printed &
    before=0
    ;;
refused)
    before=$(ls -l job numbers printed)
    "$CKPTBPF" restart $option --take-over job > /dev/null 2> said
    [ $? = 125 ] || fail "the restart ended with $?"
    grep -qw -- "$reason" said || fail "$(cat said)"
    [ "$before" = "$(ls -l job numbers printed)" ] || fail "the refused restart has changed something"
    exit 0
    ;;
*)
    before=$(newest job)
    "$CKPTBPF" restart $option --take-over -i 0.5 job >> printed &
    ;;
esac
supervisor=$!
if [ "$leg" = last ]; then
    until_so "a checkpoint here" has_newer job "$before"
    touch let-go
    wait "$supervisor" || fail "the program ended with $?"
    cmp expected numbers || fail "its file is not that of an undisturbed run"
    exit 0
fi
# Two: the second is a delta, and holds what this kernel has made of the memory.
until_so "a checkpoint here" has_newer job "$((before + 1))"
kill -9 "$supervisor" "$(program_of_job)"
wait "$supervisor"
"$CKPTBPF" verify job > verified || fail "$(cat verified)"
sync
