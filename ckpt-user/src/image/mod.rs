//! Generations and chains on disk. Invariant: no pid, no ptrace, no eBPF in here; works on any machine, without root.
