/* Compares what there is with what the model says; each look returns a sum of what it has seen. */
#ifndef RANDOPS_CHECK_H
#define RANDOPS_CHECK_H
#include "randops_memory.h"

#define WRONG(format, ...) fail("seed %ld, step %d, process %d: " format, seed, now.step, me, __VA_ARGS__)

/* Handlers mix what they get into this. */
static volatile uint64_t handled;

/* This process's own. */
static timer_t timers[TIMERS];

static void check_page(const struct model *m, int number, uint64_t *sum)
{
    static char copy[PAGE];
    const struct page *p = &m->process[me].page[number];
    char *at = address(number);
    if (p->flags & GUARD || beyond(m, p)) {
        if (access(at, F_OK) == 0 || errno != EFAULT)
            WRONG("page %d can be touched", number);
        return;
    }
    if (!(p->protection & PROT_READ)) {
        if (access(at, F_OK) == 0 || errno != EFAULT)
            WRONG("page %d can be read", number);
        /* Not by /proc/self/mem, which has no patience for pages that are yet to arrive. */
        CHECK(mprotect(at, PAGE, p->protection | PROT_READ) == 0);
        memcpy(copy, at, PAGE);
        CHECK(mprotect(at, PAGE, p->protection) == 0);
        at = copy;
    } else if (p->flags & FREED) {
        /* The kernel may take it at any time: one look, which holds on to the page. */
        struct iovec from = {at, PAGE}, into = {copy, PAGE};
        CHECK(process_vm_readv(getpid(), &into, 1, &from, 1, 0) == PAGE);
        at = copy;
    }
    int zeros = 0;
    while (p->flags & FREED && zeros < CELLS && wrong_word(at + zeros * CELL, 0) < 0)
        zeros++;
    if (zeros == CELLS)
        return;
    for (int cell = 0; cell < CELLS; cell++) {
        uint32_t tag = cell_of(m, p, cell);
        int word = wrong_word(at + cell * CELL, tag);
        if (word >= 0)
            WRONG("page %d (kind %d, protection %d, flags %x, object %d at %d, own %d), cell %d, word %d: %016lx and "
                  "not %016lx of step %d",
                  number, p->kind, p->protection, p->flags, p->object, p->at, p->own, cell, word,
                  ((uint64_t *)(at + cell * CELL))[word], tagged(tag, word), tag >> 12);
        if (!(p->flags & FREED))
            *sum = mix(*sum, *(uint64_t *)(at + cell * CELL + 8));
    }
}

static uint64_t check_pages(const struct model *m, int from, int count)
{
    uint64_t sum = 17;
    for (int i = from; i < from + count; i++)
        if (m->process[me].page[i].kind != NONE && !(m->process[me].page[i].flags & BUSY))
            check_page(m, i, &sum);
    return sum;
}

enum { TEXT = 1 << 18 };

static void read_text(const char *path, char *text)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    size_t n = 0;
    for (ssize_t got; n < TEXT - 1 && (got = read(fd, text + n, TEXT - 1 - n)) != 0;) {
        CHECK(got > 0 || errno == EINTR);
        n += got > 0 ? got : 0;
    }
    close(fd);
    text[n] = 0;
}

/* What two looks agree on: a restart in the midst of one goes on from the same byte of another text. */
static const char *text_of(const char *path)
{
    static char text[TEXT], again[TEXT];
    do {
        read_text(path, text);
        read_text(path, again);
    } while (strcmp(text, again) != 0);
    return text;
}

/* One line of /proc/self/maps, as far as it lies in the area. */
static void check_mapping(const struct model *m, const char *line, bool *seen)
{
    unsigned long start, end, offset, inode;
    char bits[5], name[128] = "";
    CHECK(sscanf(line, "%lx-%lx %4s %lx %*s %lu %127[^\n]", &start, &end, bits, &offset, &inode, name) >= 5);
    for (unsigned long at = start; at < end; at += PAGE) {
        if (at < (unsigned long)area || at >= (unsigned long)area + (size_t)AREA * PAGE)
            continue;
        int number = (at - (unsigned long)area) / PAGE;
        const struct page *p = &m->process[me].page[number];
        if (p->flags & BUSY)
            continue;
        seen[number] = true;
        if (p->kind == NONE)
            WRONG("page %d is mapped: %.80s", number, line);
        int protection = (bits[0] == 'r' ? PROT_READ : 0) | (bits[1] == 'w' ? PROT_WRITE : 0) |
                         (bits[2] == 'x' ? PROT_EXEC : 0);
        if (protection != p->protection || (bits[3] == 's') != (p->kind == SHARED))
            WRONG("page %d should have protection %d, kind %d: %.80s", number, p->protection, p->kind, line);
        if (p->kind == ANON)
            continue;
        if (offset + at - start != (unsigned long)p->at * PAGE)
            WRONG("page %d should be page %d of its object: %.80s", number, p->at, line);
        char file[32];
        name_of(p->object, file);
        const char *last = strrchr(name, '/');
        if (p->object <= MAPPED && (!last || strcmp(last + 1, file)))
            WRONG("page %d should be of %s: %.120s", number, file, line);
    }
}

static void check_maps(const struct model *m)
{
    bool seen[AREA] = {false};
    for (const char *line = text_of("/proc/self/maps"); line && *line; line = strchr(line, '\n'), line += line != NULL)
        check_mapping(m, line, seen);
    for (int i = 0; i < AREA; i++)
        if (!seen[i] && m->process[me].page[i].kind != NONE && !(m->process[me].page[i].flags & BUSY))
            WRONG("page %d is not mapped", i);
    if (sbrk(0) != heap + (size_t)m->process[me].brk * PAGE)
        WRONG("the break is at %p", sbrk(0));
}

