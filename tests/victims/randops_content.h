/* Random operations on what is in memory: writing it in every way, dropping it, and looking at it. */
#ifndef RANDOPS_CONTENT_H
#define RANDOPS_CONTENT_H
#include "randops_check.h"
#include "randops_memory.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
enum { GUARD_INSTALL = 102, GUARD_REMOVE = 103 };

/* Writes `fd` cells from cell `to` of the run on. */
enum { STORED, READ_IN, FORCED, BY_PROCESS_VM, ZEROED = 9 };

static bool choose_write(const struct model *m, struct op *op)
{
    static const int hows[] = {STORED, STORED, STORED, READ_IN, FORCED, BY_PROCESS_VM, ZEROED};
    op->how = hows[dice(op, sizeof hows / sizeof *hows)];
    if (!find(m, op, op->how == FORCED ? is_forcible : is_writable, 0, PAGES, 10))
        return false;
    bool whole = dice(op, 2);
    /* What the rest of a freed page is nobody knows. */
    for (int i = 0; i < op->count; i++)
        whole |= m->process[op->actor].page[op->from + i].flags & FREED;
    op->to = whole ? 0 : dice(op, CELLS);
    op->fd = whole ? op->count * CELLS : 1 + (int)dice(op, op->count * CELLS - op->to);
    return true;
}

static void apply_write(struct model *m, const struct op *op)
{
    for (int i = op->to; i < op->to + op->fd; i++) {
        struct page *p = &pages_of(m, op)[op->from + i / CELLS];
        take_own(m, p);
        p->flags &= ~FREED;
        if (p->kind == SHARED)
            m->object[p->object].cell[p->at * CELLS + i % CELLS] = tag_of(op, i - op->to);
        else
            p->cell[i % CELLS] = tag_of(op, i - op->to);
    }
}

static uint64_t perform_write(const struct model *m, const struct op *op)
{
    (void)m;
    static char content[10 * PAGE];
    char *to = address(op->from) + op->to * CELL;
    size_t n = (size_t)op->fd * CELL;
    for (int i = 0; i < op->fd; i++)
        fill_cell(content + i * CELL, tag_of(op, i));
    if (op->how == STORED || op->how == ZEROED) {
        /* One after the other: pages of the run may be the same page, and memcpy(3) has an order of its own. */
        for (int i = 0; i < op->fd; i++)
            memcpy(to + i * CELL, content + i * CELL, CELL);
    } else if (op->how == READ_IN) {
        int ends[2];
        CHECK(pipe2(ends, O_CLOEXEC) == 0);
        write_all(ends[1], content, n);
        for (size_t done = 0; done < n;) {
            ssize_t got = read(ends[0], to + done, n - done);
            CHECK(got > 0 || errno == EINTR);
            done += got > 0 ? got : 0;
        }
        close(ends[0]), close(ends[1]);
    } else if (op->how == FORCED) {
        /* What is yet to arrive it would not write to. */
        for (int i = 0; i < op->count; i++)
            (void)*(volatile char *)address(op->from + i);
        int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
        CHECK(fd >= 0);
        CHECK(pwrite(fd, content, n, (off_t)to) == (ssize_t)n);
        close(fd);
    } else {
        struct iovec from = {content, n}, into = {to, n};
        CHECK(process_vm_writev(getpid(), &from, 1, &into, 1, 0) == (ssize_t)n);
    }
    return 0;
}

static bool choose_look(const struct model *m, struct op *op)
{
    return find(m, op, is_mapped, 0, PAGES, 24);
}

static void apply_nothing(struct model *m, const struct op *op)
{
    (void)m, (void)op;
}

static uint64_t perform_look(const struct model *m, const struct op *op)
{
    return check_pages(m, op->from, op->count);
}

/* madvise(2), `how` being the advice. */
static uint64_t perform_advice(const struct model *m, const struct op *op)
{
    (void)m;
    if (madvise(address(op->from), (size_t)op->count * PAGE, op->how) != 0)
        fail("seed %ld, step %d: madvise %d of %d pages at page %d", seed, op->step, op->how, op->count, op->from);
    return 0;
}

static bool choose_drop(const struct model *m, struct op *op)
{
    op->how = MADV_DONTNEED;
    return find(m, op, is_mapped, 0, PAGES, 12);
}

static void apply_drop(struct model *m, const struct op *op)
{
    for (int i = 0; i < op->count; i++)
        if (pages_of(m, op)[op->from + i].kind != SHARED)
            let_go(&pages_of(m, op)[op->from + i]);
}

