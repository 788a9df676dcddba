/* Random operations on an address space: mappings. */
#ifndef RANDOPS_MEMORY_H
#define RANDOPS_MEMORY_H
#include "randops.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static const int PROTECTIONS[] = {
    PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
    PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC,
};

static int some_protection(struct op *op)
{
    return PROTECTIONS[dice(op, sizeof PROTECTIONS / sizeof *PROTECTIONS)];
}

static void name_of(int object, char *name)
{
    sprintf(name, "file%d", object);
}

/* The page holds what it shows, of its own. */
static void take_own(struct model *m, struct page *p)
{
    if (p->kind != PRIVATE || p->own)
        return;
    for (int i = 0; i < CELLS; i++)
        p->cell[i] = cell_of(m, p, i);
    p->own = true;
}

/* The page is zeros, or its object's, again. */
static void let_go(struct page *p)
{
    memset(p->cell, 0, sizeof p->cell);
    p->own = false;
    p->flags &= ~FREED;
}

/* mmap(2) over what is free, or over anything. */
enum { NEW_ANONYMOUS, NEW_SHARED, OBJECT_SHARED, OBJECT_PRIVATE };

/* An object that the actor can map: by name or by one of its descriptors. */
static bool some_object(const struct model *m, struct op *op)
{
    op->object = 1 + dice(op, NAMED);
    op->fd = -1;
    if (dice(op, 2) && (op->object != MAPPED || op->how == OBJECT_SHARED))
        return true;
    op->object = 1 + dice(op, NAMED - 1);
    for (int i = 0, fd = dice(op, FDS); i < FDS; i++, fd = (fd + 1) % FDS) {
        int description = m->process[op->actor].fd[fd];
        if (description < 0 || m->description[description].kind != OF_OBJECT)
            continue;
        /* What changes through a descriptor shows in private pages that nobody has written yet. */
        int object = m->description[description].object, kind = m->object[object].kind;
        if ((kind == UNNAMED || kind == FILE_MAPPED) && op->how == OBJECT_PRIVATE)
            continue;
        op->object = object;
        op->fd = fd;
        return true;
    }
    return true;
}

static bool choose_map(const struct model *m, struct op *op)
{
    if (!find(m, op, dice(op, 4) ? is_free : is_idle, 0, AREA, 20))
        return false;
    op->protection = some_protection(op);
    int how = dice(op, 8);
    op->how = how < 4 ? NEW_ANONYMOUS : how < 5 ? NEW_SHARED : how < 6 ? OBJECT_SHARED : OBJECT_PRIVATE;
    if (op->how == NEW_SHARED)
        return m->objects < OBJECTS;
    if (op->how == NEW_ANONYMOUS)
        return true;
    some_object(m, op);
    op->to = dice(op, OBJECT_PAGES - op->count + 1);
    if (op->how == OBJECT_SHARED && m->object[op->object].kind == FILE_NAMED)
        op->protection &= ~PROT_WRITE;
    return true;
}

static void apply_map(struct model *m, const struct op *op)
{
    int object = op->how == NEW_SHARED ? m->objects++ : op->object;
    if (op->how == NEW_SHARED)
        m->object[object] = (struct object){.kind = ANONYMOUS, .cells = op->count * CELLS};
    uint16_t mapping = ++m->mappings;
    for (int i = 0; i < op->count; i++) {
        struct page *p = &pages_of(m, op)[op->from + i];
        *p = (struct page){.kind = ANON, .protection = op->protection, .mapping = mapping};
        if (op->how == NEW_ANONYMOUS)
            continue;
        p->kind = op->how == OBJECT_PRIVATE ? PRIVATE : SHARED;
        p->object = object;
        p->at = (op->how == NEW_SHARED ? 0 : op->to) + i;
        if (p->kind == SHARED && m->object[object].kind == FILE_NAMED)
            p->flags = NO_WRITE;
    }
}

static uint64_t perform_map(const struct model *m, const struct op *op)
{
    int fd = -1, flags = MAP_FIXED | (op->how == NEW_SHARED || op->how == OBJECT_SHARED ? MAP_SHARED : MAP_PRIVATE);
    if (op->how == NEW_ANONYMOUS || op->how == NEW_SHARED) {
        flags |= MAP_ANONYMOUS;
    } else if (op->fd >= 0) {
        fd = FIRST_FD + op->fd;
    } else {
        char name[32];
        name_of(op->object, name);
        bool grows = m->object[op->object].kind == FILE_NAMED;
        CHECK((fd = open(name, grows ? O_RDONLY : O_RDWR)) >= 0);
    }
    off_t offset = fd >= 0 ? (off_t)op->to * PAGE : 0;
    char *at = address(op->from);
    CHECK(mmap(at, (size_t)op->count * PAGE, op->protection, flags, fd, offset) == at);
    if (fd >= 0 && op->fd < 0)
        close(fd);
    return 0;
}

