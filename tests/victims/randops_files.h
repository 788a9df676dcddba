/* Random operations on descriptors: files, memory of memfd_create(2), pipes, counters.
 *
 * A file with a name only grows, as all that a restart takes back is what was added (docs/cli.md), or it is mapped and stays
 * as it is; one is mapped shared all the time, which makes it memory. Files without a name, and memory, are changed in every
 * way. */
#ifndef RANDOPS_FILES_H
#define RANDOPS_FILES_H
#include "randops_content.h"

enum { NEW_MEMFD, NEW_TMPFILE, NEW_UNLINKED, NEW_PIPE, NEW_EVENTS, TO_APPEND, TO_READ, TO_CHANGE, WAYS };

static int free_number(const struct model *m, struct op *op, int besides)
{
    const int8_t *fd = m->process[op->actor].fd;
    for (int i = 0, at = dice(op, FDS); i < FDS; i++, at = (at + 1) % FDS)
        if (fd[at] < 0 && at != besides)
            return at;
    return -1;
}

static int new_description(struct model *m, struct description d)
{
    for (int i = 0; i < DESCRIPTIONS; i++)
        if (!m->description[i].users) {
            m->description[i] = d;
            return i;
        }
    abort();
}

static bool has_room(const struct model *m)
{
    int used = 0;
    for (int i = 0; i < DESCRIPTIONS; i++)
        used += m->description[i].users != 0;
    return used + 2 <= DESCRIPTIONS && m->pipes < DESCRIPTIONS;
}

static bool choose_open(const struct model *m, struct op *op)
{
    op->how = dice(op, WAYS);
    op->fd = free_number(m, op, -1);
    op->to = free_number(m, op, op->fd);
    op->count = (1 + dice(op, 10)) * CELLS;
    op->object = op->how == TO_CHANGE ? MAPPED : op->how == TO_APPEND ? GROWING : (int)dice(op, NAMED);
    return op->fd >= 0 && op->to >= 0 && has_room(m) && (op->how > NEW_UNLINKED || m->objects < OBJECTS);
}

static void apply_open(struct model *m, const struct op *op)
{
    int8_t *fd = m->process[op->actor].fd;
    struct description d = {.object = op->object, .users = 1};
    if (op->how <= NEW_UNLINKED) {
        d.kind = OF_OBJECT;
        d.object = m->objects++;
        m->object[d.object] = (struct object){.kind = op->how == NEW_MEMFD ? MEMFD : UNNAMED, .cells = op->count};
    } else if (op->how == NEW_PIPE) {
        d.object = m->pipes++;
        d.kind = PIPE_OUT;
        fd[op->fd] = new_description(m, d);
        d.kind = PIPE_IN;
        fd[op->to] = new_description(m, d);
        return;
    } else {
        static const int kinds[] = {[NEW_EVENTS] = EVENTS, [TO_APPEND] = APPENDING, [TO_READ] = READING,
                                    [TO_CHANGE] = OF_OBJECT};
        d.kind = kinds[op->how];
    }
    fd[op->fd] = new_description(m, d);
}

/* `raw` gets its number. */
static void settle(int raw, int number)
{
    CHECK(raw >= 0 && dup3(raw, FIRST_FD + number, 0) == FIRST_FD + number && close(raw) == 0);
}

static uint64_t perform_open(const struct model *m, const struct op *op)
{
    static const int flags[] = {[TO_APPEND] = O_WRONLY | O_APPEND, [TO_READ] = O_RDONLY, [TO_CHANGE] = O_RDWR};
    char name[32];
    int raw, ends[2];
    (void)m;
    if (op->how == NEW_PIPE) {
        CHECK(pipe(ends) == 0);
        settle(ends[0], op->fd);
        settle(ends[1], op->to);
        return 0;
    }
    if (op->how == NEW_MEMFD)
        raw = memfd_create("random", 0);
    else if (op->how == NEW_TMPFILE)
        raw = open(".", O_TMPFILE | O_RDWR, 0600);
    else if (op->how == NEW_EVENTS)
        raw = eventfd(0, 0);
    else if (op->how == NEW_UNLINKED) {
        sprintf(name, "gone%d", op->step);
        raw = open(name, O_RDWR | O_CREAT, 0600);
        CHECK(unlink(name) == 0);
    } else {
        name_of(op->object, name);
        raw = open(name, flags[op->how]);
    }
    if (op->how <= NEW_UNLINKED)
        CHECK(ftruncate(raw, (off_t)op->count * CELL) == 0);
    settle(raw, op->fd);
    return 0;
}

