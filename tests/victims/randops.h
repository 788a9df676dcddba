/* What a random program must be after each operation.
 *
 * Nothing of this is kept: whoever wants to know makes the model of step n anew from the seed, so that memory that comes
 * back wrong cannot make its own expectation wrong with it. Everything is counted in cells of 512 bytes, a page having
 * eight; a cell holds the words of its tag (which operation wrote it, and which cell of that operation), or zeros. */
#ifndef RANDOPS_H
#define RANDOPS_H
#include "victim.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <malloc.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum {
    PAGE = 4096, CELL = 512, CELLS = PAGE / CELL, WORDS = CELL / 8,
    AREA = 224,             /* pages at a fixed address, */
    BRK = 32,               /* and those of the heap */
    PAGES = AREA + BRK,
    PROCESSES = 5,
    THREADS = 2,
    OBJECTS = 14, OBJECT_PAGES = 24, OBJECT_CELLS = OBJECT_PAGES * CELLS,
    GROWING = 0, NAMED = 3, /* objects 0.. are files: one that only grows, some that stay as they are, */
    MAPPED = NAMED,         /* and one that is mapped all the time */
    FDS = 20, FIRST_FD = 100, DESCRIPTIONS = 40,
    QUEUE = 8,
    FIRST_SIGNAL = 40, SIGNALS = 4,
    TIMERS = 3, OF_TIMER = FIRST_SIGNAL + 18, HOUR = 3600,
};

enum kind { NONE, ANON, SHARED, PRIVATE };
enum flag { GUARD = 1, FREED = 2, BUSY = 4, NO_WRITE = 8, NOT_FORKED = 16, WIPED = 32, HUGE = 64, NO_HUGE = 128 };

/* Flags that make mappings differ. */
enum { OF_MAPPING = NOT_FORKED | WIPED | HUGE | NO_HUGE | NO_WRITE };

struct page {
    uint8_t kind, protection, flags;
    bool own;               /* private page of an object that has been written */
    int16_t object, at;     /* page of the object */
    uint16_t mapping;       /* pages with one number are one mapping for mremap(2) */
    uint32_t cell[CELLS];
};

enum object_kind { NO_OBJECT, ANONYMOUS, MEMFD, UNNAMED, FILE_NAMED, FILE_MAPPED };

struct object {
    uint8_t kind;
    int cells;
    uint32_t cell[OBJECT_CELLS];
};

enum description_kind { CLOSED, OF_OBJECT, APPENDING, READING, PIPE_OUT, PIPE_IN, EVENTS };

struct description {
    uint8_t kind;
    int8_t object;          /* of a pipe: its number */
    uint16_t users;
    int position;           /* in cells; what an eventfd counts */
};

struct pipe_state { int read, written; };

struct signal_state { uint8_t number; uint32_t value; };

enum timer_kind { NO_TIMER, RUNNING, RUNG };

/* Of timer_create(2): one that has hours to go, which no run reaches, or whose signal waits. */
struct timer_state { uint8_t kind, hours, every; uint32_t value; };

struct process {
    bool alive, zombie, sprints;
    int8_t parent, threads, churns_at, churns_for;
    int8_t fd[FDS];
    uint8_t brk;
    uint16_t mask;          /* further signals that are blocked */
    uint8_t queued;
    struct signal_state queue[QUEUE];
    uint8_t hours, every;   /* of ITIMER_REAL; 0 for none, or once */
    struct timer_state timer[TIMERS];
    uint64_t handled;       /* what handlers have seen */
    struct page page[PAGES];
};

struct model {
    int step, objects, descriptions, pipes;
    uint16_t mappings;
    struct process process[PROCESSES];
    struct object object[OBJECTS];
    struct description description[DESCRIPTIONS];
    struct pipe_state pipe[DESCRIPTIONS];
};

/* One operation: who, on what, how. */
struct op {
    const struct row *row;
    int step, actor, thread;
    int from, count, to, how, object, protection, fd;
    uint64_t random;
};

struct row {
    const char *name;
    int weight;
    /* Fills in the operation; false if there is nothing to do it to. */
    bool (*choose)(const struct model *m, struct op *op);
    void (*apply)(struct model *m, const struct op *op);
    /* Does it, in the process that is to; returns what it has seen. `m`: before it. */
    uint64_t (*perform)(const struct model *m, const struct op *op);
};

/* What all processes share beside the model: process ids and orders, in a page of its own. */
struct control {
    int pid[PROCESSES];
    int sprinter[PROCESSES];
    int stop_sprinting[PROCESSES];
};

static uint64_t seed;
static int me;
static char *area, *heap;
static struct control *control;
/* The model of the step that is being done. */
static struct model now;

