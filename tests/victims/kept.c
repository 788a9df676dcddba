/* kept CASE DIR ROUNDS PERIOD_US: state of a process, its session and its children that has to stay as it is. */
#include "victim.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

static pid_t child;
static int to_child[2], from_child[2];

/* A child that answers each byte with one. */
static void begin_child(void (*first)(void), char (*answer)(void))
{
    CHECK(pipe(to_child) == 0 && pipe(from_child) == 0 && (child = fork()) >= 0);
    if (child != 0)
        return;
    char byte;
    CHECK(close(to_child[1]) == 0);
    first();
    while (read(to_child[0], &byte, 1) == 1) {
        byte = answer();
        CHECK(write(from_child[1], &byte, 1) == 1);
    }
    _exit(0);
}

static char asked(void)
{
    char byte = 0;
    CHECK(write(to_child[1], "?", 1) == 1 && read(from_child[0], &byte, 1) == 1);
    return byte;
}

static void end_child(void)
{
    int status;
    CHECK(close(to_child[1]) == 0 && waitpid(child, &status, 0) == child && status == 0);
}

/* --- The nice value of a session of its own (sched(7)) ------------------------------------------------------------- */

static void autogroup_of_child(void)
{
    CHECK(setsid() > 0);
    int fd = open("/proc/self/autogroup", O_WRONLY);
    if (fd < 0) {
        say(2, "cannot: autogroup (%s)\n", strerror(errno));
        return;
    }
    CHECK(write(fd, "7", 1) == 1 && close(fd) == 0);
}

static char nice_of_autogroup(void)
{
    int number, nice = 7;
    FILE *shown = fopen("/proc/self/autogroup", "r");
    if (shown) {
        CHECK(fscanf(shown, "/autogroup-%d nice %d", &number, &nice) == 2);
        fclose(shown);
    }
    return nice;
}

static void autogroup_begin(void)
{
    begin_child(autogroup_of_child, nice_of_autogroup);
}

static uint64_t autogroup_round(long round)
{
    char nice = asked();
    if (nice != 7)
        fail("the nice value of the child's session is %d", nice);
    return mix(round, nice);
}

/* --- alarm(2) and timers of CPU time ------------------------------------------------------------------------------- */

static const struct {
    int which, signal;
    long interval;
} timers[] = {{ITIMER_VIRTUAL, SIGVTALRM, 15000}, {ITIMER_PROF, SIGPROF, 25000}};
static volatile long rings[2];
static double left_before = 900;
/* When it was set. */
static uint64_t set_at;

static void on_ring(int signal)
{
    rings[signal == SIGPROF]++;
}

static void itimers_begin(void)
{
    alarm(900);
    set_at = now_ns();
    for (int i = 0; i < 2; i++) {
        struct itimerval each = {{0, timers[i].interval}, {0, timers[i].interval}};
        CHECK(signal(timers[i].signal, on_ring) != SIG_ERR && setitimer(timers[i].which, &each, NULL) == 0);
    }
}

static uint64_t itimers_round(long round)
{
    struct itimerval now;
    CHECK(getitimer(ITIMER_REAL, &now) == 0);
    double left = now.it_value.tv_sec + now.it_value.tv_usec / 1e6;
    if (left <= 0 || left > left_before || now.it_interval.tv_sec || now.it_interval.tv_usec)
        fail("of the alarm %f s are left, and %f were", left, left_before);
    left_before = left;
    /* The clock goes on while a restart is at work, the alarm after it. */
    double passed = (now_ns() - set_at) / 1e9;
    if (left < 900 - passed - 1 || left > 900 - passed + 120)
        fail("of the alarm %f s are left after %f s", left, passed);
    for (int i = 0; i < 2; i++) {
        CHECK(getitimer(timers[i].which, &now) == 0);
        if (now.it_interval.tv_sec || now.it_interval.tv_usec != timers[i].interval)
            fail("timer %d has an interval of %ld us", i, now.it_interval.tv_usec);
        if (round % 20)
            continue;
        /* It rings before a hundred times its interval have been spent. */
        long before = rings[i];
        clock_t begin = clock();
        while (rings[i] == before)
            if (clock() - begin > 100 * timers[i].interval * (CLOCKS_PER_SEC / 1000000))
                fail("timer %d does not ring", i);
    }
    return round;
}

static void itimers_end(void)
{
    unsigned left = alarm(0);
    CHECK(left > 0 && left <= 900);
}

/* --- A child that is stopped -------------------------------------------------------------------------------------- */

static void nothing(void) {}

static char steps_of_child(void)
{
    static char steps;
    return ++steps;
}

/* On its way into a stop, at a thaw and at a restart, it is runnable, and traced in a freeze: then it is looked at again. */
static char state_of_child(void)
{
    char path[64], state = 'R';
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    for (int looks = 0; looks < 100000 && (state == 'R' || state == 't'); looks++) {
        FILE *shown = fopen(path, "r");
        CHECK(shown && fscanf(shown, "%*d (%*[^)]) %c", &state) == 1 && fclose(shown) == 0);
        if (state == 'R' || state == 't')
            sleep_us(100);
    }
    return state;
}

static void stop_child(int signal)
{
    int status;
    CHECK(kill(child, signal) == 0 && waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
}

static void stopped_begin(void)
{
    begin_child(nothing, steps_of_child);
    stop_child(SIGSTOP);
}

static uint64_t stopped_round(long round)
{
    static char steps;
    char state = state_of_child();
    if (state != 'T')
        fail("the stopped child's state is %c", state);
    if (round % 40 == 0) {
        CHECK(kill(child, SIGCONT) == 0);
        char seen = asked();
        if (seen != ++steps)
            fail("the child's step is %d and not %d", seen, steps);
        stop_child(round % 80 ? SIGTSTP : SIGSTOP);
    }
    return mix(round, state);
}

static void stopped_end(void)
{
    CHECK(kill(child, SIGCONT) == 0);
    end_child();
}

static const struct thing things[] = {
    {"autogroup", autogroup_begin, autogroup_round, end_child},
    {"itimers", itimers_begin, itimers_round, itimers_end},
    {"stopped", stopped_begin, stopped_round, stopped_end},
};

int main(int argc, char **argv)
{
    return rounds_of(things, sizeof things / sizeof *things, argc, argv);
}
