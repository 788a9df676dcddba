/* taskstate CASE STEPS PERIOD_US: state of tasks that prctl(2) and its kin set, to values that nobody has by chance.
 *
 * Each step looks at all of it from inside, and prints it with a checksum of all steps so far; what a step sees that the
 * first did not see ends the program with both. What a kernel or a container does not allow is said to standard error
 * ("cannot: …"), the same way in every run. */
#include "victim.h"
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>

static char shown[8192];
static size_t length;

__attribute__((format(printf, 1, 2))) static void show(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    length += vsnprintf(shown + length, sizeof shown - length, format, args);
    va_end(args);
    CHECK(length < sizeof shown);
}

/* Sets what may not be allowed here. */
static void may(const char *what, long result)
{
    if (result != 0)
        say(2, "cannot: %s (%s)\n", what, strerror(errno));
}

static void show_status(pid_t tid, const char *field)
{
    char path[64], text[8192] = "", *rest = NULL;
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    /* By one read: a restart between two would go on at the same byte of another text. */
    int status = open(path, O_RDONLY);
    CHECK(status >= 0 && read(status, text, sizeof text - 1) > 0 && close(status) == 0);
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        if (strncmp(line, field, strlen(field)) == 0)
            show("%s\n", line);
}

/* --- prctl: every thread and the process ------------------------------------------------------------------------- */

enum { THREADS = 3 };
static pthread_barrier_t begin, end;
static char of_thread[THREADS][1024];

static const struct own {
    int death, securebits, machine_check, slack;
    const char *name;
} own[THREADS] = {
    {SIGURG, 0, PR_MCE_KILL_EARLY, 70001, "first (1) R"},
    {37 /* a real-time one */, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP_LOCKED, PR_MCE_KILL_LATE, 80001, "second"},
    {0, SECBIT_KEEP_CAPS | SECBIT_NO_CAP_AMBIENT_RAISE, PR_MCE_KILL_DEFAULT, 90001, "third"},
};

static void set_own(int i)
{
    const struct own *mine = own + i;
    CHECK(prctl(PR_SET_NAME, mine->name) == 0);
    CHECK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, mine->machine_check, 0, 0) == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, mine->slack) == 0);
    CHECK(prctl(PR_SET_SECUREBITS, mine->securebits) == 0);
    may("PR_SET_IO_FLUSHER", i == 1 ? prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) : 0);
    may("PR_SET_SPECULATION_CTRL", i == 1 ? prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0) : 0);
    may("PR_SET_SPECULATION_CTRL", i == 2 ? prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_FORCE_DISABLE, 0, 0) : 0);
    if (i == 2)
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_PDEATHSIG, mine->death) == 0);
}

static void look_own(int i)
{
    int death = -1;
    char name[17] = "";
    CHECK(prctl(PR_GET_PDEATHSIG, &death) == 0 && prctl(PR_GET_NAME, name) == 0);
    snprintf(of_thread[i], sizeof of_thread[i],
             "thread %d: name %s, parent's death %d, securebits %x, keep caps %d, machine check %d, slack %d, new privileges %d, "
             "speculation %d %d, flusher %d\n",
             i, name, death, prctl(PR_GET_SECUREBITS), prctl(PR_GET_KEEPCAPS), prctl(PR_MCE_KILL_GET, 0, 0, 0, 0),
             prctl(PR_GET_TIMERSLACK), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
             prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0),
             prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_INDIRECT_BRANCH, 0, 0, 0), prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0));
}

static void *stay(void *number)
{
    set_own((long)number);
    for (;;) {
        pthread_barrier_wait(&begin);
        look_own((long)number);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void set_controls(void)
{
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    may("PR_SET_THP_DISABLE", prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    may("PR_SET_MEMORY_MERGE", prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0));
    pthread_barrier_init(&begin, NULL, THREADS);
    pthread_barrier_init(&end, NULL, THREADS);
    for (long i = 1; i < THREADS; i++) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, stay, (void *)i) == 0);
    }
    set_own(0);
    may("MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED", syscall(SYS_membarrier, 1 << 2, 0));
    may("MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED", syscall(SYS_membarrier, 1 << 4, 0));
    CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
}

static void look_controls(void)
{
    int subreaper = -1;
    pthread_barrier_wait(&begin);
    look_own(0);
    pthread_barrier_wait(&end);
    for (int i = 0; i < THREADS; i++)
        show("%s", of_thread[i]);
    CHECK(prctl(PR_GET_CHILD_SUBREAPER, &subreaper) == 0);
    show("dumpable %d, subreaper %d, huge pages off %d, merged %d\n", prctl(PR_GET_DUMPABLE), subreaper,
         prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), prctl(68 /* PR_GET_MEMORY_MERGE */, 0, 0, 0, 0));
    show("barriers registered %lx, private %ld, of rseq %ld\n", syscall(SYS_membarrier, 1 << 9 /* GET_REGISTRATIONS */, 0),
         syscall(SYS_membarrier, 1 << 3, 0), syscall(SYS_membarrier, 1 << 7, 0));
}

/* --- ids: threads whose credentials differ, without the C library that would keep them alike --------------------------- */

