/* suspended ROUNDS PERIOD_US: threads that wait with another signal mask than their own, are joined, and die with a lock.
 *
 * In each round three threads wait in sigsuspend, ppoll and pselect, each letting in one signal that it blocks
 * otherwise; a fourth takes a robust mutex, sleeps and ends with it. After the period each waiter gets its signal, the
 * fourth is joined and its mutex is found without owner. A line a round, the same each time but for its number. */
#include "victim.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/select.h>

enum { WAITERS = 3 };
static pthread_barrier_t begin, end;
static pthread_mutex_t robust;
static long rounds, period;
static char report[WAITERS][80];
static __thread volatile int caught;

static void on_signal(int signal) { caught = signal; }

static sigset_t all_but(int signal)
{
    sigset_t set;
    sigfillset(&set);
    sigdelset(&set, signal);
    return set;
}

static void *wait_masked(void *arg)
{
    long me = (long)arg;
    int mine = SIGRTMIN + 1 + me;
    for (long round = 0; round < rounds; round++) {
        pthread_barrier_wait(&begin);
        sigset_t let_in = all_but(mine), after;
        uint64_t blocked = 0;
        caught = 0;
        errno = 0;
        long result = me == 0 ? sigsuspend(&let_in) : me == 1 ? ppoll(NULL, 0, NULL, &let_in)
                                                             : pselect(0, NULL, NULL, NULL, NULL, &let_in);
        int error = errno;
        CHECK(pthread_sigmask(SIG_BLOCK, NULL, &after) == 0);
        for (int signal = 1; signal <= 64; signal++)
            blocked = blocked << 1 | (sigismember(&after, signal) == 1);
        snprintf(report[me], sizeof report[me], "%ld %d %d %016lx", result, error, caught - SIGRTMIN, blocked);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void *die_with_it(void *arg)
{
    (void)arg;
    CHECK(pthread_mutex_lock(&robust) == 0);
    sleep_us(period);
    return (void *)42;
}

int main(int argc, char **argv)
{
    pthread_t waiters[WAITERS], mortal;
    pthread_mutexattr_t kind;
    sigset_t blocked;
    struct sigaction action = {.sa_handler = on_signal};
    rounds = number(argc, argv, 1, 100);
    period = number(argc, argv, 2, 3000);
    sigemptyset(&blocked);
    for (int i = 0; i < WAITERS; i++) {
        sigaddset(&blocked, SIGRTMIN + 1 + i);
        CHECK(sigaction(SIGRTMIN + 1 + i, &action, NULL) == 0);
    }
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    CHECK(pthread_mutexattr_init(&kind) == 0 && pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST) == 0);
    CHECK(pthread_mutex_init(&robust, &kind) == 0);
    pthread_barrier_init(&begin, NULL, WAITERS + 1);
    pthread_barrier_init(&end, NULL, WAITERS + 1);
    for (long i = 0; i < WAITERS; i++)
        CHECK(pthread_create(&waiters[i], NULL, wait_masked, (void *)i) == 0);
    for (long round = 1; round <= rounds; round++) {
        void *result;
        hold_at(round, rounds);
        pthread_barrier_wait(&begin);
        CHECK(pthread_create(&mortal, NULL, die_with_it, NULL) == 0);
        sleep_us(period);
        for (int i = 0; i < WAITERS; i++)
            /* Blocked until its thread waits, so it cannot come too early. */
            CHECK(pthread_kill(waiters[i], SIGRTMIN + 1 + i) == 0);
        CHECK(pthread_join(mortal, &result) == 0);
        int owner = pthread_mutex_lock(&robust);
        CHECK(owner == EOWNERDEAD && pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
        pthread_barrier_wait(&end);
        say(1, "%ld joined %ld: %s, %s, %s\n", round, (long)result, report[0], report[1], report[2]);
    }
    for (int i = 0; i < WAITERS; i++)
        CHECK(pthread_join(waiters[i], NULL) == 0);
    return 0;
}
