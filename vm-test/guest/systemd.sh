#!/bin/bash
# systemd.sh launch|run|daemon: becomes systemd, with the root of the machine below under a disk of its own. One unit runs a job, or the
# daemon; another one, `systemd.sh watch launch|run|daemon`, looks at it and has the machine shut down.
#
# launch: the job begins, and ends with the machine. run: after that reboot it goes on from its last checkpoint, to its end.
# daemon: see daemon.sh.
set -u
name=systemd
. "$(dirname "$0")/common.sh"
here=$0 unit=ckptbpf-job.service steps=4000 period=1000

job_folder=/srv
. "$(dirname "$0")/daemon.sh"

if [ "$1" != watch ]; then
    leg=$1
    mkdir -p /lower /new /mnt/upper /mnt/work /mnt/job
    mount -t virtiofs root /lower || fail "the root of the machine below"
    mount -t overlay -o lowerdir=/lower,upperdir=/mnt/upper,workdir=/mnt/work overlay /new || fail "the overlay"
    mkdir -p /new$job_folder /new/usr/lib/systemd/system-shutdown
    mount --bind /mnt/job /new$job_folder
    for folder in tmp run; do mount -t tmpfs tmpfs /new/$folder; done
    : > /new/etc/fstab
    # What this machine's own services may be: none of them is started here.
    rm -f /new/etc/systemd/system/*.wants/*
    cp /init /new/usr/local/sbin/vm-init
    printf '#!/bin/bash\nexec /usr/local/sbin/vm-init verdict "$(cat /run/verdict)"\n' > /new/usr/lib/systemd/system-shutdown/verdict
    chmod +x /new/usr/lib/systemd/system-shutdown/verdict
    if [ "$leg" = daemon ]; then
        unit=$daemon
        daemon_units
    else
        cat > /new/etc/systemd/system/$unit << END
[Service]
WorkingDirectory=$job_folder
Environment=VICTIM_HOLD=$job_folder/let-go
StandardOutput=append:$job_folder/printed
StandardError=append:$job_folder/said
ExecStart=$CKPTBPF $leg -i 0.5 -d $job_folder/job -- $VICTIMS/count_static numbers $steps $period
END
    fi
    cat > /new/etc/systemd/system/watch.service << END
[Unit]
After=$unit
Requires=basic.target
After=basic.target
[Service]
Type=oneshot
WorkingDirectory=$job_folder
Environment=CKPTBPF=$CKPTBPF VICTIMS=$VICTIMS
ExecStart=/bin/bash $here watch $leg
END
    cat > /new/etc/systemd/system/vm-test.target << END
[Unit]
Requires=basic.target
Wants=$unit watch.service
After=basic.target
AllowIsolate=yes
END
    umount /sys/fs/cgroup
    for folder in proc sys dev; do mount --move /$folder /new/$folder; done
    # As switch_root(8) does it: nobody is in a root directory other than that of the mounts.
    cd /new && mount --move . / || fail "the new root"
    exec chroot . /lib/systemd/systemd --system --unit=vm-test.target --show-status=no --log-target=null < dev/ttyS0 > dev/ttyS0 2>&1
fi

leg=$2
exec > /dev/ttyS0 2>&1
ends() {
    echo "VM-TEST $1 journey systemd.sh $SECONDS s${3:+: $3}"
    echo "VM-TEST verdict $2"
    echo "$2" > /run/verdict
    # Whoever else could be asked, such as logind, is not there.
    systemctl --no-block start --job-mode=replace-irreversibly poweroff.target
    exit 0
}
fail() { ends failed failed "$*"; }

systemctl --version | head -n 1
[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || fail "control groups are not those of version 2"
if [ "$leg" = daemon ]; then
    watch_daemon
    ends ok passed
fi
supervisor=$(systemctl show -P MainPID $unit)
[ "$supervisor" != 0 ] || fail "the unit: $(tail -n 3 said)"
before=$(newest job)
until_so "a checkpoint" has_newer job "${before:-1}"
program=$(program_of_job)
grep -q "^0::/system.slice/$unit$" "/proc/$program/cgroup" || fail "the program is not in its unit: $(cat "/proc/$program/cgroup")"
if [ "$leg" = launch ]; then
    ends ok passed
fi
touch let-go
for _ in $(seq 1200); do
    case $(systemctl show -P ActiveState $unit) in inactive | failed) break ;; esac
    sleep 0.1
done
[ "$(systemctl show -P Result $unit)" = success ] || fail "the unit: $(systemctl show -P Result $unit), $(tail -n 3 said)"
"$VICTIMS/count_static" expected $steps 0 > /dev/null || fail "the undisturbed run"
cmp expected numbers || fail "its file is not that of an undisturbed run"
cmp expected printed || fail "what it printed is not that of an undisturbed run"
ends ok passed
