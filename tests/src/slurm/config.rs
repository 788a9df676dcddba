//! Slurm's configuration: two nodes on this machine, with the limits that clusters have.

use std::path::Path;

/// Writes slurm.conf and cgroup.conf.
pub fn write(bed: &Path, nodes: &[String; 2]) {
    let host = nix::unistd::gethostname().expect("the host's name").to_string_lossy().into_owned();
    let host = host.split('.').next().unwrap_or(&host);
    std::fs::write(bed.join("slurm.conf"), slurm(bed, host, nodes)).expect("slurm.conf");
    let is_first = Path::new("/sys/fs/cgroup/memory").is_dir();
    std::fs::write(bed.join("cgroup.conf"), cgroup(is_first)).expect("cgroup.conf");
}

/// Nodes have more processors and memory than there are, so that jobs run side by side; what is contended for in tests is memory, of
/// which nobody uses much.
fn slurm(bed: &Path, host: &str, nodes: &[String; 2]) -> String {
    let bed = bed.display();
    let [first, second] = nodes;
    format!(
        "ClusterName=ckpt
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=6817
AuthType=auth/munge
AuthInfo=socket={bed}/munge/munge.socket,cred_expire=30
SlurmUser=root
SlurmdUser=root
MailProg=/bin/true
StateSaveLocation={bed}/state
SlurmdSpoolDir=/run/slurmd/%n
SlurmctldPidFile=/run/slurmd/slurmctld.pid
SlurmdPidFile=/run/slurmd/slurmd.%n.pid
SlurmctldLogFile={bed}/log/slurmctld.log
SlurmdLogFile={bed}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=debug
SlurmdParameters=config_overrides
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,sched_min_interval=200000,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=20
OverTimeLimit=0
InactiveLimit=0
MinJobAge=600
SlurmdTimeout=300
JobRequeue=1
PrologFlags=Alloc
Prolog={bed}/hooks/prolog
Epilog={bed}/hooks/epilog
TaskProlog={bed}/hooks/task-prolog
NodeName={first} NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=64 RealMemory=100000 State=UNKNOWN
NodeName={second} NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=64 RealMemory=100000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF State=UP
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"
    )
}

/// Ten megabytes are ten: unless it is said otherwise, nobody has less than thirty.
fn cgroup(is_first: bool) -> &'static str {
    if is_first {
        "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\nConstrainRAMSpace=yes\n\
         MinRAMSpace=1\n"
    } else {
        "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\nConstrainRAMSpace=yes\nMinRAMSpace=1\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_nodes_and_every_hook_are_named() {
        let nodes = ["k1".to_owned(), "k2".to_owned()];
        let text = slurm(Path::new("/bed"), "here", &nodes);
        assert!(text.lines().all(|line| line.contains('=')), "{text}");
        let named =
            ["NodeName=k1 ", "NodeName=k2 ", "Prolog=/bed/hooks/prolog", "SlurmctldHost=here(127.0.0.1)"];
        assert!(named.iter().all(|name| text.contains(name)), "{text}");
        assert!([true, false].map(cgroup).iter().all(|text| text.contains("MinRAMSpace=1")));
    }
}
