/* execs STEPS PERIOD_US [N]: executes itself again in each step, by a thread that is not its first one: the kernel ends the
 * first one and gives its id to that thread. */
#include "victim.h"
#include <pthread.h>

static char **arguments;
static long now_at, period;

static void *execute(void *unused)
{
    char next[32];
    snprintf(next, sizeof next, "%ld", now_at + 1);
    sleep_us(period);
    execv("/proc/self/exe", (char *[]){arguments[0], arguments[1], arguments[2], next, NULL});
    fail("execv");
    return unused;
}

int main(int argc, char **argv)
{
    long steps = number(argc, argv, 1, 300);
    CHECK(argc > 2);
    arguments = argv, period = number(argc, argv, 2, 1000), now_at = number(argc, argv, 3, 1);
    hold_at(now_at, steps);
    say(1, "%ld\n", now_at);
    if (now_at == steps)
        return 0;
    pthread_t one;
    CHECK(pthread_create(&one, NULL, execute, NULL) == 0);
    for (;;)
        pause();
}