/* All that the thread may have, as its effective set; `inheritable` in the low word. */
static void have_all(uint32_t inheritable)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    CHECK(syscall(SYS_capget, &head, sets) == 0);
    for (int i = 0; i < 2; i++)
        sets[i].effective = sets[i].permitted;
    sets[0].inheritable |= inheritable;
    CHECK(syscall(SYS_capset, &head, sets) == 0);
}

static void inherit_what_is_no_longer_bounded(struct __user_cap_data_struct *low)
{
    low->inheritable = 1 << CAP_FOWNER;
    have_all(low->inheritable);
    CHECK(prctl(PR_CAPBSET_DROP, CAP_FOWNER, 0, 0, 0) == 0);
}

/* Of ids that the thread has nowhere else, with the right to have them, which it then gives up. */
static void have_foreign_file_system_ids(void)
{
    have_all(0);
    syscall(SYS_setfsgid, 3334);
    syscall(SYS_setfsuid, 3333);
    CHECK(syscall(SYS_setfsgid, -1) == 3334 && syscall(SYS_setfsuid, -1) == 3333);
}

static void set_ids(int i)
{
    gid_t groups[] = {100 + i, 200 + i};
    unsigned long keep = i == 1 ? 1ul << CAP_NET_RAW : 0;
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{keep, keep, keep}, {0, 0, 0}};
    CHECK(prctl(PR_SET_NAME, own[i].name) == 0);
    if (i == 0)
        return;
    CHECK(syscall(SYS_setgroups, 2, groups) == 0 && prctl(PR_SET_KEEPCAPS, 1) == 0);
    if (i == 2)
        inherit_what_is_no_longer_bounded(&sets[0]);
    CHECK(syscall(SYS_setresgid, 1000 + i, 1010 + i, 1020 + i) == 0 && syscall(SYS_setresuid, 2000 + i, 2010 + i, 2020 + i) == 0);
    if (i == 2)
        have_foreign_file_system_ids();
    CHECK(syscall(SYS_capset, &head, sets) == 0);
    if (i == 1)
        CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0) == 0);
    /* What a change of ids takes away. */
    CHECK(prctl(PR_SET_PDEATHSIG, SIGURG) == 0);
}

static void look_ids(int i)
{
    uid_t u[3];
    gid_t g[3], groups[8];
    int death, n = syscall(SYS_getgroups, 8, groups);
    CHECK(syscall(SYS_getresuid, u, u + 1, u + 2) == 0 && syscall(SYS_getresgid, g, g + 1, g + 2) == 0 && n >= 0);
    CHECK(prctl(PR_GET_PDEATHSIG, &death) == 0);
    snprintf(of_thread[i], sizeof of_thread[i], "thread %d: ids %d %d %d, %d %d %d, groups %d: %d, ambient %d, death %d\n", i, u[0],
             u[1], u[2], g[0], g[1], g[2], n, n ? (int)groups[n - 1] : 0,
             prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_RAW, 0, 0), death);
}

static void *stay_other(void *number)
{
    set_ids((long)number);
    for (;;) {
        pthread_barrier_wait(&begin);
        look_ids((long)number);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static pid_t other[THREADS];

static void *told(void *number)
{
    other[(long)number] = syscall(SYS_gettid);
    return stay_other(number);
}

static void set_all_ids(void)
{
    pthread_barrier_init(&begin, NULL, THREADS);
    pthread_barrier_init(&end, NULL, THREADS);
    for (long i = 1; i < THREADS; i++) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, told, (void *)i) == 0);
    }
    other[0] = getpid();
    set_ids(0);
}

static void look_all_ids(void)
{
    pthread_barrier_wait(&begin);
    look_ids(0);
    pthread_barrier_wait(&end);
    for (int i = 0; i < THREADS; i++) {
        show("%s", of_thread[i]);
        for (const char *const *field = (const char *const[]){"Uid", "Gid", "Cap", NULL}; *field; field++)
            show_status(other[i], *field);
    }
    show("dumpable %d\n", prctl(PR_GET_DUMPABLE));
}

/* --- death: a child whose parent dies in the last step ------------------------------------------------------------------ */

static int to_parent[2], from_parent[2];

static volatile sig_atomic_t is_told;

static void on_death(int signal)
{
    say(1, "told by signal %d\n", signal);
    is_told = 1;
}

/* The grandchild prints after its parent's death, when it has been told, and only then the program ends. */
static void set_death(void)
{
    CHECK(pipe(to_parent) == 0 && pipe(from_parent) == 0);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char c;
        if (fork() == 0) {
            signal(SIGUSR2, on_death);
            CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0);
            write_all(to_parent[1], "r", 1);
            /* It has another parent a moment before it is told. */
            for (pid_t parent = getppid(); getppid() == parent || !is_told;)
                sleep_us(1000);
            _exit(0);
        }
        while (read(from_parent[0], &c, 1) < 0 && errno == EINTR)
            ;
        _exit(7);
    }
    char c;
    CHECK(read(to_parent[0], &c, 1) == 1);
}

