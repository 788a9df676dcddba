/* threads16 ROUNDS PERIOD_US: sixteen threads pass a token round under a mutex and a condition variable.
 *
 * Who has the token folds its thread-local state into the shared sum; the order is fixed, so the output is. Thread 0
 * prints. Two barriers' worth of joins at the end: every thread's own sum is collected by pthread_join. */
#include "victim.h"
#include <pthread.h>

enum { THREADS = 16 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static long token, rounds, period;
static uint64_t shared;
static __thread uint64_t mine;
static __thread uint64_t table[256];

static void *run(void *arg)
{
    long me = (long)arg;
    mine = me + 1;
    for (long round = 1; round <= rounds; round++) {
        if (me == 0)
            hold_at(round, rounds);
        /* Work outside the lock, so that threads are caught running too. */
        for (int i = 0; i < 2000; i++)
            table[i % 256] += next_random(&mine) >> 32;
        pthread_mutex_lock(&mutex);
        while (token % THREADS != me)
            pthread_cond_wait(&turned, &mutex);
        shared = mix(mix_words(shared, table, 256), mine);
        if (me == 0)
            say(1, "%ld %016lx\n", round, shared);
        token++;
        pthread_cond_broadcast(&turned);
        pthread_mutex_unlock(&mutex);
        if (me == round % THREADS)
            sleep_us(period);
    }
    return (void *)(mine ^ table[me]);
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    rounds = number(argc, argv, 1, 300);
    period = number(argc, argv, 2, 2000);
    for (long i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, run, (void *)i) == 0);
    for (long i = 0; i < THREADS; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        say(1, "joined %ld %016lx\n", i, (uint64_t)result);
    }
    return 0;
}