/* A descriptor of one of these kinds, a bit each. */
static bool some_descriptor(const struct model *m, struct op *op, int kinds)
{
    for (int i = 0, at = dice(op, FDS); i < FDS; i++, at = (at + 1) % FDS) {
        int index = m->process[op->actor].fd[at];
        if (index >= 0 && kinds >> m->description[index].kind & 1) {
            op->fd = at;
            op->object = m->description[index].object;
            return true;
        }
    }
    return false;
}

static struct description *description_of(struct model *m, const struct op *op)
{
    return &m->description[m->process[op->actor].fd[op->fd]];
}

static bool choose_dup(const struct model *m, struct op *op)
{
    op->to = dice(op, FDS);
    return some_descriptor(m, op, -1) && op->to != op->fd;
}

static void shut(struct model *m, int process, int number)
{
    int8_t *fd = &m->process[process].fd[number];
    if (*fd >= 0)
        m->description[*fd].users--;
    *fd = -1;
}

static void apply_dup(struct model *m, const struct op *op)
{
    int8_t *fd = m->process[op->actor].fd;
    m->description[fd[op->fd]].users++;
    shut(m, op->actor, op->to);
    fd[op->to] = fd[op->fd];
}

static uint64_t perform_dup(const struct model *m, const struct op *op)
{
    (void)m;
    CHECK(dup2(FIRST_FD + op->fd, FIRST_FD + op->to) == FIRST_FD + op->to);
    return 0;
}

static bool choose_close(const struct model *m, struct op *op)
{
    return some_descriptor(m, op, -1);
}

static void apply_close(struct model *m, const struct op *op)
{
    shut(m, op->actor, op->fd);
}

static uint64_t perform_close(const struct model *m, const struct op *op)
{
    (void)m;
    CHECK(close(FIRST_FD + op->fd) == 0);
    return 0;
}

static bool choose_seek(const struct model *m, struct op *op)
{
    op->to = dice(op, OBJECT_CELLS);
    return some_descriptor(m, op, 1 << OF_OBJECT | 1 << READING);
}

static void apply_seek(struct model *m, const struct op *op)
{
    description_of(m, op)->position = op->to;
}

static uint64_t perform_seek(const struct model *m, const struct op *op)
{
    (void)m;
    CHECK(lseek(FIRST_FD + op->fd, (off_t)op->to * CELL, SEEK_SET) == (off_t)op->to * CELL);
    return 0;
}

/* write(2) of `count` cells at cell `to`, the position or the end. */
static bool choose_put(const struct model *m, struct op *op)
{
    if (!some_descriptor(m, op, 1 << OF_OBJECT | 1 << APPENDING))
        return false;
    const struct description *d = &m->description[m->process[op->actor].fd[op->fd]];
    const struct object *o = &m->object[d->object];
    op->to = d->kind == APPENDING ? o->cells : d->position;
    op->count = 1 + dice(op, 20);
    int end = o->kind == FILE_MAPPED ? o->cells : OBJECT_CELLS;
    op->count = op->to + op->count > end ? end - op->to : op->count;
    return op->count > 0;
}

static void apply_put(struct model *m, const struct op *op)
{
    struct description *d = description_of(m, op);
    struct object *o = &m->object[d->object];
    for (int i = 0; i < op->count; i++)
        o->cell[op->to + i] = tag_of(op, i);
    if (op->to + op->count > o->cells)
        o->cells = op->to + op->count;
    if (d->kind == OF_OBJECT)
        d->position += op->count;
}

static uint64_t perform_put(const struct model *m, const struct op *op)
{
    static char content[20 * CELL];
    (void)m;
    for (int i = 0; i < op->count; i++)
        fill_cell(content + i * CELL, tag_of(op, i));
    write_all(FIRST_FD + op->fd, content, (size_t)op->count * CELL);
    return 0;
}

static bool choose_get(const struct model *m, struct op *op)
{
    if (!some_descriptor(m, op, 1 << OF_OBJECT | 1 << READING))
        return false;
    const struct description *d = &m->description[m->process[op->actor].fd[op->fd]];
    int left = m->object[d->object].cells - d->position;
    op->to = d->position;
    op->count = 1 + dice(op, 20);
    op->count = left < op->count ? left : op->count;
    return op->count > 0;
}

static void apply_get(struct model *m, const struct op *op)
{
    description_of(m, op)->position += op->count;
}

static uint64_t perform_get(const struct model *m, const struct op *op)
{
    static char content[20 * CELL];
    CHECK(read(FIRST_FD + op->fd, content, (size_t)op->count * CELL) == (ssize_t)op->count * CELL);
    for (int i = 0; i < op->count; i++)
        if (wrong_word(content + i * CELL, m->object[op->object].cell[op->to + i]) >= 0)
            WRONG("descriptor %d: read a wrong cell %d", FIRST_FD + op->fd, op->to + i);
    return *(uint64_t *)(content + 8);
}

static bool changes_freely(const struct model *m, const struct op *op)
{
    return m->object[op->object].kind == MEMFD || m->object[op->object].kind == UNNAMED;
}

