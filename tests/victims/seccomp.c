/* seccomp STEPS PERIOD_US: filters and strict mode of threads and processes (seccomp(2)).
 *
 * Each step tries what is denied: a call that gives an error in all threads, one that gives a signal in one of them. A child is
 * in strict mode, which has read and write alone; one has a filter and may gain privileges; one has two threads whose filters go
 * on from one another. At the end a thread makes a call that kills it, and the last child's threads get one filter more, which
 * takes that they share the others. userfaultfd(2) kills everybody who has a filter: a program never makes it by itself. */
#include "victim.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { DENIED = SYS_getppid, TRAPPED = SYS_getpgrp, KILLED = SYS_getpgid, NEVER = SYS_userfaultfd, LATER = SYS_getsid, ERROR = 99 };

static volatile long trapped;
static volatile int is_over;
static pthread_barrier_t begin, end;
static char of_thread[3][64];

/* `what` is answered so; everything else is allowed. */
static long filter(int flags, int what, unsigned answer)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, what, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, answer),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static void on_trap(int signal)
{
    trapped += signal == SIGSYS;
}

/* The error of a call, 0 for none. */
static int error_of(long call)
{
    return syscall(call, 0) < 0 ? errno : 0;
}

static void look(int i)
{
    long before = trapped;
    if (i == 1)
        syscall(TRAPPED);
    snprintf(of_thread[i], sizeof of_thread[i], "thread %d: mode %d, error %d, trapped %ld\n", i, prctl(PR_GET_SECCOMP),
             error_of(DENIED), i == 1 ? trapped - before : 0);
}

static void *stay(void *number)
{
    long i = (long)number;
    CHECK(filter(0, i == 1 ? TRAPPED : KILLED, i == 1 ? SECCOMP_RET_TRAP : SECCOMP_RET_KILL_THREAD) == 0);
    for (;;) {
        pthread_barrier_wait(&begin);
        if (is_over && i == 2)
            syscall(KILLED, 0);
        look(i);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

/* A child that answers a byte by another one, until there is none. */
static struct child {
    int to, from;
    pid_t pid;
} strict, privileged, sharing;

/* Gives a child its ends of the pipes, and nothing of other children's. */
static int begin_child(struct child *child, int ends[2])
{
    int to[2], from[2];
    CHECK(pipe(to) == 0 && pipe(from) == 0);
    child->pid = fork();
    CHECK(child->pid >= 0);
    if (child->pid == 0) {
        close(to[1]), close(from[0]);
        struct child *others[] = {&strict, &privileged, &sharing};
        for (int i = 0; i < 3; i++)
            if (others[i] != child && others[i]->to)
                close(others[i]->to);
        ends[0] = to[0], ends[1] = from[1];
        return 1;
    }
    close(to[0]), close(from[1]);
    child->to = to[1], child->from = from[0];
    return 0;
}

static char ask(const struct child *child)
{
    char c = '?';
    write_all(child->to, &c, 1);
    CHECK(read(child->from, &c, 1) == 1);
    return c;
}

static void *also_share(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static void begin_children(void)
{
    int ends[2];
    char c;
    if (begin_child(&strict, ends)) {
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
        for (long step = 0; read(ends[0], &c, 1) == 1; step++)
            if (write(ends[1], c == '?' ? "s" : "x", 1) != 1)
                break;
        syscall(SYS_exit, 5);
    }
    if (begin_child(&privileged, ends)) {
        /* CAP_SYS_ADMIN is enough; and then it has none any more. */
        CHECK(filter(SECCOMP_FILTER_FLAG_LOG, DENIED, SECCOMP_RET_ERRNO | ERROR) == 0);
        CHECK(syscall(SYS_setresgid, 1234, 1234, 1234) == 0 && syscall(SYS_setresuid, 1234, 1234, 1234) == 0);
        while (read(ends[0], &c, 1) == 1) {
            c = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 && error_of(DENIED) == ERROR ? 'p' : 'x';
            write_all(ends[1], &c, 1);
        }
        _exit(6);
    }
    if (begin_child(&sharing, ends)) {
        pthread_t one;
        CHECK(pthread_create(&one, NULL, also_share, NULL) == 0);
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        CHECK(filter(SECCOMP_FILTER_FLAG_TSYNC, DENIED, SECCOMP_RET_ERRNO | ERROR) == 0);
        while (read(ends[0], &c, 1) == 1) {
            c = error_of(DENIED) == ERROR ? 't' : 'x';
            write_all(ends[1], &c, 1);
        }
        CHECK(filter(SECCOMP_FILTER_FLAG_TSYNC, LATER, SECCOMP_RET_ERRNO | ERROR) == 0);
        _exit(error_of(LATER) == ERROR ? 7 : 8);
    }
}

static int end_child(const struct child *child)
{
    int status;
    close(child->to);
    CHECK(waitpid(child->pid, &status, 0) == child->pid);
    return status;
}

int main(int argc, char **argv)
{
    long steps = number(argc, argv, 1, 300), period = number(argc, argv, 2, 3000);
    uint64_t sum = 0;
    pthread_t threads[3];
    signal(SIGSYS, on_trap);
    pthread_barrier_init(&begin, NULL, 3);
    pthread_barrier_init(&end, NULL, 3);
    begin_children();
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(filter(SECCOMP_FILTER_FLAG_LOG, DENIED, SECCOMP_RET_ERRNO | ERROR) == 0);
    CHECK(filter(0, NEVER, SECCOMP_RET_KILL_PROCESS) == 0);
    for (long i = 1; i < 3; i++)
        CHECK(pthread_create(threads + i, NULL, stay, (void *)i) == 0);
    for (long step = 1; step <= steps; step++) {
        hold_at(step, steps);
        pthread_barrier_wait(&begin);
        look(0);
        pthread_barrier_wait(&end);
        for (int i = 0; i < 3; i++)
            for (const char *c = of_thread[i]; *c; c++)
                sum = mix(sum, *c);
        if (step == 1)
            for (int i = 0; i < 3; i++)
                write_all(1, of_thread[i], strlen(of_thread[i]));
        char answers[] = {ask(&strict), ask(&privileged), ask(&sharing), 0};
        say(1, "%ld %s %016lx\n", step, answers, sum);
        sleep_us(period);
    }
    is_over = 1;
    pthread_barrier_wait(&begin);
    CHECK(pthread_join(threads[2], NULL) == 0);
    say(1, "one thread was killed\n");
    int a = end_child(&strict), b = end_child(&privileged), c = end_child(&sharing);
    say(1, "ended with %x %x %x\n", a, b, c);
    return 0;
}
