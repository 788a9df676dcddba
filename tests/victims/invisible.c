/* invisible: says all that a program can find out about itself, each time it is asked to.
 *
 * It has something of most kinds: threads, a child and one that it has waited for, mappings, descriptors, timers, signals,
 * settings. For each N for which there is a file ask-N it writes a file told-N: after a line `== NAME`, what the file /proc/self/NAME holds or what the link there
 * says, and after `== call`, what system calls answer. Zeros are newlines. It ends when there is a file `end`. */
#include "victim.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/wait.h>

static char told[8 << 20];
static size_t length;

__attribute__((format(printf, 1, 2))) static void tell(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    length += vsnprintf(told + length, sizeof told - length, format, args);
    va_end(args);
    CHECK(length < sizeof told);
}

static void tell_file(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "/proc/self/%s", name);
    int fd = open(path, O_RDONLY);
    tell("== %s\n", name);
    ssize_t n = -1;
    size_t start = length;
    while (fd >= 0 && (n = read(fd, told + length, sizeof told - length)) > 0)
        length += n;
    if (fd < 0 || n < 0)
        tell("%s", strerror(errno));
    if (fd >= 0)
        close(fd);
    if (strcmp(name, "auxv") == 0) {
        uint64_t sum = mix_words(0, (uint64_t *)(told + start), (length - start) / 8);
        length = start;
        tell("sum: %016lx", sum);
    }
    for (size_t i = start; i < length; i++)
        if (!told[i])
            told[i] = '\n';
    tell("\n");
}

static void tell_link(const char *name)
{
    char path[128], to[512] = "";
    snprintf(path, sizeof path, "/proc/self/%s", name);
    if (readlink(path, to, sizeof to - 1) < 0)
        snprintf(to, sizeof to, "%s", strerror(errno));
    tell("== %s\nlink: %s\n", name, to);
}

static int by_number(const void *a, const void *b)
{
    return strverscmp(*(char *const *)a, *(char *const *)b);
}

/* What is in a folder, in order, without memory of the C library. */
static void tell_each(const char *folder, const char *file, void (*one)(const char *))
{
    static char entries[1 << 16], *names[1024];
    char path[128];
    int count = 0;
    snprintf(path, sizeof path, "/proc/self/%s", folder);
    int fd = open(path, O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0);
    long n = syscall(SYS_getdents64, fd, entries, sizeof entries);
    CHECK(n > 0 && close(fd) == 0);
    for (long at = 0; at < n; at += ((struct dirent *)(entries + at))->d_reclen) {
        char *name = ((struct dirent *)(entries + at))->d_name;
        /* The folder itself was open. */
        if (*name != '.' && !(strncmp(folder, "fd", 2) == 0 && atoi(name) == fd))
            names[count++] = name;
    }
    qsort(names, count, sizeof *names, by_number);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, file, names[i]);
        one(path);
    }
}