static bool choose_unmap(const struct model *m, struct op *op)
{
    return find(m, op, is_idle, 0, AREA, 16);
}

static void apply_unmap(struct model *m, const struct op *op)
{
    memset(&pages_of(m, op)[op->from], 0, op->count * sizeof(struct page));
}

static uint64_t perform_unmap(const struct model *m, const struct op *op)
{
    (void)m;
    CHECK(munmap(address(op->from), (size_t)op->count * PAGE) == 0);
    return 0;
}

/* mremap(2) of a piece of one mapping: `to` is where, `fd` how many pages it has then. */
enum { MOVED, LEFT_BEHIND, IN_PLACE };

static bool choose_move(const struct model *m, struct op *op)
{
    if (!find(m, op, is_one, 0, AREA, 16))
        return false;
    const struct page *pages = m->process[op->actor].page;
    op->how = dice(op, 4);
    op->fd = op->count;
    if (op->how == IN_PLACE) {
        int next = op->from + op->count, room = 0;
        while (next + room < AREA && pages[next + room].kind == NONE)
            room++;
        op->to = op->from;
        if (room && dice(op, 3))
            op->fd = op->count + 1 + dice(op, room < 8 ? room : 8);
        else if (op->count > 1)
            op->fd = 1 + dice(op, op->count - 1);
        return op->fd != op->count;
    }
    op->how = op->how == LEFT_BEHIND && pages[op->from].kind == ANON ? LEFT_BEHIND : MOVED;
    if (op->how == MOVED && dice(op, 2))
        op->fd = 1 + dice(op, op->count + 6);
    struct op place = *op;
    if (!find(m, &place, is_free, 0, AREA, 1))
        return false;
    op->to = place.from;
    for (int i = 0; i < op->fd; i++)
        if (op->to + i >= AREA || pages[op->to + i].kind != NONE)
            return false;
    return true;
}

static void apply_move(struct model *m, const struct op *op)
{
    struct page moved[AREA], *pages = pages_of(m, op);
    uint16_t mapping = ++m->mappings;
    for (int i = 0; i < op->fd; i++) {
        moved[i] = pages[op->from + (i < op->count ? i : op->count - 1)];
        moved[i].mapping = mapping;
        if (i >= op->count) {
            let_go(&moved[i]);
            moved[i].flags &= ~GUARD;
            moved[i].at += i - op->count + 1;
        }
    }
    if (op->how == LEFT_BEHIND) {
        apart(m, op);
        for (int i = 0; i < op->count; i++) {
            let_go(&pages[op->from + i]);
            pages[op->from + i].flags &= ~GUARD;
        }
    } else {
        apply_unmap(m, op);
    }
    memcpy(&pages[op->to], moved, op->fd * sizeof *moved);
}

static uint64_t perform_move(const struct model *m, const struct op *op)
{
    (void)m;
    int flags = op->how == IN_PLACE ? 0 : MREMAP_MAYMOVE | MREMAP_FIXED;
    if (op->how == LEFT_BEHIND)
        flags |= MREMAP_DONTUNMAP;
    char *to = address(op->to);
    CHECK(mremap(address(op->from), (size_t)op->count * PAGE, (size_t)op->fd * PAGE, flags, to) == to);
    return 0;
}

static bool choose_protect(const struct model *m, struct op *op)
{
    if (!find(m, op, is_mapped, 0, AREA, 12))
        return false;
    op->protection = some_protection(op);
    for (int i = 0; i < op->count; i++)
        if (m->process[op->actor].page[op->from + i].flags & NO_WRITE)
            op->protection &= ~PROT_WRITE;
    return true;
}

static void apply_protect(struct model *m, const struct op *op)
{
    apart(m, op);
    for (int i = 0; i < op->count; i++)
        pages_of(m, op)[op->from + i].protection = op->protection;
}

static uint64_t perform_protect(const struct model *m, const struct op *op)
{
    (void)m;
    CHECK(mprotect(address(op->from), (size_t)op->count * PAGE, op->protection) == 0);
    return 0;
}

static bool choose_brk(const struct model *m, struct op *op)
{
    op->to = dice(op, BRK + 1);
    return op->to != m->process[op->actor].brk;
}

static void apply_brk(struct model *m, const struct op *op)
{
    struct process *self = &m->process[op->actor];
    struct page *pages = &self->page[AREA];
    for (int i = op->to; i < BRK; i++)
        pages[i] = (struct page){.kind = NONE};
    for (int i = self->brk; i < op->to; i++)
        pages[i] = (struct page){.kind = ANON, .protection = PROT_READ | PROT_WRITE};
    self->brk = op->to;
}

static uint64_t perform_brk(const struct model *m, const struct op *op)
{
    (void)m;
    CHECK(brk(heap + (size_t)op->to * PAGE) == 0);
    return 0;
}
#endif
