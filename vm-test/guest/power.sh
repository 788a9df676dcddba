#!/bin/bash
# power.sh enough|full: one life of a machine whose power fails; which life it is stands on the kernel's command line.
#
# vm.leg=first: runs a program with checkpoints. next: looks at what the life before has left, restarts it. last: the same, and
# compares what the program has written with an undisturbed run. vm.told=N: the newest checkpoint that anybody was told of.
# full: the disk with the images is full, most of the time.
set -u
room=$1
name=power
. "$(dirname "$0")/common.sh"
leg=$(word leg) told=$(word told) program=$VICTIMS/count_static
job=/mnt/job ballast=/mnt/ballast
# The same machine after each loss of power.
echo 0123456789abcdef0123456789abcdef > /etc/machine-id

# What ckptbpf says goes to the console, too: so much the user is told.
mkfifo /run/saying
tee /run/said < /run/saying &
exec 7> /run/saying
restart() { "$CKPTBPF" restart $option -v -i 0.3 $job >> /files/printed 2>&7 7>&- & }
# It ends: refused for want of room. It runs: it has a checkpoint, or makes one.
is_refused() { ! kill -0 "$supervisor" 2>/dev/null && grep -q "No space left on device" /run/said; }
is_restarted_or_refused() { is_refused || grep -q "(pid " /run/said; }
# It ends for want of room, which is its purpose.
fill() {
    dd if=/dev/zero of=$ballast bs=64k oflag=append conv=notrunc status=none 2> /run/filled
    grep -q "No space left on device" /run/filled || fail "the disk cannot be filled: $(cat /run/filled)"
}

if [ "$leg" = first ]; then
    "$CKPTBPF" launch -v -d $job -i 0.3 -- "$program" /files/numbers 1000000 1000 > /files/printed 2>&7 7>&- &
    supervisor=$!
    before=0
else
    "$CKPTBPF" verify $job || fail "not all of it is whole"
    before=$(newest $job)
    [ "$before" -ge "$told" ] || fail "checkpoint $told was told of, and the newest is $before"
    option=
    [ $((before % 2)) = 0 ] && option=--lazy
    restart
    supervisor=$!
    for _ in $(seq 1200); do
        is_restarted_or_refused && break
        sleep 0.1
    done
    if is_refused; then
        [ "$room" = full ] || fail "the disk is full"
        "$CKPTBPF" verify $job || fail "a restart that was refused has changed something"
        rm $ballast
        restart
        supervisor=$!
    fi
fi
if [ "$leg" = last ]; then
    rm -f $ballast
    until_so "a checkpoint after the last loss" has_newer $job "$before"
    "$CKPTBPF" checkpoint --kill $job || fail "the last checkpoint"
    wait "$supervisor"
    [ $? = 85 ] || fail "the job ended with $?"
    # Nobody has cut it off: its file ends with a whole line, and so many steps an undisturbed run has made of it.
    "$program" /run/expected "$(wc -l < /files/numbers)" 0 > /dev/null || fail "the undisturbed run"
    cmp /run/expected /files/numbers || fail "its file is not that of an undisturbed run"
    cmp /run/expected /files/printed || fail "what it printed is not that of an undisturbed run"
    exit 0
fi
# What was restarted was so with the room that there was.
rm -f $ballast
while kill -0 "$supervisor" 2>/dev/null; do
    if [ "$room" = full ]; then
        until_so "a checkpoint" has_newer $job "$before"
        fill
        # One that still finds room, as old ones were merged meanwhile, leaves less for the next.
        while "$CKPTBPF" checkpoint $job > /run/asked 2>&1; do
            cat /run/asked
            fill
        done
        cat /run/asked
        grep -q "No space left on device" /run/asked || fail "a checkpoint failed for something else than want of room"
        echo "$name: no room for a checkpoint"
        rm $ballast
        before=$(newest $job)
    fi
    sleep 0.2
done
fail "the program has ended before the power failed"