static bool choose_free(const struct model *m, struct op *op)
{
    op->how = MADV_FREE;
    return find(m, op, is_anonymous, 0, PAGES, 12);
}

static void apply_free(struct model *m, const struct op *op)
{
    for (int i = 0; i < op->count; i++)
        if (!(pages_of(m, op)[op->from + i].flags & GUARD))
            pages_of(m, op)[op->from + i].flags |= FREED;
}

static bool is_punchable(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    return is_mapped(m, op, p, first) && p->kind == SHARED && !(p->flags & NO_WRITE);
}

static bool choose_remove(const struct model *m, struct op *op)
{
    op->how = MADV_REMOVE;
    return find(m, op, is_punchable, 0, AREA, 8);
}

static void punch(struct model *m, int object, int page)
{
    if (page * CELLS < m->object[object].cells)
        memset(&m->object[object].cell[page * CELLS], 0, CELLS * sizeof(uint32_t));
}

static void apply_remove(struct model *m, const struct op *op)
{
    for (int i = 0; i < op->count; i++) {
        const struct page *p = &pages_of(m, op)[op->from + i];
        punch(m, p->object, p->at);
    }
}

/* Advice that belongs to the mapping. */
static bool choose_flag(const struct model *m, struct op *op)
{
    static const int advice[] = {MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK,
                                 MADV_KEEPONFORK};
    op->how = advice[dice(op, sizeof advice / sizeof *advice)];
    bool wipes = op->how == MADV_WIPEONFORK || op->how == MADV_KEEPONFORK;
    /* Pages that are yet to arrive in a child of a child have their limits, too. */
    if (op->how == MADV_WIPEONFORK && op->actor)
        op->how = MADV_KEEPONFORK;
    return find(m, op, wipes ? is_anonymous : is_mapped, 0, AREA, 10);
}

static void apply_flag(struct model *m, const struct op *op)
{
    apart(m, op);
    for (int i = 0; i < op->count; i++) {
        uint8_t *flags = &pages_of(m, op)[op->from + i].flags;
        switch (op->how) {
        case MADV_HUGEPAGE: *flags = (*flags & ~NO_HUGE) | HUGE; break;
        case MADV_NOHUGEPAGE: *flags = (*flags & ~HUGE) | NO_HUGE; break;
        case MADV_DONTFORK: *flags |= NOT_FORKED; break;
        case MADV_DOFORK: *flags &= ~NOT_FORKED; break;
        case MADV_WIPEONFORK: *flags |= WIPED; break;
        case MADV_KEEPONFORK: *flags &= ~WIPED; break;
        }
    }
}

/* Not where tracking gets into the way (docs/limitations.md): private pages of files, and pages that are yet to arrive. */
static bool is_guardable(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    bool may_come = p->flags & GUARD || (p->protection & PROT_READ && !beyond(m, p));
    return is_mapped(m, op, p, first) && p->kind != PRIVATE && may_come;
}

static bool choose_guard(const struct model *m, struct op *op)
{
    op->how = dice(op, 2) ? GUARD_INSTALL : GUARD_REMOVE;
    return find(m, op, is_guardable, 0, AREA, 6);
}

static uint64_t perform_guard(const struct model *m, const struct op *op)
{
    for (int i = 0; i < op->count; i++)
        if (!(m->process[op->actor].page[op->from + i].flags & GUARD))
            (void)*(volatile char *)address(op->from + i);
    return perform_advice(m, op);
}

static void apply_guard(struct model *m, const struct op *op)
{
    for (int i = 0; i < op->count; i++) {
        struct page *p = &pages_of(m, op)[op->from + i];
        if (op->how == GUARD_REMOVE) {
            p->flags &= ~GUARD;
            continue;
        }
        if (p->kind != SHARED)
            let_go(p);
        p->flags |= GUARD;
    }
}

static bool choose_populate(const struct model *m, struct op *op)
{
    op->how = dice(op, 2) ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
    return find(m, op, op->how == MADV_POPULATE_READ ? is_readable : is_writable, 0, PAGES, 12);
}

static void apply_populate(struct model *m, const struct op *op)
{
    for (int i = 0; i < op->count && op->how == MADV_POPULATE_WRITE; i++)
        take_own(m, &pages_of(m, op)[op->from + i]);
}

/* Nothing that the program could see. */
static bool choose_cold(const struct model *m, struct op *op)
{
    op->how = dice(op, 2) ? MADV_COLD : MADV_PAGEOUT;
    return find(m, op, is_mapped, 0, PAGES, 16);
}
#endif