static void tell_calls(void)
{
    sigset_t mask, waiting;
    stack_t stack;
    struct itimerval alarm;
    struct tms times_of;
    struct rusage usage, of_children;
    unsigned long masked = 0, pending = 0;
    int subreaper = 0, death = 0;
    struct timespec monotonic, real;
    tell("== call\n");
    CHECK(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && sigpending(&waiting) == 0 && sigaltstack(NULL, &stack) == 0);
    memcpy(&masked, &mask, sizeof masked), memcpy(&pending, &waiting, sizeof pending);
    tell("mask: %lx\npending: %lx\naltstack: %p %x %zu\n", masked, pending, stack.ss_sp, stack.ss_flags, stack.ss_size);
    for (int i = 1; i < 65; i++) {
        struct {
            void *handler;
            unsigned long flags;
            void *restorer;
            unsigned long mask;
        } action;
        if (syscall(SYS_rt_sigaction, i, NULL, &action, 8) == 0)
            tell("action: %d %p %lx %p %lx\n", i, action.handler, action.flags, action.restorer, action.mask);
    }
    CHECK(getitimer(ITIMER_REAL, &alarm) == 0);
    tell("alarm: every %ld s\n", alarm.it_interval.tv_sec);
    tell("pid: %d\ntid: %ld\nparent: %d\ngroup: %d\nsession: %d\n", getpid(), syscall(SYS_gettid), getppid(), getpgrp(),
         getsid(0));
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper), prctl(PR_GET_PDEATHSIG, &death);
    tell("prctl: dumpable %d, keep %d, securebits %x, slack %d, tsc, subreaper %d, death %d, huge %d, name, seccomp %d\n",
         prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS), prctl(PR_GET_SECUREBITS), prctl(PR_GET_TIMERSLACK), subreaper, death,
         prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), prctl(PR_GET_SECCOMP));
    tell("priority: %d\nscheduler: %d\nio: %ld\n", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0),
         syscall(SYS_ioprio_get, 1, 0));
    tell("keyring: %ld\n", syscall(SYS_keyctl, 0, -3, 0));
    tell("brk: %p\n", sbrk(0));
    times(&times_of), getrusage(RUSAGE_SELF, &usage), getrusage(RUSAGE_CHILDREN, &of_children);
    tell("times: %ld\nusage: %ld\n", times_of.tms_utime + times_of.tms_stime, usage.ru_minflt);
    tell("children: %ld %ld %ld\n", times_of.tms_cutime, times_of.tms_cstime, of_children.ru_minflt);
    CHECK(clock_gettime(CLOCK_MONOTONIC, &monotonic) == 0 && clock_gettime(CLOCK_REALTIME, &real) == 0);
    /* In minutes, far from where one begins. */
    static long first;
    if (!first)
        first = monotonic.tv_sec;
    tell("monotonic: %ld hours since the first look\n", (monotonic.tv_sec - first) / 3600);
}

static const char *const files[] = {
    "arch_status", "attr/current", "auxv", "autogroup", "cgroup", "cmdline", "comm", "coredump_filter", "cpuset", "environ",
    "gid_map", "io", "ksm_merging_pages", "ksm_stat", "limits", "loginuid", "maps", "mountinfo", "mounts", "numa_maps", "oom_adj",
    "oom_score", "oom_score_adj", "patch_state", "personality", "projid_map", "sched", "schedstat", "sessionid", "setgroups",
    "smaps", "stat", "statm", "status", "timens_offsets", "timers", "timerslack_ns", "uid_map",
};
static const char *const of_threads[] = {
    "task/%s/comm", "task/%s/stat", "task/%s/status", "task/%s/personality", "task/%s/children", "task/%s/sched", "task/%s/cgroup",
};

static int restless;

/* A thread other than this one that does not sleep, yet or for a moment. */
static void see_rest(const char *thread)
{
    char path[64], stat[256] = "";
    snprintf(path, sizeof path, "/proc/self/%s", thread);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && read(fd, stat, sizeof stat - 1) > 0 && close(fd) == 0);
    restless += atoi(stat) != getpid() && strstr(stat, ") S ") == NULL;
}

static void look(void)
{
    do {
        restless = 0;
        tell_each("task", "task/%s/stat", see_rest);
    } while (restless);
    length = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        tell_file(files[i]);
    for (size_t i = 0; i < sizeof of_threads / sizeof *of_threads; i++)
        tell_each("task", of_threads[i], tell_file);
    tell_each("fd", "fd/%s", tell_link);
    tell_each("fdinfo", "fdinfo/%s", tell_file);
    tell_each("ns", "ns/%s", tell_link);
    tell_link("exe"), tell_link("cwd"), tell_link("root");
    tell_calls();
}

static void on_signal(int signal)
{
    (void)signal;
}

static void *stay(void *name)
{
    prctl(PR_SET_NAME, name);
    for (;;)
        pause();
    return NULL;
}

/* A child that has needed some time of both kinds, and memory, and is waited for. */
static void wait_for_a_child(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct tms spent = {0};
        char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(memory != MAP_FAILED);
        for (size_t i = 0; spent.tms_utime < 3 || spent.tms_stime < 3; i = (i + 4096) % (1 << 20)) {
            for (volatile int turn = spent.tms_utime < 3 ? 0 : 100000; turn < 100000; turn++)
                ;
            memory[i] = 1;
            CHECK(madvise(memory, 1 << 20, MADV_DONTNEED) == 0 && times(&spent) != -1);
        }
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child);
}