static void end_death(void)
{
    int status;
    write_all(from_parent[1], "x", 1);
    for (int ended = 0; ended < 2; ended++)
        CHECK(wait(&status) > 0);
    CHECK(wait(&status) < 0 && errno == ECHILD);
    say(1, "both have ended here\n");
}

static void look_death(void)
{
    show("subreaper\n");
}

/* --- ends: children whose end tells their parent something else than SIGCHLD, or nothing (clone(2)) ----------------------- */

enum { ENDS = 5 };
static const struct end {
    int signal, code; /* code: it has ended */
} ends[ENDS] = {{SIGUSR1, 0}, {0, 0}, {SIGUSR2, 41}, {0, 42}, {SIGCHLD, 43}};
static pid_t children[ENDS];

static void set_ends(void)
{
    sigset_t blocked;
    siginfo_t info;
    sigfillset(&blocked);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    for (int i = 0; i < ENDS; i++) {
        children[i] = syscall(SYS_clone, ends[i].signal, 0, 0, 0, 0);
        CHECK(children[i] >= 0);
        if (children[i] == 0 && ends[i].code)
            _exit(ends[i].code);
        while (children[i] == 0)
            pause();
        if (ends[i].code)
            CHECK(waitid(P_PID, children[i], &info, WEXITED | WNOWAIT | __WALL) == 0);
    }
    /* Of the signals that have come, the next steps see nothing. */
    struct timespec at_once = {0, 0};
    while (sigtimedwait(&blocked, NULL, &at_once) > 0)
        ;
}

static void look_ends(void)
{
    for (int i = 0; i < ENDS; i++)
        for (int kind = 0; kind < 2; kind++) {
            siginfo_t info = {.si_status = 0};
            int found = waitid(P_PID, children[i], &info, WEXITED | WNOWAIT | WNOHANG | (kind ? __WCLONE : 0));
            show("child %d, %s clones: %d, status %d\n", i, kind ? "of" : "without", found, info.si_status);
        }
}

/* Those that live are killed; what that tells, and how each has ended. */
static void end_ends(void)
{
    sigset_t all;
    sigfillset(&all);
    struct timespec at_once = {0, 0};
    for (int i = 0; i < ENDS; i++) {
        int status = 0;
        siginfo_t info;
        if (!ends[i].code)
            CHECK(kill(children[i], SIGKILL) == 0);
        CHECK(waitid(P_PID, children[i], &info, WEXITED | WNOWAIT | __WALL) == 0);
        int told = sigtimedwait(&all, &info, &at_once);
        CHECK(waitpid(children[i], &status, __WALL) == children[i]);
        say(1, "child %d: told by %d, status %x\n", i, told, status);
    }
}

/* --- timers: of timer_create(2) ------------------------------------------------------------------------------------------ */

/* Of each: who it is, whether it has rung, and no ring too early. The last step waits until each armed one has rung often. */
enum { TIMERS = 15, FAR = 5000, OFTEN = 20, ALREADY = 3 };
/* Of these it is counted how often they had rung. */
enum { COUNTED = 8, UNCOUNTED = 11 };
/* These were set anew, or deleted, while their signals waited, which Linux then drops (6.13) or delivers. */
enum { LATER = UNCOUNTED, LATER_AGAIN, NEVER, DELETED };
static volatile struct {
    long rings;
    uint64_t last;
    int wrong;
} rung[TIMERS];
static int timer[TIMERS];
static pid_t ringer;
/* Whether it matters how often a timer had rung when its signal was taken (timer_getoverrun(2)). */
static int is_counted;
/* When timer 5 was armed, the last step was, and how long steps took that took long: a restart may have been in them. */
static uint64_t armed, last_step, long_steps;
enum { LONG = 6000000, PERIOD = 2000000 };

/* The last one has the same as another. */
static int signal_of(int i)
{
    return SIGRTMIN + (i == 10 ? 8 : i);
}

static void on_ring(int signal, siginfo_t *info, void *context)
{
    (void)context;
    long i = info->si_value.sival_int;
    CHECK(info->si_code == SI_TIMER && i >= 0 && i < TIMERS);
    rung[i].rings += 1 + info->si_overrun;
    rung[i].wrong += signal != signal_of(i) || info->si_timerid != timer[i] ||
                     (i == 1 || i == 9) != ((pid_t)syscall(SYS_gettid) == ringer);
}

static void *ring(void *unused)
{
    sigset_t set;
    /* Only its own. */
    sigfillset(&set);
    sigdelset(&set, SIGRTMIN + 1);
    sigdelset(&set, SIGRTMIN + 9);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    __atomic_store_n(&ringer, syscall(SYS_gettid), __ATOMIC_RELEASE);
    for (;;)
        pause();
    return unused;
}

static int make_timer(int i, clockid_t clock, int notify)
{
    struct {
        union sigval value;
        int signal, notify, thread, rest[11];
    } event = {.value.sival_int = i, .signal = signal_of(i), .notify = notify, .thread = ringer};
    CHECK(syscall(SYS_timer_create, clock, &event, timer + i) == 0);
    return timer[i];
}

static void arm(int i, int flags, uint64_t first, uint64_t interval)
{
    struct itimerspec spec = {{interval / 1000000000, interval % 1000000000}, {first / 1000000000, first % 1000000000}};
    CHECK(syscall(SYS_timer_settime, timer[i], flags, &spec, NULL) == 0);
}