static uint64_t dice(struct op *op, uint64_t below)
{
    next_random(&op->random);
    return (op->random >> 20) % below;
}

static inline uint64_t tagged(uint32_t tag, int word)
{
    return tag ? mix(mix(mix(17, seed), tag), word) * 0x9e3779b97f4a7c15ull : 0;
}

static inline uint32_t tag_of(const struct op *op, int cell)
{
    return op->how == 9 ? 0 : (uint32_t)op->step << 12 | (cell + 1);
}

static void fill_cell(void *to, uint32_t tag)
{
    uint64_t *words = to;
    for (int i = 0; i < WORDS; i++)
        words[i] = tagged(tag, i);
}

/* Where a cell differs from its tag; -1 for nowhere. */
static int wrong_word(const void *at, uint32_t tag)
{
    const volatile uint64_t *words = at;
    for (int i = 0; i < WORDS; i++)
        if (words[i] != tagged(tag, i))
            return i;
    return -1;
}

static char *address(int page)
{
    return page < AREA ? area + (size_t)page * PAGE : heap + (size_t)(page - AREA) * PAGE;
}

/* The object's page that a page shows, in cells; NULL beyond its end. */
static const uint32_t *shown(const struct model *m, const struct page *p)
{
    const struct object *o = &m->object[p->object];
    return p->at * CELLS < o->cells ? &o->cell[p->at * CELLS] : NULL;
}

/* Whether touching the page may end in SIGBUS: it lies beyond the end of its object. */
static bool beyond(const struct model *m, const struct page *p)
{
    return (p->kind == SHARED || p->kind == PRIVATE) && !shown(m, p);
}

static uint32_t cell_of(const struct model *m, const struct page *p, int cell)
{
    if (p->kind == ANON || (p->kind == PRIVATE && p->own))
        return p->cell[cell];
    const uint32_t *cells = shown(m, p);
    return cells ? cells[cell] : 0;
}

/* Runs of pages for an operation. */
typedef bool (*fits)(const struct model *m, const struct op *op, const struct page *p, const struct page *first);

static bool find(const struct model *m, struct op *op, fits fit, int from, int end, int most)
{
    const struct page *pages = m->process[op->actor].page;
    int begin = from + dice(op, end - from), wanted = 1 + dice(op, most);
    for (int i = 0; i < end - from; i++) {
        int at = from + (begin - from + i) % (end - from);
        if (!fit(m, op, &pages[at], &pages[at]))
            continue;
        op->from = at;
        op->count = 1;
        while (op->count < wanted && at + op->count < end && at + op->count != AREA &&
               fit(m, op, &pages[at + op->count], &pages[at]))
            op->count++;
        return true;
    }
    return false;
}

static bool is_free(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    (void)m, (void)op, (void)first;
    return p->kind == NONE;
}
static bool is_idle(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    (void)m, (void)op, (void)first;
    return !(p->flags & BUSY);
}
static bool is_mapped(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    (void)m, (void)op, (void)first;
    return p->kind != NONE && !(p->flags & BUSY);
}
static bool is_anonymous(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    return is_mapped(m, op, p, first) && p->kind == ANON;
}
/* One mapping, whose pages look alike. */
static bool is_one(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    return is_mapped(m, op, p, first) && p->mapping == first->mapping;
}
static bool is_readable(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    return is_mapped(m, op, p, first) && p->protection & PROT_READ && !(p->flags & GUARD) && !beyond(m, p);
}
static bool is_writable(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    /* What is written behind the end of an object is nobody's. */
    bool whole = p->kind != SHARED || (p->at + 1) * CELLS <= m->object[p->object].cells;
    return is_readable(m, op, p, first) && p->protection & PROT_WRITE && !(p->flags & NO_WRITE) && whole;
}
/* What /proc/self/mem writes whatever the protection is. */
static bool is_forcible(const struct model *m, const struct op *op, const struct page *p, const struct page *first)
{
    return is_readable(m, op, p, first) && p->kind != SHARED;
}

static struct page *pages_of(struct model *m, const struct op *op)
{
    return m->process[op->actor].page;
}

/* The run is mappings of its own from here on: neighbours that differed once are never taken for one. */
static void apart(struct model *m, const struct op *op)
{
    struct page *pages = pages_of(m, op);
    int after = op->from + op->count;
    uint16_t old = after < PAGES ? pages[after].mapping : 0, fresh = ++m->mappings;
    for (int at = after; old && at < PAGES && pages[at].mapping == old; at++)
        pages[at].mapping = fresh;
    for (int i = 0; i < op->count; i++) {
        struct page *p = &pages[op->from + i];
        bool same = i && p->mapping == old;
        old = p->mapping;
        if (!same)
            fresh = ++m->mappings;
        p->mapping = fresh;
    }
}
#endif
