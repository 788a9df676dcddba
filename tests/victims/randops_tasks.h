/* Random operations on processes and threads, and those that go on beside the others. */
#ifndef RANDOPS_TASKS_H
#define RANDOPS_TASKS_H
#include "randops_files.h"
#include "randops_signals.h"

__attribute__((noreturn)) static void serve(void);
static void answer(int step, uint64_t result);

/* Threads that do what they are handed. */
static struct helper {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const struct op *op;
    uint64_t result;
    bool ends;
} helpers[THREADS];

static void *help(void *argument)
{
    struct helper *self = argument;
    pthread_mutex_lock(&self->lock);
    for (;;) {
        while (!self->op && !self->ends)
            pthread_cond_wait(&self->changed, &self->lock);
        if (self->ends)
            break;
        self->result = self->op->row->perform(&now, self->op);
        self->op = NULL;
        pthread_cond_broadcast(&self->changed);
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

static uint64_t by_helper(struct helper *helper, const struct op *op)
{
    pthread_mutex_lock(&helper->lock);
    helper->op = op;
    pthread_cond_broadcast(&helper->changed);
    while (helper->op)
        pthread_cond_wait(&helper->changed, &helper->lock);
    pthread_mutex_unlock(&helper->lock);
    return helper->result;
}

static bool choose_thread(const struct model *m, struct op *op)
{
    int threads = m->process[op->actor].threads;
    op->how = threads == 0 || (threads < THREADS && dice(op, 2));
    return true;
}

static void apply_thread(struct model *m, const struct op *op)
{
    m->process[op->actor].threads += op->how ? 1 : -1;
}

static uint64_t perform_thread(const struct model *m, const struct op *op)
{
    int threads = m->process[op->actor].threads;
    struct helper *helper = &helpers[op->how ? threads : threads - 1];
    if (op->how) {
        *helper = (struct helper){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
        CHECK(pthread_create(&helper->thread, NULL, help, helper) == 0);
        return 1;
    }
    pthread_mutex_lock(&helper->lock);
    helper->ends = true;
    pthread_cond_broadcast(&helper->changed);
    pthread_mutex_unlock(&helper->lock);
    CHECK(pthread_join(helper->thread, NULL) == 0);
    return 0;
}

/* A thread that maps, writes, drops and unmaps pages of a place of its own, beside everything else, and looks at each
 * before it changes it: page `round % churned` is what its last round has made of it. */
static pthread_t churner;
static volatile bool churn_ends;
static int churned_from, churned;

static bool is_written(long round)
{
    return round >= 0 && round * 7 % 5 < 3;
}

static void churn_one(long round)
{
    char *at = address(churned_from + round % churned);
    long before = round - churned;
    if (before >= 0) {
        int word = wrong_word(at + CELL, is_written(before) ? 0x80000000u | (uint32_t)before : 0);
        if (word >= 0)
            WRONG("page %ld beside the others is not of its round %ld", churned_from + round % churned, before);
    }
    if (round * 7 % 5 == 4)
        CHECK(madvise(at, PAGE, MADV_DONTNEED) == 0);
    else
        CHECK(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == at);
    if (is_written(round))
        fill_cell(at + CELL, 0x80000000u | (uint32_t)round);
}

static void *churn(void *argument)
{
    (void)argument;
    for (long round = 0; !churn_ends; round++) {
        churn_one(round);
        if (round % 8 == 7)
            sleep_us(2000);
    }
    return NULL;
}

static bool choose_churn(const struct model *m, struct op *op)
{
    const struct process *self = &m->process[op->actor];
    op->how = self->churns_for == 0;
    if (!op->how) {
        op->from = self->churns_at;
        op->count = self->churns_for;
        return true;
    }
    return find(m, op, is_free, 0, 100, 12) && op->count > 2;
}

static void apply_churn(struct model *m, const struct op *op)
{
    m->process[op->actor].churns_at = op->from;
    m->process[op->actor].churns_for = op->how ? op->count : 0;
    apply_unmap(m, op);
    for (int i = 0; i < op->count && op->how; i++)
        pages_of(m, op)[op->from + i] = (struct page){.kind = ANON, .flags = BUSY};
}

static uint64_t perform_churn(const struct model *m, const struct op *op)
{
    if (op->how) {
        char *at = address(op->from);
        CHECK(mmap(at, (size_t)op->count * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
                   0) == at);
        churned_from = op->from, churned = op->count, churn_ends = false;
        CHECK(pthread_create(&churner, NULL, churn, NULL) == 0);
        return 1;
    }
    churn_ends = true;
    CHECK(pthread_join(churner, NULL) == 0);
    return perform_unmap(m, op);
}

/* What nobody else can change: not what it shows of an object, nor what goes with the end of one that can be cut. */
static bool lasts(const struct page *p)
{
    bool own = p->kind == PRIVATE && p->own && now.object[p->object].kind != MEMFD;
    return (p->kind == ANON || own) && !(p->flags & BUSY) && !beyond(&now, p);
}

/* A child that looks at all it has inherited and writes into it, again and again, beside everything else. */
static void sprint_once(long round)
{
    static const char odd[PAGE];
    struct op op = {.actor = me};
    uint64_t sum = 0;
    for (int i = round % 3; i < PAGES; i += 3) {
        const struct page *p = &now.process[me].page[i];
        if (!lasts(p))
            continue;
        bool mine = i % 2 && is_writable(&now, &op, p, p) && !(p->flags & FREED);
        if (!mine) {
            check_page(&now, i, &sum);
            continue;
        }
        if (round < 3)
            check_page(&now, i, &sum);
        else if (wrong_word(address(i) + CELL, 0x40000000u | (uint32_t)(round - 3)) >= 0)
            WRONG("page %d of a child beside the others is not of its round %ld", i, round - 3);
        memcpy(address(i), odd, PAGE);
        fill_cell(address(i) + CELL, 0x40000000u | (uint32_t)round);
    }
}

__attribute__((noreturn)) static void sprint(void)
{
    for (long round = 0; !__atomic_load_n(&control->stop_sprinting[me], __ATOMIC_SEQ_CST); round++) {
        sprint_once(round);
        sleep_us(3000);
    }
    _exit(0);
}

static bool choose_sprint(const struct model *m, struct op *op)
{
    op->how = !m->process[op->actor].sprints;
    return true;
}

static void apply_sprint(struct model *m, const struct op *op)
{
    m->process[op->actor].sprints = op->how;
}

/* What a child of `parent` has inherited. */
static void inherit(struct process *child, const struct process *parent)
{
    *child = *parent;
    child->threads = child->churns_for = child->queued = 0;
    child->sprints = false;
    child->hours = child->every = 0;
    memset(child->timer, 0, sizeof child->timer);
    for (int i = 0; i < PAGES; i++) {
        struct page *p = &child->page[i];
        if (p->flags & (BUSY | NOT_FORKED)) {
            *p = (struct page){.kind = NONE};
        } else if (p->flags & WIPED) {
            let_go(p);
            p->flags &= ~GUARD;
        }
    }
}

/* In the child, first. */
static void leave_behind(void)
{
    for (int i = 0; i < AREA; i++)
        if (now.process[me].page[i].flags & BUSY)
            CHECK(munmap(address(i), PAGE) == 0);
}

static uint64_t perform_sprint(const struct model *m, const struct op *op)
{
    (void)m;
    if (op->how) {
        control->stop_sprinting[me] = 0;
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            static struct process mine;
            leave_behind();
            inherit(&mine, &now.process[me]);
            now.process[me] = mine;
            sprint();
        }
        control->sprinter[me] = child;
        return 1;
    }
    int status = 0;
    __atomic_store_n(&control->stop_sprinting[me], 1, __ATOMIC_SEQ_CST);
    CHECK(waitpid(control->sprinter[me], &status, 0) == control->sprinter[me]);
    if (status != 0)
        WRONG("the child beside the others ended with status %x", status);
    return 0;
}

static bool choose_fork(const struct model *m, struct op *op)
{
    for (op->to = 1; op->to < PROCESSES; op->to++)
        if (!m->process[op->to].alive && !m->process[op->to].zombie)
            return true;
    return false;
}

static void apply_fork(struct model *m, const struct op *op)
{
    struct process *child = &m->process[op->to];
    inherit(child, &m->process[op->actor]);
    child->parent = op->actor;
    for (int i = 0; i < FDS; i++)
        if (child->fd[i] >= 0)
            m->description[child->fd[i]].users++;
}

static uint64_t perform_fork(const struct model *m, const struct op *op)
{
    (void)m;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        leave_behind();
        me = op->to;
        serve();
    }
    control->pid[op->to] = child;
    return 0;
}

static bool choose_exit(const struct model *m, struct op *op)
{
    const struct process *self = &m->process[op->actor];
    op->how = dice(op, 2);
    return op->actor && !self->sprints && !self->churns_for;
}

static void apply_exit(struct model *m, const struct op *op)
{
    struct process *self = &m->process[op->actor];
    for (int i = 0; i < FDS; i++)
        shut(m, op->actor, i);
    self->alive = false;
    self->zombie = self->parent >= 0 && m->process[self->parent].alive;
    self->queued = op->how ? 0 : 1 + op->step % 100;
    for (int i = 0; i < PROCESSES; i++)
        if (m->process[i].parent == op->actor) {
            m->process[i].parent = -1;
            m->process[i].zombie = false;
        }
}

static uint64_t perform_exit(const struct model *m, const struct op *op)
{
    (void)m;
    answer(op->step, 0);
    if (op->how)
        kill(getpid(), SIGKILL);
    _exit(1 + op->step % 100);
}

static bool choose_wait(const struct model *m, struct op *op)
{
    for (op->to = 1; op->to < PROCESSES; op->to++)
        if (m->process[op->to].zombie && m->process[op->to].parent == op->actor)
            return true;
    return false;
}

static void apply_wait(struct model *m, const struct op *op)
{
    memset(&m->process[op->to], 0, sizeof(struct process));
}

static uint64_t perform_wait(const struct model *m, const struct op *op)
{
    int status = 0, code = m->process[op->to].queued;
    CHECK(waitpid(control->pid[op->to], &status, 0) == control->pid[op->to]);
    if (status != (code ? code << 8 : SIGKILL))
        WRONG("process %d ended with status %x and not %d", op->to, status, code);
    return status;
}
#endif