/* Without eBPF nobody can tell the last ones from such that have rung. */
static int last_timer(void)
{
    return is_counted ? DELETED : LATER;
}

static void set_anew(void)
{
    sigset_t blocked, waiting;
    sigemptyset(&blocked);
    for (int i = LATER; i <= DELETED; i++)
        sigaddset(&blocked, signal_of(i));
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    for (int i = LATER; i <= last_timer(); i++) {
        make_timer(i, CLOCK_MONOTONIC, SIGEV_SIGNAL);
        arm(i, 0, 1, i == LATER_AGAIN ? 1000000000000 : 0);
        do
            CHECK(sigpending(&waiting) == 0);
        while (!sigismember(&waiting, signal_of(i)));
    }
    arm(LATER, 0, 900000000000, 0);
    if (!is_counted)
        return;
    arm(LATER_AGAIN, 0, 900000000000, 1000000000000);
    arm(NEVER, 0, 0, 0);
    CHECK(syscall(SYS_timer_delete, timer[DELETED]) == 0);
}

static void set_timers(void)
{
    struct sigaction action = {.sa_sigaction = on_ring, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigset_t blocked;
    sigemptyset(&blocked);
    for (int i = 0; i < TIMERS; i++)
        CHECK(sigaction(SIGRTMIN + i, &action, NULL) == 0);
    sigaddset(&blocked, SIGRTMIN + 1);
    sigaddset(&blocked, SIGRTMIN + 9);
    sigaddset(&blocked, SIGRTMIN + 5);
    sigaddset(&blocked, SIGRTMIN + 6);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    pthread_t one;
    CHECK(pthread_create(&one, NULL, ring, NULL) == 0);
    while (!__atomic_load_n(&ringer, __ATOMIC_ACQUIRE))
        sleep_us(1000);
    make_timer(0, CLOCK_MONOTONIC, SIGEV_SIGNAL);
    make_timer(1, CLOCK_REALTIME, SIGEV_THREAD_ID);
    /* A number that is free again, and one far away. */
    CHECK(syscall(SYS_timer_delete, make_timer(2, CLOCK_MONOTONIC, SIGEV_NONE)) == 0);
    make_timer(2, CLOCK_MONOTONIC, SIGEV_NONE);
    for (int i = 0; i < FAR; i++)
        CHECK(syscall(SYS_timer_delete, make_timer(3, CLOCK_MONOTONIC, SIGEV_NONE)) == 0);
    make_timer(3, CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL);
    make_timer(4, CLOCK_BOOTTIME, SIGEV_SIGNAL);
    make_timer(5, CLOCK_MONOTONIC, SIGEV_SIGNAL);
    make_timer(6, CLOCK_MONOTONIC, SIGEV_SIGNAL);
    make_timer(7, CLOCK_MONOTONIC, SIGEV_SIGNAL);
    arm(0, TIMER_ABSTIME, now_ns() + 5000000, 7000000);
    arm(1, 0, 3000000, 11000000);
    arm(2, 0, 1000000000000, 1000000000);
    arm(3, 0, 3000000, 3000000);
    arm(4, 0, 900000000000, 0);
    /* Two whose signals are blocked until the end: one rings again and again, one has rung. */
    armed = last_step = now_ns();
    arm(5, 0, 1000000, PERIOD);
    arm(6, 0, 1000000, 0);
    /* 7 is never armed. */
    /* Some that have rung when they are armed, and ring again in minutes. */
    make_timer(8, CLOCK_REALTIME, SIGEV_SIGNAL);
    make_timer(9, CLOCK_REALTIME, SIGEV_THREAD_ID);
    make_timer(10, CLOCK_REALTIME, SIGEV_SIGNAL);
    struct timespec now;
    CHECK(clock_gettime(CLOCK_REALTIME, &now) == 0);
    for (int i = COUNTED; i < UNCOUNTED; i++)
        arm(i, TIMER_ABSTIME, (now.tv_sec - ALREADY * 1000 - 500) * 1000000000ull, 1000000000000);
    for (int i = COUNTED; i < UNCOUNTED; i++)
        while (rung[i].rings != ALREADY + 1)
            sleep_us(1000);
    sigset_t waiting;
    do
        CHECK(sigpending(&waiting) == 0);
    while (!sigismember(&waiting, SIGRTMIN + 5) || !sigismember(&waiting, SIGRTMIN + 6));
    set_anew();
}

static void look_timers(void)
{
    sigset_t waiting;
    CHECK(sigpending(&waiting) == 0);
    for (int i = 0; i <= last_timer(); i++) {
        struct itimerspec spec;
        if (syscall(SYS_timer_gettime, timer[i], &spec) != 0) {
            show("timer %d is not there\n", i);
            continue;
        }
        uint64_t interval = spec.it_interval.tv_sec * 1000000000ull + spec.it_interval.tv_nsec;
        uint64_t left = spec.it_value.tv_sec * 1000000000ull + spec.it_value.tv_nsec;
        /* Far ones: how many minutes are left is the same for as long as a run takes. */
        show("timer %d is %d: interval %lu, armed %d, far %d, waiting %d, wrong %d\n", i, timer[i], interval, left != 0,
             left > 600000000000ull, i >= 5 && i < LATER && sigismember(&waiting, SIGRTMIN + i), rung[i].wrong);
    }
    if (is_counted)
        for (int i = COUNTED; i < UNCOUNTED; i++)
            show("timer %d had rung %ld times more\n", i, syscall(SYS_timer_getoverrun, timer[i]));
    uint64_t now = now_ns();
    if (last_step && now - last_step > LONG)
        long_steps += now - last_step;
    last_step = now;
    for (volatile int i = 0; i < 200000; i++)
        ;
}

static void end_timers(void)
{
    sigset_t blocked;
    sigemptyset(&blocked);
    CHECK(sigaddset(&blocked, SIGRTMIN + 5) == 0 && sigaddset(&blocked, SIGRTMIN + 6) == 0);
    for (int i = LATER; i <= DELETED; i++)
        sigaddset(&blocked, signal_of(i));
    CHECK(rung[5].rings == 0 && rung[6].rings == 0);
    uint64_t before = now_ns();
    CHECK(sigprocmask(SIG_UNBLOCK, &blocked, NULL) == 0);
    /* All that it has rung since it was armed, but for the time that a restart takes. */
    long rings = rung[5].rings, most = (now_ns() - armed) / PERIOD + 1, least = (before - armed - long_steps) / PERIOD - 2;
    if (is_counted && (rings < least || rings > most))
        fail("%ld rings and not %ld to %ld", rings, least, most);
    long since[TIMERS];
    for (int i = 0; i < TIMERS; i++)
        since[i] = rung[i].rings;
    for (int i = 0; i < TIMERS; i++)
        while ((i == 0 || i == 1 || i == 3 || i == 5) && rung[i].rings < since[i] + OFTEN)
            for (volatile int j = 0; j < 10000; j++)
                ;
    say(1, "set anew %ld %ld %ld %ld\n", rung[LATER].rings, rung[LATER_AGAIN].rings, rung[NEVER].rings, rung[DELETED].rings);
    say(1, "never %ld %ld %ld, once %ld, wrong %d\n", rung[2].rings, rung[4].rings, rung[7].rings, rung[6].rings,
        rung[0].wrong + rung[1].wrong + rung[3].wrong + rung[5].wrong + rung[6].wrong);
}

static void set_counted_timers(void)
{
    is_counted = 1;
    set_timers();
}

/* --- policy: from which nodes memory comes, per thread ------------------------------------------------------------------- */

static void set_policy(int i)
{
    unsigned long node = 1;
    if (i != 2)
        may("set_mempolicy", syscall(SYS_set_mempolicy, i == 0 ? 3 /* MPOL_INTERLEAVE */ : 2 /* MPOL_BIND */ | 1 << 15, &node, 65));
}

static void look_policy(int i)
{
    int mode = -1;
    unsigned long nodes[16] = {0};
    syscall(SYS_get_mempolicy, &mode, nodes, 1024, 0, 0);
    snprintf(of_thread[i], sizeof of_thread[i], "thread %d: policy %x of nodes %lx\n", i, mode, nodes[0]);
}

static void *stay_near(void *number)
{
    set_policy((long)number);
    for (;;) {
        pthread_barrier_wait(&begin);
        look_policy((long)number);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void set_policies(void)
{
    pthread_barrier_init(&begin, NULL, THREADS);
    pthread_barrier_init(&end, NULL, THREADS);
    for (long i = 1; i < THREADS; i++) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, stay_near, (void *)i) == 0);
    }
    set_policy(0);
}

