/* settings STEPS PERIOD_US: what surrounds a program besides memory and descriptors, set to values that nobody has by chance.
 *
 * Resource limits; scheduling class, priority, nice value, CPUs, I/O priority and timer slack of each thread; names of
 * process and threads; umask; working directory; what its own files in /proc say of it; prctl(2) and personality(2).
 * Each step looks at all of it again: what differs from the first look is named and ends the program. A line a step,
 * with a checksum of all that is the same in every run. */
#include "victim.h"
#include <fcntl.h>
#include <linux/ioprio.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static const struct rlimit limits[] = {
    [RLIMIT_CPU] = {5000, 6000},          [RLIMIT_FSIZE] = {1 << 30, 1l << 31}, [RLIMIT_DATA] = {1l << 32, 1l << 33},
    [RLIMIT_STACK] = {16 << 20, 32 << 20}, [RLIMIT_CORE] = {12345, 23456},      [RLIMIT_RSS] = {1l << 33, RLIM_INFINITY},
    [RLIMIT_NPROC] = {5000, 6000},        [RLIMIT_NOFILE] = {200, 300},         [RLIMIT_MEMLOCK] = {100000, 200000},
    [RLIMIT_AS] = {1l << 34, 1l << 35},   [RLIMIT_LOCKS] = {77, 88},            [RLIMIT_SIGPENDING] = {500, 600},
    [RLIMIT_MSGQUEUE] = {1000, 2000},     [RLIMIT_NICE] = {25, 30},             [RLIMIT_RTPRIO] = {5, 10},
    [RLIMIT_RTTIME] = {300000, 400000},
};

/* struct sched_attr (sched_setattr(2)) in its first published size. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

static struct thread {
    const char *name;
    struct attributes attributes;
    int io_class, io_level;
    unsigned long slack;
    pid_t tid;
} threads[] = {
    /* Parentheses and spaces in a name: whoever reads /proc/PID/stat has to mind them. */
    {"main) R 1 (2", {.policy = SCHED_BATCH, .nice = 5}, IOPRIO_CLASS_BE, 6, 70000, 0},
    {"idle", {.policy = SCHED_IDLE}, IOPRIO_CLASS_IDLE, 0, 60000, 0},
    {"nice", {.policy = SCHED_OTHER, .nice = 12}, IOPRIO_CLASS_BE, 2, 80000, 0},
    {"eager", {.policy = SCHED_OTHER, .nice = -3, .flags = 1 /* SCHED_FLAG_RESET_ON_FORK */}, IOPRIO_CLASS_RT, 3, 90000, 0},
    {"fifo", {.policy = SCHED_FIFO, .priority = 3}, IOPRIO_CLASS_NONE, 0, 100000, 0},
    {"robin", {.policy = SCHED_RR, .priority = 4}, IOPRIO_CLASS_NONE, 0, 50000, 0},
};
enum { THREADS = sizeof threads / sizeof *threads, SHOWN = 1 << 16 };

static pthread_barrier_t ready;

static void become(struct thread *me)
{
    me->tid = syscall(SYS_gettid);
    me->attributes.size = sizeof me->attributes;
    CHECK(prctl(PR_SET_NAME, me->name) == 0 && prctl(PR_SET_TIMERSLACK, me->slack) == 0);
    CHECK(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(me->io_class, me->io_level)) == 0);
    cpu_set_t last;
    CPU_ZERO(&last);
    CPU_SET(sysconf(_SC_NPROCESSORS_ONLN) - 1, &last);
    if (me == threads + 2)
        CHECK(sched_setaffinity(0, sizeof last, &last) == 0);
    if (syscall(SYS_sched_setattr, 0, &me->attributes, 0) == 0)
        return;
    /* Not every container may have real-time threads: said, and the test counts it. */
    CHECK(errno == EPERM && me->attributes.priority);
    say(2, "no real-time scheduling here\n");
}

static void *stay(void *me)
{
    become(me);
    pthread_barrier_wait(&ready);
    for (;;)
        pause();
    return NULL;
}

static void set_up(void)
{
    CHECK(mkdir("in here", 0777) == 0 || errno == EEXIST);
    CHECK(chdir("in here") == 0);
    umask(0137);
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    write_all(fd, "321", 3), close(fd);
    fd = open("/proc/self/coredump_filter", O_WRONLY);
    write_all(fd, "0x17", 4), close(fd);
    CHECK(personality(ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS) >= 0);
    pthread_barrier_init(&ready, NULL, THREADS);
    for (int i = 1; i < THREADS; i++) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, stay, threads + i) == 0);
    }
    become(threads);
    pthread_barrier_wait(&ready);
    for (int i = 0; i < (int)(sizeof limits / sizeof *limits); i++) {
        struct rlimit limit, wanted = limits[i];
        CHECK(getrlimit(i, &limit) == 0);
        /* Not everybody may raise a hard limit, root in a container for one. */
        wanted.rlim_max = limit.rlim_max < wanted.rlim_max ? limit.rlim_max : wanted.rlim_max;
        wanted.rlim_cur = wanted.rlim_max < wanted.rlim_cur ? wanted.rlim_max : wanted.rlim_cur;
        if (setrlimit(i, &wanted) != 0)
            fail("limit %d", i);
    }
}

