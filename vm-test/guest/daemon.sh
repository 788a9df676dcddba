# What systemd.sh does about the daemon; it is sourced by that. The daemon is the unit that is shipped, with limits for each user's workers;
# the job is a user's, in a unit of its own: launched, killed with its ckptbpf, and restarted. Meanwhile the daemon is killed, too.
user=4242 tasks=200 bytes=100663296
daemon=ckptbpf.service counting=counting.service
home=$job_folder/tester above=/sys/fs/cgroup/system.slice

# Below /new, before systemd is there.
daemon_units() {
    local repository=${here%/vm-test/guest/*} units=/new/etc/systemd/system
    echo "tester:x:$user:$user::$home:/bin/sh" >> /new/etc/passwd
    echo "tester:x:$user:" >> /new/etc/group
    mkdir -p /new/usr/local/bin "$units/$daemon.d"
    cp "$CKPTBPF" /new/usr/local/bin/ckptbpf
    cp "/new$repository/systemd/$daemon" "$units/$daemon"
    cat > "$units/$daemon.d/limits.conf" << END
[Service]
ExecStart=
ExecStart=/usr/local/bin/ckptbpf daemon --worker-memory 96M --worker-tasks $tasks
StandardError=append:$job_folder/daemon.log
END
    # The user's files are opened by the user.
    cat > "$units/$counting" << END
[Service]
User=tester
WorkingDirectory=$home
Environment=VICTIM_HOLD=$home/let-go
ExecStart=/bin/sh -c 'exec /usr/local/bin/ckptbpf run -i 0.5 -d job -- ./count_static numbers $steps $period >> printed 2>> said'
END
}

main_of() { systemctl show -P MainPID "$1"; }
group_of() { echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")"; }
answers() { "$CKPTBPF" daemon --check 2> /dev/null | grep -q "^daemon $1 at "; }
is_replaced() {
    local now
    now=$(main_of $daemon)
    [ "$now" != 0 ] && [ "$now" != "$1" ] && answers "$now"
}
is_empty() { [ -z "$(cat "$1/cgroup.procs" 2> /dev/null)" ]; }
has_ended() { case $(systemctl show -P ActiveState $counting) in inactive | failed) ;; *) return 1 ;; esac }
nothing_runs() { ! grep -qs "^Uid:[[:space:]]*$user[[:space:]]" /proc/[0-9]*/status; }
complain() { fail "$*; the job: $(tail -n 5 $home/said); the daemon: $(tail -n 10 $job_folder/daemon.log)"; }

# The user's worker is in the only group of its kind, $group, with the limits that were asked for; the program is in its own unit.
sees_worker() {
    local found=("$above/$daemon/ckptbpf-"*) uid
    group=${found[0]}
    [ ${#found[@]} = 1 ] && case $group in *-u$user) ;; *) false ;; esac || complain "groups of users: ${found[*]}"
    worker=$(head -n 1 "$group/cgroup.procs")
    uid=$(sed -n 's/^Uid:[[:space:]]*\([0-9]*\).*/\1/p' "/proc/$worker/status")
    [ "$uid" = $user ] || complain "process $worker of $group is uid $uid's"
    [ "$(cat "$group/memory.max")" = $bytes ] || complain "memory.max is $(cat "$group/memory.max")"
    [ ! -e "$group/memory.swap.max" ] || [ "$(cat "$group/memory.swap.max")" = 0 ] || complain "memory.swap.max"
    [ "$(cat "$group/pids.max")" = $tasks ] || complain "pids.max is $(cat "$group/pids.max")"
    program=$(program_of_job)
    [ "$(group_of "$program")" = "$above/$counting" ] || complain "the program is in $(group_of "$program")"
}

watch_daemon() {
    local group worker program before killed
    install -d -o $user -g $user -m 700 $home
    install -m 755 "$VICTIMS/count_static" $home/
    supervisor=$(main_of $daemon)
    until_so "an answer of the daemon's" answers "$supervisor"
    [ "$(group_of "$supervisor")" = "$above/$daemon/core" ] || complain "the core is in $(group_of "$supervisor")"

    systemctl start $counting || complain "the user's job"
    supervisor=$(main_of $counting)
    until_so "a checkpoint" has_newer $home/job 1
    sees_worker
    systemctl kill -s KILL $counting
    supervisor=$(main_of $daemon)
    until_so "the job's end" has_ended
    until_so "the end of the user's group" test ! -e "$group"

    before=$(newest $home/job)
    systemctl start $counting || complain "the job's restart"
    supervisor=$(main_of $counting)
    until_so "a checkpoint after the restart" has_newer $home/job "$before"
    sees_worker

    # systemd takes controllers away from below a unit that it starts, and begins nothing in a group that hands them on.
    killed=$(main_of $daemon)
    kill -9 "$killed"
    until_so "another daemon" is_replaced "$killed"
    sees_worker
    "$CKPTBPF" checkpoint $home/job || complain "a checkpoint by a worker whose daemon was killed"

    touch $home/let-go
    supervisor=$(main_of $daemon)
    until_so "the program's end" has_ended
    [ "$(systemctl show -P Result $counting)" = success ] || complain "the unit: $(systemctl show -P Result $counting)"
    "$VICTIMS/count_static" expected $steps 0 > /dev/null || fail "the undisturbed run"
    cmp expected $home/numbers || complain "its file is not that of an undisturbed run"
    cmp expected $home/printed || complain "what it printed is not that of an undisturbed run"
    until_so "the worker's end" is_empty "$group"
    until_so "the end of all that is the user's" nothing_runs
    systemctl stop $daemon || complain "the daemon's end"
    supervisor=$$
    until_so "the end of its groups" test ! -e "$above/$daemon"
    [ ! -e /run/ckptbpf/daemon.sock ] || complain "it has left its socket"
}