static void look_policies(void)
{
    pthread_barrier_wait(&begin);
    look_policy(0);
    pthread_barrier_wait(&end);
    for (int i = 0; i < THREADS; i++)
        show("%s", of_thread[i]);
}

/* --- denials: the time-stamp counter and CPUID of one thread each, new executable memory, huge pages unless advised --------- */

/* No call of the C library that may look at a clock. */
static void *stay_denied(void *number)
{
    long i = (long)number;
    may("PR_SET_TSC", i == 1 ? prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0) : 0);
    may("ARCH_SET_CPUID", i == 2 ? syscall(SYS_arch_prctl, 0x1012 /* ARCH_SET_CPUID */, 0) : 0);
    for (;;) {
        int counter = -1;
        pthread_barrier_wait(&begin);
        CHECK(prctl(PR_GET_TSC, &counter) == 0);
        snprintf(of_thread[i], sizeof of_thread[i], "thread %ld: counter %d, cpuid %ld\n", i, counter,
                 syscall(SYS_arch_prctl, 0x1011 /* ARCH_GET_CPUID */, 0));
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void set_denials(void)
{
    pthread_barrier_init(&begin, NULL, THREADS);
    pthread_barrier_init(&end, NULL, THREADS);
    for (long i = 1; i < THREADS; i++) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, stay_denied, (void *)i) == 0);
    }
    may("ARCH_REQ_XCOMP_PERM", syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18));
    may("PR_SET_MDWE", prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0));
    may("PR_SET_THP_DISABLE", prctl(PR_SET_THP_DISABLE, 1, 2 /* PR_THP_DISABLE_EXCEPT_ADVISED */, 0, 0));
}

