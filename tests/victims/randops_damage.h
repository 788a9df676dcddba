/* What a bug in a checkpoint would leave behind, done by the program to itself: its model must notice. */
#ifndef RANDOPS_DAMAGE_H
#define RANDOPS_DAMAGE_H
#include "randops_signals.h"

static bool has(const char *bug, const char *name)
{
    return strcmp(bug, name) == 0;
}

/* A page of the first process that the bug would hit. */
static bool is_hit(const struct model *m, const struct op *op, const struct page *p, const char *bug)
{
    if (!is_writable(m, op, p, p) || p->flags & FREED)
        return false;
    if (has(bug, "lost-back-to-file"))
        return p->kind == PRIVATE && !p->own;
    return p->kind == ANON && (p->cell[0] == 0) == has(bug, "lost-zero");
}

/* Does what the bug would; false if there is nothing yet that it would hit. */
static bool damage(const struct model *m, const char *bug)
{
    const struct op first = {.actor = 0};
    const struct process *self = &m->process[0];
    if (has(bug, "dropped-signal")) {
        sigset_t set;
        if (!self->queued)
            return false;
        set_of(&set, self->queue[0].number);
        return sigtimedwait(&set, NULL, &(struct timespec){0, 0}) > 0;
    }
    for (int i = 0; i < PAGES; i++) {
        if (!is_hit(m, &first, &self->page[i], bug))
            continue;
        /* The mapping is there, and what was written into it since is not; or the page is one of another time. */
        if (has(bug, "unarmed-mapping"))
            memset(address(i), 0, PAGE);
        else
            fill_cell(address(i), 1 << 12 | 1);
        return true;
    }
    return false;
}
#endif
