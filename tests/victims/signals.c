/* signals ROUNDS PERIOD_US: everything a process holds about signals, checked in each round.
 *
 * Handlers with flags and masks, an alternate stack, blocked signals that are pending with their values (for the
 * process and for the thread), an ignored signal, a per-thread mask, an interval timer. The digest of what is found
 * is the same in every round; the pending ones are taken and sent anew each round. */
#include "victim.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

static volatile sig_atomic_t on_stack, alarms;
static char stack_memory[65536];

static void on_usr2(int signal, siginfo_t *info, void *context)
{
    (void)context;
    char *here = (char *)&signal;
    on_stack = here >= stack_memory && here < stack_memory + sizeof stack_memory ? info->si_value.sival_int : -1;
}

static void on_alarm(int signal)
{
    (void)signal;
    alarms++;
}

static void set_up(void)
{
    stack_t alternate = {.ss_sp = stack_memory, .ss_size = sizeof stack_memory};
    struct sigaction usr2 = {.sa_sigaction = on_usr2, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    struct sigaction alarm = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval every = {{0, 5000}, {0, 5000}};
    sigset_t blocked;
    sigaddset(&usr2.sa_mask, SIGTERM);
    sigaddset(&usr2.sa_mask, SIGRTMIN + 5);
    CHECK(sigaltstack(&alternate, NULL) == 0 && sigaction(SIGUSR2, &usr2, NULL) == 0);
    CHECK(sigaction(SIGALRM, &alarm, NULL) == 0 && signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGTRAP);
    sigaddset(&blocked, SIGRTMIN + 1);
    sigaddset(&blocked, SIGRTMIN + 2);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0 && setitimer(ITIMER_REAL, &every, NULL) == 0);
}

static void send_pending(void)
{
    CHECK(kill(getpid(), SIGUSR1) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 1000 + i}) == 0);
    CHECK(pthread_sigqueue(pthread_self(), SIGRTMIN + 2, (union sigval){.sival_int = 77}) == 0);
    /* One for the thread, one for the process. */
    CHECK(pthread_sigqueue(pthread_self(), SIGTRAP, (union sigval){.sival_int = 78}) == 0);
    CHECK(sigqueue(getpid(), SIGTRAP, (union sigval){.sival_int = 79}) == 0);
}

/* What waits: numbers, values and senders' kinds, in the order of delivery. */
static uint64_t take_pending(void)
{
    const int expected[] = {SIGUSR1, SIGRTMIN + 1, SIGRTMIN + 1, SIGRTMIN + 1, SIGRTMIN + 2, SIGTRAP, SIGTRAP};
    struct timespec none = {0, 0};
    uint64_t sum = 0;
    for (int i = 0; i < 7; i++) {
        siginfo_t info;
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, expected[i]);
        if (sigtimedwait(&one, &info, &none) != expected[i])
            fail("signal %d of the pending ones is lost", i);
        CHECK(info.si_pid == getpid() && info.si_uid == getuid());
        sum = mix(mix(sum, info.si_signo), info.si_code);
        sum = mix(sum, i ? info.si_value.sival_int : 0);
    }
    return sum;
}

static uint64_t settings(void)
{
    uint64_t sum = 0;
    for (int signal = 1; signal <= 64; signal++) {
        /* As the kernel has it, with the restorer's presence. */
        struct { uintptr_t handler; unsigned long flags, restorer; uint64_t mask; } action = {0};
        if (syscall(SYS_rt_sigaction, signal, NULL, &action, 8))
            continue;
        int kind = action.handler == (uintptr_t)on_usr2 ? 3 : action.handler == (uintptr_t)on_alarm ? 4 : (int)action.handler;
        sum = mix(mix(mix(mix(sum, kind), action.flags), action.mask), !!action.restorer);
    }
    uint64_t mask = 0;
    stack_t alternate;
    struct itimerval timer;
    CHECK(syscall(SYS_rt_sigprocmask, 0, NULL, &mask, 8) == 0 && sigaltstack(NULL, &alternate) == 0);
    CHECK(alternate.ss_sp == stack_memory && getitimer(ITIMER_REAL, &timer) == 0);
    return mix(mix(mix(sum, mask), alternate.ss_size), timer.it_interval.tv_usec);
}

int main(int argc, char **argv)
{
    long rounds = number(argc, argv, 1, 300), period = number(argc, argv, 2, 3000);
    set_up();
    send_pending();
    for (long round = 1; round <= rounds; round++) {
        int before = alarms;
        hold_at(round, rounds);
        sleep_us(period);
        uint64_t waiting = take_pending();
        send_pending();
        CHECK(sigqueue(getpid(), SIGUSR2, (union sigval){.sival_int = round}) == 0);
        CHECK(on_stack == round);
        /* The interval timer goes on: it must ring again, on a busy machine too. */
        for (uint64_t end = now_ns() + 20000000000ull; alarms == before; )
            CHECK(now_ns() < end);
        say(1, "%ld %016lx %016lx\n", round, waiting, settings());
    }
    return 0;
}