static char shown[SHOWN];
static size_t length;

__attribute__((format(printf, 1, 2))) static void show(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    length += vsnprintf(shown + length, SHOWN - length, format, args);
    va_end(args);
    CHECK(length < SHOWN);
}

static void show_file(const char *name)
{
    char bytes[8192];
    int fd = open(name, O_RDONLY);
    if (fd < 0)
        fail("%s", name);
    ssize_t n = read(fd, bytes, sizeof bytes);
    CHECK(n >= 0 && close(fd) == 0);
    show("%s:", name);
    /* Zeros end arguments and variables. */
    for (ssize_t i = 0; i < n; i++)
        show(bytes[i] >= ' ' && bytes[i] <= '~' ? "%c" : "\\%02x", (unsigned char)bytes[i]);
    show("\n");
}

/* What every run shows alike. */
static void show_common(long step)
{
    for (int i = 0; i < (int)(sizeof limits / sizeof *limits); i++) {
        struct rlimit limit;
        CHECK(getrlimit(i, &limit) == 0);
        show("limit %d: %lu %lu\n", i, limit.rlim_cur, limit.rlim_max);
    }
    for (int i = 0; i < THREADS; i++) {
        struct attributes a = {0};
        cpu_set_t cpus;
        char path[64];
        pid_t tid = threads[i].tid;
        CHECK(syscall(SYS_sched_getattr, tid, &a, sizeof a, 0) == 0);
        CHECK(sched_getaffinity(tid, sizeof cpus, &cpus) == 0);
        show("thread %d: policy %u nice %d priority %u flags %lx io %lx cpus %lx\n", i, a.policy, a.nice, a.priority, a.flags,
             syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid), ((unsigned long *)&cpus)[0]);
        show("nice by getpriority: %d\n", getpriority(PRIO_PROCESS, tid));
        snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
        int fd = open(path, O_RDONLY);
        char name[17] = "";
        CHECK(fd >= 0 && read(fd, name, 16) > 0 && close(fd) == 0);
        show("name %s", name);
    }
    mode_t mask = umask(0137);
    umask(mask);
    struct stat stat;
    char made[32];
    snprintf(made, sizeof made, "made%ld", step);
    /* A run that was killed after its last checkpoint has been here before. */
    CHECK((mkdir(made, 0777) == 0 || errno == EEXIST) && lstat(made, &stat) == 0);
    char *cwd = getcwd(NULL, 0);
    show("umask %o, a new directory %o, in %s\n", mask, stat.st_mode, strrchr(cwd, '/'));
    free(cwd);
    show("slack %d, personality %x\n", prctl(PR_GET_TIMERSLACK), personality(0xffffffff));
    show_file("/proc/self/oom_score_adj");
    show_file("/proc/self/coredump_filter");
    show_file("/proc/self/cmdline");
}

/* What is the program's own, and the same for as long as it lives. */
static void show_own(const char *arguments)
{
    show_file("/proc/self/environ");
    show_file("/proc/self/auxv");
    char path[4096] = "";
    CHECK(readlink("/proc/self/exe", path, sizeof path - 1) > 0);
    show("exe %s, started as %s, arguments at %p\n", path, (char *)getauxval(AT_EXECFN), (void *)arguments);
    char *cwd = getcwd(NULL, 0);
    show("cwd %s\n", cwd);
    free(cwd);
}

int main(int argc, char **argv)
{
    static char first[SHOWN];
    long steps = number(argc, argv, 1, 300), period = number(argc, argv, 2, 3000);
    /* As daemons do that show their state in the list of processes. */
    memcpy(strrchr(argv[0], '/') + 1, "TITLE", 5);
    set_up();
    for (long step = 1; step <= steps; step++) {
        uint64_t sum = 0;
        hold_at(step, steps);
        length = 0;
        show_common(step);
        size_t common = length;
        show_own(argv[0]);
        if (step == 1)
            memcpy(first, shown, length + 1);
        size_t at = 0, line = 0;
        while (first[at] && first[at] == shown[at])
            if (first[at++] == '\n')
                line = at;
        if (first[at] != shown[at])
            fail("step %ld: %.*s and not %.*s", step, (int)strcspn(shown + line, "\n"), shown + line,
                 (int)strcspn(first + line, "\n"), first + line);
        for (size_t i = 0; i < common; i++)
            sum = mix(sum, (unsigned char)shown[i]);
        if (step == 1)
            write_all(1, shown, common);
        say(1, "%ld %016lx\n", step, sum);
        sleep_us(period);
    }
    return 0;
}
