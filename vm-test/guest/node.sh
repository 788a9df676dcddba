#!/bin/bash
# node.sh origin|target PROGRAM: one of two machines that are connected by a cable and share nothing. The program begins on one
# and goes on on the other, with its process ids and clocks.
set -u
role=$1 program=$VICTIMS/$2
name=node
. "$(dirname "$0")/common.sh"
ip link set lo up
device=$(basename "$(ls -d /sys/class/net/e* | head -n 1)")
case $role in origin) own=10.9.0.1 ;; *) own=10.9.0.2 ;; esac
ip address add $own/24 dev "$device" && ip link set "$device" up || fail "the network"
hostname "$role"
mkdir -p /work && cd /work || exit 1
export VICTIM_HOLD=/work/let-go
steps=3000 period=1000

if [ "$role" = origin ]; then
    "$CKPTBPF" launch -d job -i 0.5 -- "$program" numbers $steps $period > printed &
    supervisor=$!
    until_so "a second checkpoint" has_newer job 1
    "$CKPTBPF" checkpoint --kill job || fail "the last checkpoint"
    wait "$supervisor"
    [ $? = 85 ] || fail "the job ended with $?"
    date +%s > sent
    # Until the other one listens.
    for _ in $(seq 600); do
        tar -c job numbers printed sent | /init send 10.9.0.2:4711 && exit 0
        sleep 0.5
    done
    fail "nobody listens"
fi
/init receive 0.0.0.0:4711 | tar -x || fail "what has come"
here=$(date +%s)
[ "$here" -gt $(($(cat sent) + 86400)) ] || fail "this machine's clock is that of the other one"
touch let-go
# The file is a copy: as the checkpoint and the program's end were one, it is as it was then.
"$CKPTBPF" restart --lazy --take-over --files keep -i 0.5 job >> printed || fail "the restarted program ended with $?"
[ -e numbers.jump ] || fail "the program has not seen the other wall clock"
"$program" expected $steps 0 > /dev/null || fail "the undisturbed run"
cmp expected numbers || fail "its file is not that of an undisturbed run"
cmp expected printed || fail "what it printed is not that of an undisturbed run"