/* Open without a name, and mapped with another file under its name. */
static void have_files_without_a_name(void)
{
    static char bytes[5000];
    int unnamed = open(".", O_TMPFILE | O_RDWR, 0600), fd = open("replaced", O_RDWR | O_CREAT, 0600);
    CHECK(unnamed >= 0 && write(unnamed, bytes, sizeof bytes) == sizeof bytes);
    CHECK(fd >= 0 && write(fd, bytes, sizeof bytes) == sizeof bytes);
    CHECK(mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, fd, 0) != MAP_FAILED && close(fd) == 0 && unlink("replaced") == 0);
    fd = open("replaced", O_WRONLY | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && write(fd, "another", 7) == 7 && close(fd) == 0);
}

static void set_up(void)
{
    int ends[2], fd;
    pthread_t one;
    sigset_t mask;
    static char stack[1 << 16];
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGRTMIN + 3, &action, NULL) == 0);
    sigemptyset(&mask), sigaddset(&mask, SIGUSR2), sigaddset(&mask, SIGRTMIN + 1);
    CHECK(sigprocmask(SIG_BLOCK, &mask, NULL) == 0 && raise(SIGRTMIN + 1) == 0);
    CHECK(sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &(struct itimerval){{5000, 0}, {5000, 0}}, NULL) == 0);
    timer_t timer;
    CHECK(timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0);
    CHECK(timer_settime(timer, 0, &(struct itimerspec){{7000, 0}, {7000, 0}}, NULL) == 0);
    fd = open("file", O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && write(fd, stack, 5000) == 5000 && lseek(fd, 1234, SEEK_SET) == 1234);
    CHECK(mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, fd, 0) != MAP_FAILED);
    CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED);
    have_files_without_a_name();
    CHECK(pipe(ends) == 0 && write(ends[1], "abc", 3) == 3);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && write(ends[0], "de", 2) == 2);
    int event = eventfd(7, EFD_NONBLOCK), epoll = epoll_create1(EPOLL_CLOEXEC);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &(struct epoll_event){.events = EPOLLIN, .data.u64 = 42}) == 0);
    CHECK(timerfd_create(CLOCK_BOOTTIME, 0) >= 0 && signalfd(-1, &mask, 0) >= 0);
    fd = memfd_create("memory", MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, 12288) == 0 && mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED);
    char *plain = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(plain != MAP_FAILED && shared != MAP_FAILED);
    memset(plain, 1, 1 << 15), memset(shared, 2, 1 << 15);
    CHECK(madvise(plain, 4096, MADV_DONTFORK) == 0 && madvise(plain + 8192, 4096, MADV_DONTDUMP) == 0);
    CHECK(mlock(plain + 16384, 4096) == 0 && mprotect(plain + 24576, 4096, PROT_NONE) == 0);
    CHECK(setpriority(PRIO_PROCESS, 0, 3) == 0 && prctl(PR_SET_TIMERSLACK, 77777) == 0);
    CHECK(pthread_create(&one, NULL, stay, "second") == 0 && pthread_create(&one, NULL, stay, "third") == 0);
    wait_for_a_child();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
}

int main(void)
{
    char ask[32], unfinished[32], answer[32];
    set_up();
    /* What a first look needs is there from then on. */
    look(), look();
    for (int n = 1; access("end", F_OK) != 0; sleep_us(1000)) {
        snprintf(ask, sizeof ask, "ask-%d", n), snprintf(answer, sizeof answer, "told-%d", n);
        snprintf(unfinished, sizeof unfinished, "unfinished-%d", n);
        if (access(ask, F_OK) != 0)
            continue;
        look();
        int fd = open(unfinished, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        CHECK(fd >= 0);
        write_all(fd, told, length);
        CHECK(close(fd) == 0 && rename(unfinished, answer) == 0);
        n++;
    }
    return 0;
}