static void look_denials(void)
{
    pthread_barrier_wait(&begin);
    pthread_barrier_wait(&end);
    for (int i = 1; i < THREADS; i++)
        show("%s", of_thread[i]);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    unsigned long components = 0;
    syscall(SYS_arch_prctl, 0x1022 /* ARCH_GET_XCOMP_PERM */, &components);
    show("components of registers %lx\n", components);
    show("no new executable memory %d, to execute: %d, huge pages off %d\n", prctl(66 /* PR_GET_MDWE */, 0, 0, 0, 0),
         mprotect(page, 4096, PROT_READ | PROT_EXEC), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    CHECK(munmap(page, 4096) == 0);
}

/* --- queued: signals that wait, many alike and mixed, for the process and for each thread; taken only at the end ------------ */

enum { ALIKE = 300 };

/* As rt_sigqueueinfo(2) takes it: a code and an errno that sigqueue(3) does not give. */
static void queue(pid_t thread, int signal, int value)
{
    siginfo_t info = {.si_signo = signal, .si_code = -60 - value % 5, .si_errno = value};
    info.si_pid = getpid(), info.si_uid = 12345, info.si_value.sival_ptr = (void *)(0x123456789000ul + value);
    CHECK((thread ? syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, signal, &info)
                  : syscall(SYS_rt_sigqueueinfo, getpid(), signal, &info)) == 0);
}

static void look_queued(int i)
{
    sigset_t waiting;
    unsigned long bits = 0;
    CHECK(sigpending(&waiting) == 0);
    memcpy(&bits, &waiting, sizeof bits);
    snprintf(of_thread[i], sizeof of_thread[i], "thread %d: waiting %lx\n", i, bits);
}

/* All that this thread gets, in the order in which the kernel gives it. */
static void take_queued(int i)
{
    siginfo_t info;
    sigset_t all;
    uint64_t sum = 0;
    long taken = 0;
    sigfillset(&all);
    for (; sigtimedwait(&all, &info, &(struct timespec){0}) > 0; taken++) {
        sum = mix(sum, info.si_signo), sum = mix(sum, info.si_code), sum = mix(sum, info.si_errno);
        sum = mix(sum, info.si_pid ? info.si_pid == getpid() : 2), sum = mix(sum, info.si_uid), sum = mix(sum, (uintptr_t)info.si_value.sival_ptr);
    }
    snprintf(of_thread[i], sizeof of_thread[i], "thread %d has taken %ld: %016lx\n", i, taken, sum);
}

static volatile int is_over;

static void *stay_queued(void *number)
{
    long i = (long)number;
    for (int value = 0; value < ALIKE; value++)
        queue(syscall(SYS_gettid), value % 3 ? SIGRTMIN + 4 + i : SIGRTMAX - value % 7, value);
    queue(syscall(SYS_gettid), SIGUSR1, 7);
    for (;;) {
        pthread_barrier_wait(&begin);
        if (is_over)
            take_queued(i);
        else
            look_queued(i);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void set_queued(void)
{
    sigset_t all;
    sigfillset(&all);
    CHECK(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
    pthread_barrier_init(&begin, NULL, THREADS);
    pthread_barrier_init(&end, NULL, THREADS);
    for (long i = 1; i < THREADS; i++) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, stay_queued, (void *)i) == 0);
    }
    for (int value = 0; value < ALIKE; value++)
        queue(0, value % 2 ? SIGRTMIN + 2 : SIGRTMIN + value % 5, value);
    queue(0, SIGHUP, 1);
    queue(getpid(), SIGTERM, 2);
    queue(0, SIGTRAP, 3);
    /* Of a child that has ended, and of the kernel's own sending. */
    siginfo_t info;
    sigset_t waiting;
    struct itimerval at_once = {{0, 0}, {0, 1}};
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(33);
    CHECK(waitid(P_PID, child, &info, WEXITED) == 0 && setitimer(ITIMER_REAL, &at_once, NULL) == 0);
    do
        CHECK(sigpending(&waiting) == 0);
    while (!sigismember(&waiting, SIGALRM) || !sigismember(&waiting, SIGCHLD));
    /* From here on there is room for no signal, and of one that comes only the number waits; nor is there for a descriptor. */
    struct rlimit most;
    int own = open("/proc/self/stat", O_RDONLY);
    CHECK(own >= 0 && dup2(own, 900) == 900 && close(own) == 0);
    for (const int *kind = (const int[]){RLIMIT_SIGPENDING, RLIMIT_NOFILE, -1}; *kind >= 0; kind++) {
        CHECK(getrlimit(*kind, &most) == 0);
        most.rlim_cur = *kind == RLIMIT_NOFILE ? 20 : 0;
        CHECK(setrlimit(*kind, &most) == 0);
    }
    CHECK(kill(getpid(), SIGQUIT) == 0 && syscall(SYS_tgkill, getpid(), getpid(), SIGURG) == 0);
}

