/* sleeps MS ROUNDS [KIND,… [PERCENT]]: one thread per kind of sleep, each of MS milliseconds, all at once, ROUNDS times.
 *
 * In each round a line at its beginning, one when two thirds are over, and at its end one per kind in a fixed order: "ok", or
 * what was wrong: a result or errno that an undisturbed sleep never gives (EINTR above all), woken early, or longer by
 * PERCENT (a quarter) and 250 ms, which is what a sleep does that begins anew after a restart.
 *
 * How long one may be is counted in naps that another thread takes all the while: where the machine is busy, or the program
 * stands, those are longer too. So the bound needs no scale, under which a sleep that begins anew could not be told. */
#include "victim.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { NAP_MS = 25, GRACE_MS = 250 };
static long ms, percent;
static volatile long naps;
static pthread_barrier_t begin, end;
static int feed[2], semaphores, rounds;

static struct timespec span(void)
{
    return (struct timespec){ms / 1000, ms % 1000 * 1000000};
}

/* The C library makes another call of it. */
static long by_nanosleep(void)
{
    struct timespec t = span();
    return syscall(SYS_nanosleep, &t, NULL);
}

static long by_clock_nanosleep(void)
{
    struct timespec t = span(), left;
    errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &left);
    return errno ? -1 : 0;
}

static long by_clock_nanosleep_boot(void)
{
    struct timespec t = span();
    errno = clock_nanosleep(CLOCK_BOOTTIME, 0, &t, NULL);
    return errno ? -1 : 0;
}

static long by_clock_nanosleep_abs(void)
{
    uint64_t at = now_ns() + ms * 1000000;
    struct timespec t = {at / 1000000000, at % 1000000000};
    /* glibc returns the error itself. */
    errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    return errno ? -1 : 0;
}

static long by_poll(void) { return poll(NULL, 0, ms); }

static long by_ppoll(void)
{
    struct timespec t = span();
    return ppoll(NULL, 0, &t, NULL);
}

static long by_select(void)
{
    struct timeval t = {ms / 1000, ms % 1000 * 1000};
    return select(0, NULL, NULL, NULL, &t);
}

static long by_epoll_wait(void)
{
    struct epoll_event event;
    int fd = epoll_create1(0);
    long n = epoll_wait(fd, &event, 1, ms);
    int error = errno;
    close(fd);
    errno = error;
    return n;
}

static long by_epoll_pwait2(void)
{
    struct epoll_event event;
    struct timespec t = span();
    int fd = epoll_create1(0);
    long n = syscall(SYS_epoll_pwait2, fd, &event, 1, &t, NULL, 0);
    int error = errno;
    close(fd);
    errno = error;
    return n;
}

static long by_futex(void)
{
    int word = 0;
    struct timespec t = span();
    return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
}

static long by_sigtimedwait(void)
{
    sigset_t set;
    struct timespec t = span();
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    return sigtimedwait(&set, NULL, &t);
}

static long by_semtimedop(void)
{
    struct sembuf take = {0, -1, 0};
    struct timespec t = span();
    return semtimedop(semaphores, &take, 1, &t);
}

static long by_pause(void) { return pause(); }

static long by_read(void)
{
    char byte;
    return read(feed[0], &byte, 1);
}

/* Locks that the first description of a file has, and the second one waits for: flock(2) and F_OFD_SETLKW. */
enum { FLOCK, RANGE, LOCKS };
static int locked[LOCKS][2];

static long lock(int kind, int which, int on)
{
    struct flock range = {.l_type = on ? F_WRLCK : F_UNLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 4};
    int fd = locked[kind][which];
    return kind == FLOCK ? flock(fd, on ? LOCK_EX : LOCK_UN) : fcntl(fd, F_OFD_SETLKW, &range);
}

static void open_locked(void)
{
    char name[32];
    for (int i = 0; i < 2 * LOCKS; i++) {
        snprintf(name, sizeof name, "locked-%d", i / 2);
        locked[i / 2][i % 2] = open(name, O_RDWR | O_CREAT, 0600);
        CHECK(locked[i / 2][i % 2] >= 0);
    }
}

/* Waits for it, and lets go of it again. */
static long wait_for_lock(int kind)
{
    long got = lock(kind, 1, 1);
    return got < 0 ? got : lock(kind, 1, 0);
}

static long by_flock(void) { return wait_for_lock(FLOCK); }

static long by_range_lock(void) { return wait_for_lock(RANGE); }

static long by_waitpid(void)
{
    int status;
    pid_t child = fork();
    if (!child) {
        sleep_us(ms * 1000);
        _exit(5);
    }
    long got = waitpid(child, &status, 0);
    if (got < 0)
        return got;
    return got == child && WIFEXITED(status) && WEXITSTATUS(status) == 5 ? 0 : 99;
}

