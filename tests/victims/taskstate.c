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
#include <sys/prctl.h>
#include <sys/syscall.h>
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
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    FILE *status = fopen(path, "r");
    CHECK(status);
    while (fgets(line, sizeof line, status))
        if (strncmp(line, field, strlen(field)) == 0)
            show("%s", line);
    fclose(status);
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
}

/* --- ids: threads whose credentials differ, without the C library that would keep them alike --------------------------- */

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
    CHECK(syscall(SYS_setresgid, 1000 + i, 1010 + i, 1020 + i) == 0 && syscall(SYS_setresuid, 2000 + i, 2010 + i, 2020 + i) == 0);
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

static void on_death(int signal)
{
    say(1, "told by signal %d\n", signal);
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
            for (pid_t parent = getppid(); getppid() == parent;)
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

static const struct state {
    const char *name;
    void (*set)(void), (*look)(void), (*end)(void);
} states[] = {
    {"controls", set_controls, look_controls, NULL},
    {"ids", set_all_ids, look_all_ids, NULL},
    {"death", set_death, look_death, end_death},
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
