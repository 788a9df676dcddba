// What this kernel can do, found out without a line of ckptbpf: `ok NAME` or `no NAME`, by the names of `ckptbpf check`.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

static void say(const char *name, int ok) { printf("%s %s\n", ok ? "ok" : "no", name); }

static int userfaultfd(long flags) { return syscall(SYS_userfaultfd, flags | O_CLOEXEC); }

static int has_feature(uint64_t feature) {
    int fd = userfaultfd(0);
    struct uffdio_api api = {.api = UFFD_API, .features = feature};
    int ok = fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0;
    close(fd);
    return ok;
}

static char *pages(int count) {
    char *at = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < count; i++) at[i * PAGE] = 1;
    return at;
}

// struct pm_scan_arg of linux/fs.h, which headers may not have yet.
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any, returned;
};
struct region {
    uint64_t start, end, categories;
};

// Protects eight pages, writes to the sixth, and wants to hear of that one alone.
static int scans(void) {
    int fd = userfaultfd(0), map = open("/proc/self/pagemap", O_RDONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = 1 << 15 | 1 << 13};
    char *memory = pages(8);
    struct uffdio_register range = {.range = {(uintptr_t)memory, 8 * PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) return 0;
    struct region found[8];
    struct scan scan = {sizeof scan, 3, (uintptr_t)memory, (uintptr_t)memory + 8 * PAGE, 0, (uintptr_t)found, 8, 0, 0, 2, 0, 2};
    if (ioctl(map, _IOWR('f', 16, struct scan), &scan) < 0) return 0;
    memory[5 * PAGE] = 2;
    int count = ioctl(map, _IOWR('f', 16, struct scan), &scan);
    close(fd);
    close(map);
    return count == 1 && found[0].start == (uintptr_t)memory + 5 * PAGE && found[0].end == found[0].start + PAGE;
}

static int marks_dirty(void) {
    char *memory = pages(4);
    int map = open("/proc/self/pagemap", O_RDONLY), clear = open("/proc/self/clear_refs", O_WRONLY);
    int written = write(clear, "4", 1) == 1;
    memory[2 * PAGE] = 2;
    uint64_t entries[4] = {0};
    int read = pread(map, entries, sizeof entries, (uintptr_t)memory / PAGE * 8) == sizeof entries;
    close(map);
    close(clear);
    int dirty = 0;
    for (int i = 0; i < 4; i++) dirty |= (int)(entries[i] >> 55 & 1) << i;
    return written && read && dirty == 4;
}

struct clone_with_id {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

static int chooses_ids(void) {
    int id = 30000 + getpid() % 1000;
    struct clone_with_id with = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&id, .set_tid_size = 1};
    long child = syscall(SYS_clone3, &with, sizeof with);
    if (child == 0) _exit(getpid() == id ? 0 : 1);
    int status = 1;
    return child == id && waitpid(child, &status, 0) == id && status == 0;
}

static int unshares(int namespace) {
    int child = fork(), status = 1;
    if (child == 0) _exit(unshare(namespace) ? 1 : 0);
    return waitpid(child, &status, 0) == child && status == 0;
}

static int borrows_descriptors(void) {
    int ends[2];
    if (pipe(ends)) return 0;
    int pidfd = syscall(SYS_pidfd_open, getpid(), 0);
    int copy = syscall(438, pidfd, ends[1], 0);
    char byte = 0;
    return copy >= 0 && write(copy, "x", 1) == 1 && read(ends[0], &byte, 1) == 1 && byte == 'x';
}

static int compares(void) {
    int copy = dup(1), other = open("/dev/null", O_RDONLY);
    return syscall(SYS_kcmp, getpid(), getpid(), 0, 1, copy) == 0 && syscall(SYS_kcmp, getpid(), getpid(), 0, 1, other) > 0;
}

static int reads_memory(void) {
    char from[] = "memory", to[sizeof from] = "";
    struct iovec here = {to, sizeof to}, there = {from, sizeof from};
    return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == sizeof to && strcmp(to, "memory") == 0;
}

static int lacks_rseq(void) { return syscall(SYS_rseq, 0, 0, 0, 0) < 0 && errno == ENOSYS; }

// PTRACE_GET_RSEQ_CONFIGURATION: nothing has to be told where there is no rseq(2).
static int tells_rseq(void) {
    int child = fork(), status = 0;
    if (child == 0) {
        for (;;) pause();
    }
    uint64_t told[3] = {0};
    int ok = ptrace(PTRACE_SEIZE, child, 0, 0) == 0 && ptrace(PTRACE_INTERRUPT, child, 0, 0) == 0 &&
             waitpid(child, &status, 0) == child && WIFSTOPPED(status) &&
             (ptrace(0x420f, child, sizeof told, told) == sizeof told || lacks_rseq());
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return ok;
}

static int traces_from_beside(void) {
    int child = fork(), status = 1;
    if (child == 0) {
        for (;;) pause();
    }
    if (child < 0) return 0;
    int other = fork();
    if (other == 0) _exit(ptrace(PTRACE_SEIZE, child, 0, 0) ? 1 : 0);
    int ok = other > 0 && waitpid(other, &status, 0) == other && status == 0;
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return ok;
}

// A program of two instructions: zero, and the end.
static int loads_programs(void) {
    struct bpf_insn code[2] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr load;
    memset(&load, 0, sizeof load);
    load.prog_type = BPF_PROG_TYPE_TRACEPOINT;
    load.insns = (uintptr_t)code;
    load.insn_cnt = 2;
    load.license = (uintptr_t)"GPL";
    int fd = syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
    close(fd);
    return fd >= 0;
}

static int exists(const char *path) { return access(path, F_OK) == 0; }

int main(void) {
    say("userfaultfd", userfaultfd(0) >= 0);
    say("userfaultfd USER_MODE_ONLY", userfaultfd(UFFD_USER_MODE_ONLY) >= 0);
    say("/dev/userfaultfd", open("/dev/userfaultfd", O_RDWR | O_CLOEXEC) >= 0);
    say("userfaultfd WP_ASYNC", has_feature(1 << 15));
    say("userfaultfd WP_UNPOPULATED", has_feature(1 << 13));
    say("userfaultfd EVENT_FORK", has_feature(1 << 1));
    say("userfaultfd EVENT_REMAP", has_feature(1 << 2));
    say("userfaultfd EVENT_REMOVE", has_feature(1 << 3));
    say("userfaultfd EVENT_UNMAP", has_feature(1 << 6));
    say("userfaultfd MOVE", has_feature(1 << 16));
    say("PAGEMAP_SCAN", scans());
    say("soft-dirty", marks_dirty());
    say("BTF", exists("/sys/kernel/btf/vmlinux"));
    say("eBPF", loads_programs());
    say("clone3 set_tid", chooses_ids());
    say("pid namespace", unshares(CLONE_NEWPID));
    say("time namespace", unshares(0x80));
    say("pidfd_getfd", borrows_descriptors());
    say("ptrace rseq", tells_rseq());
    say("ptrace from beside", traces_from_beside());
    say("kcmp", compares());
    say("process_vm_readv", reads_memory());
    say("PR_SET_MM_MAP", prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &(unsigned){0}, 0, 0) == 0);
    say("/proc/PID/map_files", exists("/proc/self/map_files"));
    return 0;
}