static struct kind {
    const char *name;
    long (*sleep)(void);
    long result;
    int error;
    pthread_t thread;
    volatile int over;
    volatile uint64_t began;
    char report[80];
} kinds[] = {
    {"nanosleep", by_nanosleep, 0, 0, 0, 0, 0, ""},
    {"clock_nanosleep", by_clock_nanosleep, 0, 0, 0, 0, 0, ""},
    {"clock_nanosleep_boot", by_clock_nanosleep_boot, 0, 0, 0, 0, 0, ""},
    {"clock_nanosleep_abs", by_clock_nanosleep_abs, 0, 0, 0, 0, 0, ""},
    {"poll", by_poll, 0, 0, 0, 0, 0, ""},
    {"ppoll", by_ppoll, 0, 0, 0, 0, 0, ""},
    {"select", by_select, 0, 0, 0, 0, 0, ""},
    {"epoll_wait", by_epoll_wait, 0, 0, 0, 0, 0, ""},
    {"epoll_pwait2", by_epoll_pwait2, 0, 0, 0, 0, 0, ""},
    {"futex", by_futex, -1, ETIMEDOUT, 0, 0, 0, ""},
    {"sigtimedwait", by_sigtimedwait, -1, EAGAIN, 0, 0, 0, ""},
    {"semtimedop", by_semtimedop, -1, EAGAIN, 0, 0, 0, ""},
    {"pause", by_pause, -1, EINTR, 0, 0, 0, ""},
    {"read", by_read, 1, 0, 0, 0, 0, ""},
    {"flock", by_flock, 0, 0, 0, 0, 0, ""},
    {"range_lock", by_range_lock, 0, 0, 0, 0, 0, ""},
    {"waitpid", by_waitpid, 0, 0, 0, 0, 0, ""},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static void *run(void *arg)
{
    struct kind *kind = arg;
    for (int round = 0; round < rounds; round++) {
        pthread_barrier_wait(&begin);
        long first_nap = naps;
        uint64_t start = kind->began = now_ns();
        errno = 0;
        long result = kind->sleep();
        int error = result < 0 ? errno : 0;
        long slept = (now_ns() - start) / 1000000, napped = (naps - first_nap) * NAP_MS;
        if (result != kind->result || error != kind->error)
            snprintf(kind->report, sizeof kind->report, "gave %ld, errno %d", result, error);
        else if (slept < ms || napped > ms + ms * percent / 100 + GRACE_MS)
            snprintf(kind->report, sizeof kind->report, "took %ld ms, and %ld ms of naps", slept, napped);
        else
            strcpy(kind->report, "ok");
        kind->over = 1;
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void *nap(void *arg)
{
    for (;; naps++)
        sleep_us(NAP_MS * 1000);
    return arg;
}

static void nothing(int signal) { (void)signal; }

static int is_wanted(const char *list, const char *name)
{
    char padded[512], word[64];
    snprintf(padded, sizeof padded, ",%s,", list);
    snprintf(word, sizeof word, ",%s,", name);
    return !strcmp(list, "all") || strstr(padded, word);
}

int main(int argc, char **argv)
{
    const char *list = argc > 3 ? argv[3] : "all";
    struct sigaction wake = {.sa_handler = nothing};
    sigset_t timed;
    pthread_t napper;
    int threads = 0;
    ms = number(argc, argv, 1, 200);
    rounds = number(argc, argv, 2, 10);
    percent = number(argc, argv, 4, 25);
    sigemptyset(&timed);
    sigaddset(&timed, SIGRTMIN + 3);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    CHECK(sigprocmask(SIG_BLOCK, &timed, NULL) == 0 && sigaction(SIGUSR1, &wake, NULL) == 0);
    CHECK(pipe(feed) == 0 && semaphores >= 0);
    open_locked();
    for (int i = 0; i < KINDS; i++)
        threads += is_wanted(list, kinds[i].name);
    pthread_barrier_init(&begin, NULL, threads + 1);
    pthread_barrier_init(&end, NULL, threads + 1);
    CHECK(pthread_create(&napper, NULL, nap, NULL) == 0);
    for (int i = 0; i < KINDS; i++)
        if (is_wanted(list, kinds[i].name))
            CHECK(pthread_create(&kinds[i].thread, NULL, run, &kinds[i]) == 0);
    for (int round = 1; round <= rounds; round++) {
        for (int i = 0; i < KINDS; i++)
            kinds[i].over = kinds[i].began = 0;
        CHECK(lock(FLOCK, 0, 1) == 0 && lock(RANGE, 0, 1) == 0);
        hold_at(round, rounds);
        pthread_barrier_wait(&begin);
        uint64_t start = now_ns();
        say(1, "%d sleeping\n", round);
        while (now_ns() < start + ms * 1000000 * 2 / 3)
            sleep_us(1000);
        say(1, "%d late\n", round);
        for (int i = 0; i < KINDS; i++) {
            if (!kinds[i].thread)
                continue;
            /* A thread may be late: its time counts from its own beginning. */
            while (!kinds[i].began || now_ns() < kinds[i].began + ms * 1000000)
                sleep_us(1000);
            if (kinds[i].sleep == by_read)
                write_all(feed[1], "x", 1);
            if (kinds[i].sleep == by_flock || kinds[i].sleep == by_range_lock)
                CHECK(lock(kinds[i].sleep == by_flock ? FLOCK : RANGE, 0, 0) == 0);
            /* Again until it has ended: the first may come before the pause has begun. */
            while (kinds[i].sleep == by_pause && !kinds[i].over) {
                pthread_kill(kinds[i].thread, SIGUSR1);
                sleep_us(1000);
            }
        }
        pthread_barrier_wait(&end);
        CHECK(lock(FLOCK, 0, 0) == 0 && lock(RANGE, 0, 0) == 0);
        for (int i = 0; i < KINDS; i++)
            if (kinds[i].thread)
                say(1, "%d %s %s\n", round, kinds[i].name, kinds[i].report);
    }
    for (int i = 0; i < KINDS; i++)
        if (kinds[i].thread)
            CHECK(pthread_join(kinds[i].thread, NULL) == 0);
    return semctl(semaphores, 0, IPC_RMID);
}