static void look_all_queued(void)
{
    pthread_barrier_wait(&begin);
    look_queued(0);
    pthread_barrier_wait(&end);
    for (int i = 0; i < THREADS; i++)
        show("%s", of_thread[i]);
    for (const int *kind = (const int[]){RLIMIT_SIGPENDING, RLIMIT_NOFILE, -1}; *kind >= 0; kind++) {
        struct rlimit most;
        CHECK(getrlimit(*kind, &most) == 0);
        show("limit %d: %lu\n", *kind, most.rlim_cur);
    }
    char byte;
    CHECK(pread(900, &byte, 1, 0) == 1);
}

static void end_queued(void)
{
    /* First those of the process, lest the threads race for them. */
    take_queued(0);
    is_over = 1;
    pthread_barrier_wait(&begin);
    pthread_barrier_wait(&end);
    for (int i = 0; i < THREADS; i++)
        write_all(1, of_thread[i], strlen(of_thread[i]));
}

/* --- rest: personality of each thread, slots for futexes, system calls that are handed back to one thread ------------------- */

static volatile char selector; /* SYSCALL_DISPATCH_FILTER_ALLOW 0, …_BLOCK 1 */
static volatile long handed_back;

static void on_call(int signal)
{
    selector = 0;
    handed_back += signal == SIGSYS;
}

static void set_rest(int i)
{
    static const unsigned long bits[THREADS] = {ADDR_NO_RANDOMIZE, UNAME26 | STICKY_TIMEOUTS, 0};
    CHECK(personality(bits[i]) >= 0);
    if (i == 1)
        may("PR_SET_SYSCALL_USER_DISPATCH", prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector));
}

static void look_rest(int i)
{
    long before = handed_back;
    struct utsname kernel;
    if (i == 1) {
        selector = 1;
        syscall(SYS_getppid);
        selector = 0;
    }
    CHECK(uname(&kernel) == 0);
    snprintf(of_thread[i], sizeof of_thread[i], "thread %d: personality %x, an old kernel %d, handed back %ld\n", i,
             personality(0xffffffff), strncmp(kernel.release, "2.6.", 4) == 0, i == 1 ? handed_back - before : 0);
}

static void *stay_rest(void *number)
{
    set_rest((long)number);
    for (;;) {
        pthread_barrier_wait(&begin);
        look_rest((long)number);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void set_all_rest(void)
{
    pthread_barrier_init(&begin, NULL, THREADS);
    pthread_barrier_init(&end, NULL, THREADS);
    signal(SIGSYS, on_call);
    for (long i = 1; i < THREADS; i++) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, stay_rest, (void *)i) == 0);
    }
    may("PR_FUTEX_HASH", prctl(78 /* PR_FUTEX_HASH */, 1 /* PR_FUTEX_HASH_SET_SLOTS */, 128, 0, 0));
    set_rest(0);
}

static void look_all_rest(void)
{
    pthread_barrier_wait(&begin);
    look_rest(0);
    pthread_barrier_wait(&end);
    for (int i = 0; i < THREADS; i++)
        show("%s", of_thread[i]);
    show("slots %d\n", prctl(78, 2 /* PR_FUTEX_HASH_GET_SLOTS */, 0, 0, 0));
}

/* --- keyring: one session keyring for two threads, another for the third, and a child process that has the first ------------ */

enum { JOIN = 1, SETPERM = 5, DESCRIBE = 6, READ = 11, SESSION = -3 };

static long keyctl(int what, long a, long b, long c)
{
    return syscall(SYS_keyctl, what, a, b, c);
}

static int to_child[2], from_child[2];

static void look_keyring(char *line, size_t size)
{
    char is[256] = "";
    CHECK(keyctl(DESCRIBE, SESSION, (long)is, sizeof is - 1) > 0);
    snprintf(line, size, "%s, %ld bytes\n", is, keyctl(READ, SESSION, 0, 0));
}

static void *stay_keyring(void *number)
{
    if ((long)number == 2)
        CHECK(keyctl(JOIN, (long)"another one", 0, 0) > 0);
    for (;;) {
        pthread_barrier_wait(&begin);
        look_keyring(of_thread[(long)number], sizeof *of_thread);
        other[(long)number] = keyctl(0 /* KEYCTL_GET_KEYRING_ID */, SESSION, 0, 0);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void set_keyrings(void)
{
    pthread_barrier_init(&begin, NULL, THREADS);
    pthread_barrier_init(&end, NULL, THREADS);
    CHECK(pipe(to_child) == 0 && pipe(from_child) == 0);
    may("keyctl", keyctl(JOIN, (long)"mine; too", 0, 0) > 0 ? 0 : -1);
    CHECK(keyctl(SETPERM, SESSION, 0x3f030000, 0) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(to_child[1]);
        for (char c; read(to_child[0], &c, 1) == 1;) {
            int serial = keyctl(0, SESSION, 0, 0);
            write_all(from_child[1], &serial, sizeof serial);
        }
        _exit(0);
    }
    for (long i = 1; i < THREADS; i++) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, stay_keyring, (void *)i) == 0);
    }
}

