/* Random operations on signals and timers. All signals of ours are blocked but while they are to be handled. */
#ifndef RANDOPS_SIGNALS_H
#define RANDOPS_SIGNALS_H
#include "randops_check.h"

enum { RING = FIRST_SIGNAL + 8 };

static void set_of(sigset_t *set, int number)
{
    sigemptyset(set);
    sigaddset(set, number);
}

static bool choose_send(const struct model *m, struct op *op)
{
    int kind = dice(op, SIGNALS + 2);
    op->to = dice(op, PROCESSES);
    op->how = kind < SIGNALS ? FIRST_SIGNAL + kind : kind == SIGNALS ? SIGUSR1 : SIGUSR2;
    /* The last of them go to the thread. */
    if (kind == SIGNALS - 1)
        op->to = op->actor;
    const struct process *to = &m->process[op->to];
    if (!to->alive || to->queued == QUEUE)
        return false;
    for (int i = 0; i < to->queued; i++)
        if (kind >= SIGNALS && to->queue[i].number == op->how)
            return false;
    return true;
}

static void apply_send(struct model *m, const struct op *op)
{
    struct process *to = &m->process[op->to];
    uint32_t value = op->how >= FIRST_SIGNAL ? op->step : 0;
    to->queue[to->queued++] = (struct signal_state){op->how, value};
}

static uint64_t perform_send(const struct model *m, const struct op *op)
{
    (void)m;
    union sigval value = {.sival_ptr = (void *)(uintptr_t)op->step};
    if (op->how < FIRST_SIGNAL)
        CHECK(kill(control->pid[op->to], op->how) == 0);
    else if (op->how == FIRST_SIGNAL + SIGNALS - 1)
        CHECK(pthread_sigqueue(pthread_self(), op->how, value) == 0);
    else
        CHECK(sigqueue(control->pid[op->to], op->how, value) == 0);
    return 0;
}

static bool choose_take(const struct model *m, struct op *op)
{
    const struct process *self = &m->process[op->actor];
    if (!self->queued)
        return false;
    op->how = self->queue[dice(op, self->queued)].number;
    return true;
}

/* Takes the first signal of a number off the queue; false if there is none. */
static bool dequeue(struct process *self, int number, uint32_t *value)
{
    for (int i = 0; i < self->queued; i++)
        if (self->queue[i].number == number) {
            *value = self->queue[i].value;
            self->queued--;
            memmove(&self->queue[i], &self->queue[i + 1], (self->queued - i) * sizeof *self->queue);
            return true;
        }
    return false;
}

static void apply_take(struct model *m, const struct op *op)
{
    uint32_t value;
    dequeue(&m->process[op->actor], op->how, &value);
}

static uint64_t perform_take(const struct model *m, const struct op *op)
{
    struct process copy = m->process[op->actor];
    uint32_t value = 0;
    CHECK(dequeue(&copy, op->how, &value));
    sigset_t set;
    siginfo_t info;
    struct timespec at_once = {0, 0};
    set_of(&set, op->how);
    if (sigtimedwait(&set, &info, &at_once) != op->how)
        WRONG("signal %d does not come", op->how);
    if (op->how >= FIRST_SIGNAL && (uintptr_t)info.si_ptr != value)
        WRONG("signal %d brings %p and not %d", op->how, info.si_ptr, value);
    return value;
}

static uint64_t handle_one(uint64_t sum, int number, uint32_t value)
{
    return mix(mix(sum, number), value);
}

static void handler(int number, siginfo_t *info, void *context)
{
    (void)context;
    handled = handle_one(handled, number, number >= FIRST_SIGNAL ? (uint32_t)(uintptr_t)info->si_ptr : 0);
}

/* In the program's first process, before there are others. */
static void handle_signals(void)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigset_t ours;
    sigemptyset(&ours);
    sigfillset(&action.sa_mask);
    for (int i = 0; i < SIGNALS + 2; i++) {
        int number = i < SIGNALS ? FIRST_SIGNAL + i : i == SIGNALS ? SIGUSR1 : SIGUSR2;
        CHECK(sigaction(number, &action, NULL) == 0);
        sigaddset(&ours, number);
    }
    sigaddset(&ours, RING);
    for (int i = 0; i < TIMERS; i++)
        sigaddset(&ours, OF_TIMER + i);
    CHECK(sigprocmask(SIG_BLOCK, &ours, NULL) == 0);
}

static void apply_handle(struct model *m, const struct op *op)
{
    struct process *self = &m->process[op->actor];
    for (uint32_t value; dequeue(self, op->how, &value);)
        self->handled = handle_one(self->handled, op->how, value);
}

static uint64_t perform_handle(const struct model *m, const struct op *op)
{
    (void)m;
    sigset_t set;
    set_of(&set, op->how);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0 && pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    return handled;
}

static bool choose_mask(const struct model *m, struct op *op)
{
    (void)m;
    op->to = dice(op, 8);
    return true;
}

static void apply_mask(struct model *m, const struct op *op)
{
    m->process[op->actor].mask ^= 1 << op->to;
}

