/* travel FILE N PERIOD_US: counts to N, one line a step to stdout and to FILE, and looks at each step whether it is still itself:
 * the same process ids, and a monotonic clock that goes on where it was.
 *
 * Once the wall clock has gone on by more than a day while the monotonic one did not, FILE.jump says so. */
#include "victim.h"
#include <fcntl.h>
#include <sys/syscall.h>

static int64_t seconds_of(clockid_t clock)
{
    struct timespec time;
    CHECK(clock_gettime(clock, &time) == 0);
    return time.tv_sec;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        fail("usage: travel FILE [N] [PERIOD_US]");
    long n = number(argc, argv, 2, 1000), period = number(argc, argv, 3, 1000);
    int file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    pid_t own = getpid(), thread = syscall(SYS_gettid);
    int64_t monotonic = seconds_of(CLOCK_MONOTONIC), boot = seconds_of(CLOCK_BOOTTIME);
    int64_t wall = seconds_of(CLOCK_REALTIME);
    char jump[4096];
    snprintf(jump, sizeof jump, "%s.jump", argv[1]);
    CHECK(file >= 0);
    for (long i = 1; i <= n; i++) {
        hold_at(i, n);
        if (getpid() != own || syscall(SYS_gettid) != thread)
            fail("step %ld: process %d was %d", i, getpid(), own);
        int64_t now = seconds_of(CLOCK_MONOTONIC), since_boot = seconds_of(CLOCK_BOOTTIME);
        if (now < monotonic || now > monotonic + 60 || since_boot < boot || since_boot > boot + 60)
            fail("step %ld: clocks at %ld s and %ld s were at %ld s and %ld s", i, (long)now, (long)since_boot,
                 (long)monotonic, (long)boot);
        int64_t passed = seconds_of(CLOCK_REALTIME) - wall;
        if (passed > 86400)
            close(open(jump, O_WRONLY | O_CREAT, 0644));
        monotonic = now, boot = since_boot, wall += passed;
        say(1, "%ld\n", i);
        say(file, "%ld\n", i);
        sleep_us(period);
    }
    return 0;
}