static void look_keyrings(void)
{
    int serial = 0;
    /* Numbers are others after a restart, which may come between two looks. */
    for (int tries = 0; tries < 10 && (other[0] != serial || other[0] != other[1]); tries++) {
        pthread_barrier_wait(&begin);
        look_keyring(of_thread[0], sizeof *of_thread);
        other[0] = keyctl(0, SESSION, 0, 0);
        pthread_barrier_wait(&end);
        write_all(to_child[1], "?", 1);
        CHECK(read(from_child[0], &serial, sizeof serial) == sizeof serial);
    }
    for (int i = 0; i < THREADS; i++)
        show("thread %d: %s", i, of_thread[i]);
    show("shared %d, with the child %d, apart %d\n", other[0] == other[1], other[0] == serial, other[0] != other[2]);
}

static void end_keyrings(void)
{
    close(to_child[1]);
    CHECK(wait(NULL) > 0);
}

/* --- root: a child with a root directory of its own, and a grandchild with yet another ------------------------------------ */

static struct {
    int ask, answer;
} beneath[2];

/* Answers whenever it is asked what it sees from its root directory. */
static void stay_inside(int ask, int answer)
{
    struct stat top, above;
    char c, where[256];
    while (read(ask, &c, 1) == 1) {
        char who[64] = "", line[512];
        int named = open("/who", O_RDONLY);
        mode_t mask = umask(0);
        umask(mask);
        CHECK(named >= 0 && read(named, who, sizeof who - 1) > 0 && close(named) == 0);
        CHECK(stat("/", &top) == 0 && stat("/..", &above) == 0);
        if (!getcwd(where, sizeof where))
            snprintf(where, sizeof where, "%s", strerror(errno));
        int length = snprintf(line, sizeof line, "%s stands in %s, nothing above %d, /proc %d, umask %o", who, where,
                              top.st_ino == above.st_ino, access("/proc", F_OK), mask);
        write_all(answer, line, length);
    }
    _exit(0);
}

static void set_root(void)
{
    static const char *const who[] = {"roots/who", "roots/in/deeper/who"};
    int asks[2][2], answers[2][2];
    CHECK(mkdir("roots", 0755) == 0 && mkdir("roots/in", 0755) == 0 && mkdir("roots/in/deeper", 0755) == 0);
    for (int i = 0; i < 2; i++) {
        int file = open(who[i], O_CREAT | O_WRONLY, 0644);
        CHECK(file >= 0 && write(file, i ? "the second" : "the first", i ? 10 : 9) > 0 && close(file) == 0);
        CHECK(pipe(asks[i]) == 0 && pipe(answers[i]) == 0);
        beneath[i].ask = asks[i][1], beneath[i].answer = answers[i][0];
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (child)
        return;
    close(asks[0][1]), close(asks[1][1]);
    CHECK(chdir("roots/in") == 0 && chroot("..") == 0);
    umask(027);
    child = fork();
    CHECK(child >= 0);
    if (child)
        stay_inside(asks[0][0], answers[0][1]);
    /* It stands outside of its root directory. */
    CHECK(chroot("/in/deeper") == 0);
    umask(0);
    stay_inside(asks[1][0], answers[1][1]);
}

static void look_root(void)
{
    char line[512];
    for (int i = 0; i < 2; i++) {
        write_all(beneath[i].ask, "?", 1);
        ssize_t length = read(beneath[i].answer, line, sizeof line);
        CHECK(length > 0);
        show("%.*s\n", (int)length, line);
    }
}

static void end_root(void)
{
    close(beneath[0].ask), close(beneath[1].ask);
    CHECK(wait(NULL) > 0);
}

static const struct state {
    const char *name;
    void (*set)(void), (*look)(void), (*end)(void);
} states[] = {
    {"controls", set_controls, look_controls, NULL},
    {"ids", set_all_ids, look_all_ids, NULL},
    {"death", set_death, look_death, end_death},
    {"ends", set_ends, look_ends, end_ends},
    {"timers", set_timers, look_timers, end_timers},
    {"counted_timers", set_counted_timers, look_timers, end_timers},
    {"denials", set_denials, look_denials, NULL},
    {"queued", set_queued, look_all_queued, end_queued},
    {"policy", set_policies, look_policies, NULL},
    {"rest", set_all_rest, look_all_rest, NULL},
    {"root", set_root, look_root, end_root},
    {"keyring", set_keyrings, look_keyrings, end_keyrings},
};

int main(int argc, char **argv)
{
    static char first[sizeof shown];
    const struct state *state = states;
    long steps = number(argc, argv, 2, 300), period = number(argc, argv, 3, 3000);
    for (; state < states + sizeof states / sizeof *states; state++)
        if (argc > 1 && strcmp(state->name, argv[1]) == 0)
            break;
    CHECK(state < states + sizeof states / sizeof *states);
    state->set();
    for (long step = 1; step <= steps; step++) {
        hold_at(step, steps);
        length = 0;
        state->look();
        if (step == 1) {
            memcpy(first, shown, length + 1);
            write_all(1, shown, length);
        }
        if (strcmp(first, shown) != 0)
            fail("step %ld:\n%s and not\n%s", step, shown, first);
        say(1, "%ld\n", step);
        sleep_us(period);
    }
    if (state->end)
        state->end();
    return 0;
}