static uint64_t perform_mask(const struct model *m, const struct op *op)
{
    sigset_t set;
    set_of(&set, FIRST_SIGNAL + 10 + op->to);
    int how = m->process[op->actor].mask >> op->to & 1 ? SIG_UNBLOCK : SIG_BLOCK;
    CHECK(pthread_sigmask(how, &set, NULL) == 0);
    return 0;
}

/* A timer that rings in some hours, which no run reaches, once or every so many, or none. */
static bool choose_timer(const struct model *m, struct op *op)
{
    (void)m;
    op->count = dice(op, 9);
    op->how = op->count ? dice(op, 4) : 0;
    return true;
}

static void apply_timer(struct model *m, const struct op *op)
{
    m->process[op->actor].hours = op->count;
    m->process[op->actor].every = op->how;
}

static uint64_t perform_timer(const struct model *m, const struct op *op)
{
    (void)m;
    struct itimerval timer = {{op->how * HOUR, 0}, {op->count * HOUR, 0}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    return 0;
}

/* Timers of timer_create(2), on any clock, that live over other operations: made running or to ring at once, set anew, deleted,
 * their signals taken. */
enum { MAKE_RUNNING, MAKE_RUNG, SET_ANEW, DELETE, TAKE };

static bool choose_keep(const struct model *m, struct op *op)
{
    op->to = dice(op, TIMERS);
    int kind = m->process[op->actor].timer[op->to].kind;
    op->how = kind == NO_TIMER ? MAKE_RUNNING + dice(op, 2) : kind == RUNNING ? SET_ANEW + dice(op, 2) : TAKE;
    op->count = 1 + dice(op, 8);
    op->object = dice(op, 3);
    return true;
}

static void apply_keep(struct model *m, const struct op *op)
{
    struct timer_state *timer = &m->process[op->actor].timer[op->to];
    bool runs = op->how == MAKE_RUNNING || op->how == SET_ANEW, rung = op->how == MAKE_RUNG;
    *timer = (struct timer_state){runs ? RUNNING : rung ? RUNG : NO_TIMER, runs ? op->count : 0, runs ? op->object : 0,
                                  rung ? op->step : 0};
}

static void make_timer(const struct op *op)
{
    /* One of CPU time rings late, for want of a tick of the clock: none that is to ring. */
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_PROCESS_CPUTIME_ID};
    struct op copy = *op;
    clockid_t clock = clocks[dice(&copy, op->how == MAKE_RUNG ? 4 : 5)];
    struct sigevent event = {.sigev_notify = dice(&copy, 2) ? SIGEV_SIGNAL : SIGEV_THREAD_ID, .sigev_signo = OF_TIMER + op->to,
                             .sigev_value.sival_ptr = (void *)(uintptr_t)op->step};
    event._sigev_un._tid = gettid();
    CHECK(timer_create(clock, &event, &timers[op->to]) == 0);
}

static uint64_t perform_keep(const struct model *m, const struct op *op)
{
    struct itimerspec once = {{0, 0}, {0, 1}}, running = {{op->object * HOUR, 0}, {op->count * HOUR, 0}};
    const struct timespec at_once = {0, 0};
    timer_t *timer = &timers[op->to];
    sigset_t set;
    siginfo_t info;
    switch (op->how) {
    case MAKE_RUNNING:
    case MAKE_RUNG:
        make_timer(op);
        /* fall through */
    case SET_ANEW:
        CHECK(timer_settime(*timer, 0, op->how == MAKE_RUNG ? &once : &running, NULL) == 0);
        do
            CHECK(sigpending(&set) == 0);
        while (op->how == MAKE_RUNG && !sigismember(&set, OF_TIMER + op->to));
        return 0;
    case TAKE:
        set_of(&set, OF_TIMER + op->to);
        if (sigtimedwait(&set, &info, &at_once) != OF_TIMER + op->to)
            WRONG("the signal of timer %d does not come", op->to);
        if ((uintptr_t)info.si_ptr != m->process[me].timer[op->to].value || info.si_overrun != 0)
            WRONG("the signal of timer %d brings %p, and %d overruns", op->to, info.si_ptr, info.si_overrun);
        /* fall through */
    default:
        CHECK(timer_delete(*timer) == 0);
        return 0;
    }
}

/* A timer that rings at once, nearly, and is waited for. */
static uint64_t perform_ring(const struct model *m, const struct op *op)
{
    (void)m;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = RING,
                             .sigev_value.sival_ptr = (void *)(uintptr_t)op->step};
    struct itimerspec soon = {{0, 0}, {0, 1 + op->random % 3000000}};
    timer_t timer;
    sigset_t set;
    siginfo_t info;
    set_of(&set, RING);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &soon, NULL) == 0);
    CHECK(sigwaitinfo(&set, &info) == RING && (uintptr_t)info.si_ptr == (uintptr_t)op->step);
    CHECK(timer_delete(timer) == 0);
    return 0;
}
#endif