static uint64_t check_object(const struct model *m, int fd, const struct object *o)
{
    static char content[OBJECT_CELLS * CELL];
    struct stat found;
    (void)m;
    CHECK(fstat(fd, &found) == 0);
    if (found.st_size != (off_t)o->cells * CELL)
        WRONG("descriptor %d: size %ld and not %d", fd, (long)found.st_size, o->cells * CELL);
    CHECK(pread(fd, content, sizeof content, 0) == found.st_size);
    uint64_t sum = o->cells;
    for (int cell = 0; cell < o->cells; cell++) {
        if (wrong_word(content + cell * CELL, o->cell[cell]) >= 0)
            WRONG("descriptor %d: cell %d is not of step %d", fd, cell, o->cell[cell] >> 12);
        sum = mix(sum, *(uint64_t *)(content + cell * CELL + 8));
    }
    return sum;
}

static uint64_t check_descriptor(const struct model *m, int number)
{
    int fd = FIRST_FD + number, index = m->process[me].fd[number], flags = fcntl(fd, F_GETFL);
    if (index < 0) {
        if (flags >= 0 || errno != EBADF)
            WRONG("descriptor %d is open", fd);
        return 0;
    }
    const struct description *d = &m->description[index];
    if (flags < 0)
        WRONG("descriptor %d is not open", fd);
    static const int access_of[] = {0, O_RDWR, O_WRONLY, O_RDONLY, O_RDONLY, O_WRONLY, O_RDWR};
    if ((flags & O_ACCMODE) != access_of[d->kind] || !!(flags & O_APPEND) != (d->kind == APPENDING))
        WRONG("descriptor %d has flags %o, kind %d", fd, flags, d->kind);
    int waiting;
    switch (d->kind) {
    case PIPE_OUT:
        CHECK(ioctl(fd, 0x541b /* FIONREAD */, &waiting) == 0);
        if (waiting != m->pipe[d->object].written - m->pipe[d->object].read)
            WRONG("descriptor %d: %d bytes wait and not %d", fd, waiting,
                  m->pipe[d->object].written - m->pipe[d->object].read);
        return waiting;
    case OF_OBJECT:
    case READING:
        if (lseek(fd, 0, SEEK_CUR) != (off_t)d->position * CELL)
            WRONG("descriptor %d is at %ld and not %d", fd, (long)lseek(fd, 0, SEEK_CUR), d->position * CELL);
        return check_object(m, fd, &m->object[d->object]);
    }
    return d->kind;
}

/* The hour that a timer is in, of those that it has to go; 0 if it has none. */
static int hour_of(long seconds, long rest)
{
    return seconds || rest ? (seconds - (rest == 0)) / HOUR + 1 : 0;
}

static void check_timers(const struct process *self, const sigset_t *pending)
{
    struct itimerval timer;
    CHECK(getitimer(ITIMER_REAL, &timer) == 0);
    if (hour_of(timer.it_value.tv_sec, timer.it_value.tv_usec) != self->hours ||
        timer.it_interval.tv_sec != self->every * HOUR)
        WRONG("the timer has %ld s left, of %d h", timer.it_value.tv_sec, self->hours);
    for (int i = 0; i < TIMERS; i++) {
        const struct timer_state *wanted = &self->timer[i];
        struct itimerspec left = {{0, 0}, {0, 0}};
        if (wanted->kind != NO_TIMER && timer_gettime(timers[i], &left) != 0)
            WRONG("timer %d is not there", i);
        if (hour_of(left.it_value.tv_sec, left.it_value.tv_nsec) != wanted->hours ||
            left.it_interval.tv_sec != wanted->every * HOUR)
            WRONG("timer %d has %ld s left, of %d h", i, left.it_value.tv_sec, wanted->hours);
        if (sigismember(pending, OF_TIMER + i) != (wanted->kind == RUNG))
            WRONG("timer %d is of kind %d, and its signal %s", i, wanted->kind,
                  wanted->kind == RUNG ? "does not wait" : "waits");
    }
}

static uint64_t check_signals(const struct model *m)
{
    const struct process *self = &m->process[me];
    sigset_t pending, blocked;
    CHECK(sigpending(&pending) == 0 && pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0);
    for (int i = 0; i < SIGNALS + 2; i++) {
        int number = i < SIGNALS ? FIRST_SIGNAL + i : i == SIGNALS ? SIGUSR1 : SIGUSR2;
        bool waits = false;
        for (int k = 0; k < self->queued; k++)
            waits |= self->queue[k].number == number;
        if (sigismember(&pending, number) != waits)
            WRONG("signal %d: %s", number, waits ? "it does not wait" : "it waits");
        if (!sigismember(&blocked, number))
            WRONG("signal %d is not blocked", number);
    }
    for (int i = 0; i < 8; i++)
        if (sigismember(&blocked, FIRST_SIGNAL + 10 + i) != (self->mask >> i & 1))
            WRONG("the mask of signal %d", FIRST_SIGNAL + 10 + i);
    if (handled != self->handled)
        WRONG("handlers have seen %016lx and not %016lx", handled, self->handled);
    check_timers(self, &pending);
    return mix(handled, self->queued);
}

/* Everything that this process has. */
static uint64_t check_all(const struct model *m)
{
    uint64_t sum = check_pages(m, 0, PAGES);
    check_maps(m);
    for (int i = 0; i < FDS; i++)
        sum = mix(sum, check_descriptor(m, i));
    return mix(sum, check_signals(m));
}
#endif