static bool choose_cut(const struct model *m, struct op *op)
{
    op->to = dice(op, OBJECT_CELLS);
    return some_descriptor(m, op, 1 << OF_OBJECT) && changes_freely(m, op);
}

static void apply_cut(struct model *m, const struct op *op)
{
    struct object *o = &m->object[op->object];
    for (int i = op->to; i < OBJECT_CELLS; i++)
        o->cell[i] = 0;
    o->cells = op->to;
    /* Changed private pages go with what they were changed from. */
    for (int process = 0; process < PROCESSES; process++)
        for (int i = 0; i < AREA; i++) {
            struct page *p = &m->process[process].page[i];
            if (p->kind == PRIVATE && p->object == op->object && p->at * CELLS >= op->to)
                let_go(p);
        }
}

static uint64_t perform_cut(const struct model *m, const struct op *op)
{
    (void)m;
    CHECK(ftruncate(FIRST_FD + op->fd, (off_t)op->to * CELL) == 0);
    return 0;
}

static bool choose_punch(const struct model *m, struct op *op)
{
    op->from = dice(op, OBJECT_PAGES);
    op->count = 1 + dice(op, 4);
    op->count = op->from + op->count > OBJECT_PAGES ? OBJECT_PAGES - op->from : op->count;
    return some_descriptor(m, op, 1 << OF_OBJECT);
}

static void apply_punch(struct model *m, const struct op *op)
{
    for (int i = 0; i < op->count; i++)
        punch(m, op->object, op->from + i);
}

static uint64_t perform_punch(const struct model *m, const struct op *op)
{
    (void)m;
    CHECK(fallocate(FIRST_FD + op->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)op->from * PAGE,
                    (off_t)op->count * PAGE) == 0);
    return 0;
}

/* Byte `at` of what goes through a pipe. */
static uint8_t piped(int number, int at)
{
    return tagged(0xff000000u | number, at / 8) >> at % 8 * 8;
}

static bool choose_fill(const struct model *m, struct op *op)
{
    if (!some_descriptor(m, op, 1 << PIPE_IN))
        return false;
    const struct pipe_state *p = &m->pipe[op->object];
    bool is_read = false;
    for (int i = 0; i < DESCRIPTIONS; i++) {
        const struct description *d = &m->description[i];
        is_read |= d->users && d->kind == PIPE_OUT && d->object == op->object;
    }
    op->from = p->written;
    op->count = 1 + dice(op, 5000);
    return is_read && p->written - p->read + op->count < 30000;
}

static void apply_fill(struct model *m, const struct op *op)
{
    m->pipe[op->object].written += op->count;
}

static uint64_t perform_fill(const struct model *m, const struct op *op)
{
    static uint8_t content[5000];
    (void)m;
    for (int i = 0; i < op->count; i++)
        content[i] = piped(op->object, op->from + i);
    CHECK(write(FIRST_FD + op->fd, content, op->count) == op->count);
    return 0;
}

static bool choose_drain(const struct model *m, struct op *op)
{
    if (!some_descriptor(m, op, 1 << PIPE_OUT))
        return false;
    const struct pipe_state *p = &m->pipe[op->object];
    op->from = p->read;
    op->count = p->written > p->read ? 1 + (int)dice(op, p->written - p->read) : 0;
    return op->count > 0;
}

static void apply_drain(struct model *m, const struct op *op)
{
    m->pipe[op->object].read += op->count;
}

static uint64_t perform_drain(const struct model *m, const struct op *op)
{
    static uint8_t content[30000];
    (void)m;
    CHECK(read(FIRST_FD + op->fd, content, op->count) == op->count);
    for (int i = 0; i < op->count; i++)
        if (content[i] != piped(op->object, op->from + i))
            WRONG("descriptor %d: byte %d is %02x", FIRST_FD + op->fd, op->from + i, content[i]);
    return op->count;
}

static bool choose_count(const struct model *m, struct op *op)
{
    if (!some_descriptor(m, op, 1 << EVENTS))
        return false;
    op->count = m->description[m->process[op->actor].fd[op->fd]].position;
    op->how = op->count && dice(op, 2);
    op->to = 1 + dice(op, 1000);
    return true;
}

static void apply_count(struct model *m, const struct op *op)
{
    struct description *d = description_of(m, op);
    d->position = op->how ? 0 : d->position + op->to;
}

static uint64_t perform_count(const struct model *m, const struct op *op)
{
    uint64_t value = op->to;
    (void)m;
    if (op->how)
        CHECK(read(FIRST_FD + op->fd, &value, 8) == 8 && value == (uint64_t)op->count);
    else
        CHECK(write(FIRST_FD + op->fd, &value, 8) == 8);
    return value;
}
#endif
