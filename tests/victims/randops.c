/* randops SEED STEPS [BUG]: random operations on memory, descriptors, signals, processes and threads, one a line.
 *
 *      root ──order (step)──▶ the process whose turn it is ──answer──▶ root ──line──▶ standard output
 *
 * Which operation step n is, and who does it, follows from the seed and the model of step n - 1, which whoever wants to know
 * makes anew (randops.h). Beside this, threads and children of their own go on without being asked. Before step n the program
 * waits as long as there is a file stop-n. BUG: what one of ckptbpf's would have done to it happens halfway
 * (randops_damage.h), and is to be found. */
#include "randops_damage.h"
#include "randops_tasks.h"

static int orders[PROCESSES][2], answers[2];

static bool choose_any(const struct model *m, struct op *op)
{
    (void)m, (void)op;
    return true;
}

static uint64_t perform_check(const struct model *m, const struct op *op)
{
    (void)op;
    return check_all(m);
}

static const struct row ROWS[] = {
    {"map", 16, choose_map, apply_map, perform_map},
    {"unmap", 6, choose_unmap, apply_unmap, perform_unmap},
    {"move", 8, choose_move, apply_move, perform_move},
    {"protect", 6, choose_protect, apply_protect, perform_protect},
    {"brk", 3, choose_brk, apply_brk, perform_brk},
    {"write", 24, choose_write, apply_write, perform_write},
    {"look", 8, choose_look, apply_nothing, perform_look},
    {"drop", 8, choose_drop, apply_drop, perform_advice},
    {"free", 3, choose_free, apply_free, perform_advice},
    {"remove", 4, choose_remove, apply_remove, perform_advice},
    {"flag", 4, choose_flag, apply_flag, perform_advice},
    {"guard", 4, choose_guard, apply_guard, perform_guard},
    {"populate", 3, choose_populate, apply_populate, perform_advice},
    {"cold", 2, choose_cold, apply_nothing, perform_advice},
    {"open", 6, choose_open, apply_open, perform_open},
    {"dup", 3, choose_dup, apply_dup, perform_dup},
    {"close", 3, choose_close, apply_close, perform_close},
    {"seek", 3, choose_seek, apply_seek, perform_seek},
    {"put", 8, choose_put, apply_put, perform_put},
    {"get", 4, choose_get, apply_get, perform_get},
    {"cut", 3, choose_cut, apply_cut, perform_cut},
    {"punch", 4, choose_punch, apply_punch, perform_punch},
    {"fill", 4, choose_fill, apply_fill, perform_fill},
    {"drain", 4, choose_drain, apply_drain, perform_drain},
    {"count", 2, choose_count, apply_count, perform_count},
    {"send", 6, choose_send, apply_send, perform_send},
    {"take", 3, choose_take, apply_take, perform_take},
    {"handle", 2, choose_take, apply_handle, perform_handle},
    {"mask", 2, choose_mask, apply_mask, perform_mask},
    {"timer", 2, choose_timer, apply_timer, perform_timer},
    {"keep", 4, choose_keep, apply_keep, perform_keep},
    {"ring", 2, choose_any, apply_nothing, perform_ring},
    {"thread", 3, choose_thread, apply_thread, perform_thread},
    {"churn", 2, choose_churn, apply_churn, perform_churn},
    {"sprint", 2, choose_sprint, apply_sprint, perform_sprint},
    {"fork", 5, choose_fork, apply_fork, perform_fork},
    {"exit", 3, choose_exit, apply_exit, perform_exit},
    {"wait", 4, choose_wait, apply_wait, perform_wait},
    {"check", 6, choose_any, apply_nothing, perform_check},
};
enum { ROWS_COUNT = sizeof ROWS / sizeof *ROWS };
static const struct row *const CHECKED = &ROWS[ROWS_COUNT - 1];

/* What any thread of a process may do. */
static bool anybody_may(const struct row *row)
{
    return row < &ROWS[25];
}

static struct op operation(const struct model *m)
{
    int all = 0, step = m->step + 1;
    for (int i = 0; i < ROWS_COUNT; i++)
        all += ROWS[i].weight;
    uint64_t random = mix(mix(mix(99, seed), step), 1) | 1;
    for (;;) {
        struct op op = {.step = step, .random = next_random(&random) | 1};
        op.actor = dice(&op, PROCESSES);
        if (!m->process[op.actor].alive)
            continue;
        int at = dice(&op, all);
        for (op.row = ROWS; at >= op.row->weight; op.row++)
            at -= op.row->weight;
        op.thread = anybody_may(op.row) ? dice(&op, m->process[op.actor].threads + 1) : 0;
        if (op.row->choose(m, &op))
            return op;
    }
}

