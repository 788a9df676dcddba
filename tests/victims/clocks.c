/* clocks FILE N: asks for the time by each of the vdso's functions, each between two system calls that say the same.
 *
 * N times, and the step I comes once FILE has I bytes: until then it is in no function of the vdso. */
#include "victim.h"
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static int64_t nanoseconds(struct timespec time) { return time.tv_sec * 1000000000LL + time.tv_nsec; }

static int64_t by_call(clockid_t clock)
{
    struct timespec time;
    CHECK(syscall(SYS_clock_gettime, clock, &time) == 0);
    return nanoseconds(time);
}

static int64_t by_function(clockid_t clock)
{
    struct timespec time;
    CHECK(clock_gettime(clock, &time) == 0);
    return nanoseconds(time);
}

/* The coarse clocks, and what counts whole seconds, stand still between two ticks. */
static void between(clockid_t clock, int64_t (*what)(clockid_t), int64_t slack)
{
    int64_t before = by_call(clock), found = what(clock), after = by_call(clock);
    if (found < before - slack || found > after)
        fail("clock %d: %ld is not between %ld and %ld", (int)clock, (long)found, (long)before, (long)after);
}

static int64_t of_day(clockid_t clock)
{
    struct timeval time;
    (void)clock;
    CHECK(gettimeofday(&time, NULL) == 0);
    return time.tv_sec * 1000000000LL + time.tv_usec * 1000LL;
}

static int64_t seconds(clockid_t clock)
{
    (void)clock;
    return time(NULL) * 1000000000LL;
}

int main(int argc, char **argv)
{
    long n = number(argc, argv, 2, 1000);
    struct stat file;
    for (long i = 1; i <= n; i++) {
        while (stat(argv[1], &file) != 0 || file.st_size < i)
            sleep_us(1000);
        between(CLOCK_REALTIME, by_function, 0);
        between(CLOCK_MONOTONIC, by_function, 0);
        between(CLOCK_BOOTTIME, by_function, 0);
        between(CLOCK_REALTIME, of_day, 1000);
        between(CLOCK_REALTIME, seconds, 1100000000);
        struct timespec resolution = {1, 0};
        CHECK(clock_getres(CLOCK_MONOTONIC, &resolution) == 0 && nanoseconds(resolution) == 1);
        unsigned processor = ~0u, node = ~0u;
        CHECK(getcpu(&processor, &node) == 0 && processor < 4096 && node < 1024);
        say(1, "%ld right\n", i);
    }
    return 0;
}