/* What there is before step `next`, from the seed alone. */
static void make_model(struct model *m, int next)
{
    memset(m, 0, sizeof *m);
    m->objects = NAMED + 1;
    for (int i = 0; i <= NAMED; i++) {
        m->object[i] = (struct object){.kind = i < NAMED ? FILE_NAMED : FILE_MAPPED,
                                       .cells = i < NAMED ? 20 + 30 * i : OBJECT_CELLS};
        for (int cell = 0; cell < m->object[i].cells; cell++)
            m->object[i].cell[cell] = 0xf0000000u | i << 12 | cell;
    }
    for (int i = 0; i < PROCESSES; i++)
        m->process[i].parent = -1;
    m->process[0].alive = true;
    memset(m->process[0].fd, -1, sizeof m->process[0].fd);
    while (m->step + 1 < next) {
        struct op op = operation(m);
        op.row->apply(m, &op);
        m->step = op.step;
    }
}

static uint64_t perform(const struct op *op)
{
    return op->thread ? by_helper(&helpers[op->thread - 1], op) : op->row->perform(&now, op);
}

/* Steps below 0 are checks of everything, before the end. */
static void do_step(int step, uint64_t *result)
{
    make_model(&now, step < 0 ? -step : step);
    struct op op = operation(&now);
    if (step < 0)
        op = (struct op){.row = CHECKED, .step = -step, .actor = me};
    *result = perform(&op);
}

static void answer(int step, uint64_t result)
{
    uint64_t words[2] = {step, result};
    write_all(answers[1], words, sizeof words);
}

static void read_all(int fd, void *to, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = read(fd, (char *)to + done, n - done);
        CHECK(got > 0);
        done += got;
    }
}

__attribute__((noreturn)) static void serve(void)
{
    for (;;) {
        int step;
        uint64_t result;
        read_all(orders[me][0], &step, sizeof step);
        do_step(step, &result);
        answer(step, result);
    }
}

static uint64_t order(int process, int step)
{
    uint64_t words[2];
    if (process == 0) {
        do_step(step, &words[1]);
        return words[1];
    }
    write_all(orders[process][1], &step, sizeof step);
    read_all(answers[0], words, sizeof words);
    CHECK((int)words[0] == step);
    return words[1];
}

/* What lasts: the files, of which those that grow stay open, and one that stays mapped. */
static void set_up(void)
{
    static char content[OBJECT_CELLS * CELL];
    char name[32];
    make_model(&now, 1);
    for (int i = 0; i <= NAMED; i++) {
        const struct object *o = &now.object[i];
        for (int cell = 0; cell < o->cells; cell++)
            fill_cell(content + cell * CELL, o->cell[cell]);
        name_of(i, name);
        int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
        CHECK(fd >= 0);
        write_all(fd, content, (size_t)o->cells * CELL);
        if (i == MAPPED)
            CHECK(mmap(NULL, (size_t)o->cells * CELL, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED);
        else
            CHECK(dup2(fd, 60 + i) == 60 + i);
        close(fd);
    }
    area = (char *)0x300000000000;
    char *room = mmap(area, (size_t)AREA * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(room == area && munmap(area, (size_t)AREA * PAGE) == 0);
    /* What malloc(3) needs is there from now on: the break is ours. */
    CHECK(mallopt(M_TOP_PAD, 1 << 20) && mallopt(M_TRIM_THRESHOLD, 1 << 30));
    void *volatile first = malloc(100);
    free(first);
    char *end = sbrk(0);
    CHECK(sbrk((PAGE - (uintptr_t)end % PAGE) % PAGE) != (void *)-1);
    heap = sbrk(0);
    control = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(control != MAP_FAILED && pipe(answers) == 0);
    control->pid[0] = getpid();
    for (int i = 1; i < PROCESSES; i++)
        CHECK(pipe(orders[i]) == 0);
    handle_signals();
}

static void wait_at(int step)
{
    char name[32];
    sprintf(name, "stop-%d", step);
    while (access(name, F_OK) == 0)
        sleep_us(1000);
}

static void end_all(void)
{
    for (int i = 1; i < PROCESSES; i++)
        if (now.process[i].alive)
            kill(control->pid[i], SIGKILL);
    for (int i = 0; i < PROCESSES; i++)
        if (now.process[i].alive && now.process[i].sprints)
            kill(control->sprinter[i], SIGKILL);
    while (wait(NULL) > 0)
        ;
}

int main(int argc, char **argv)
{
    CHECK(argc >= 3);
    seed = atol(argv[1]);
    int steps = atoi(argv[2]);
    const char *bug = argc > 3 ? argv[3] : NULL;
    set_up();
    for (int step = 1; step <= steps; step++) {
        wait_at(step);
        make_model(&now, step);
        if (bug && step > steps / 2 && damage(&now, bug))
            bug = NULL;
        struct op op = operation(&now);
        uint64_t result = order(op.actor, step);
        say(1, "%d %s by %d.%d of %d %d: %016lx\n", step, op.row->name, op.actor, op.thread, op.from, op.count, result);
    }
    wait_at(steps + 1);
    for (int i = 0; i < PROCESSES; i++) {
        make_model(&now, steps + 1);
        if (now.process[i].alive)
            say(1, "process %d: %016lx\n", i, order(i, -(steps + 1)));
    }
    make_model(&now, steps + 1);
    end_all();
    say(1, "seed %ld: all right\n", seed);
    return 0;
}
