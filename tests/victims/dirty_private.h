/* Rows of dirty.c: private memory. Each is set up, checkpointed, changed, checkpointed, killed, and compared. */
#ifndef DIRTY_PRIVATE_H
#define DIRTY_PRIVATE_H
#include "dirty.h"

__attribute__((noreturn)) static void serve(void);
static void done(int step);

static const char *own_path;

static void read_all(char *at, int pages)
{
    for (int page = 0; page < pages; page++)
        (void)*(volatile char *)(at + (size_t)page * PAGE);
}

/* new VMA */
static char *fresh;
static void new_set_up(void) {}
static void new_operate(int step) { put(fresh = area(64), 0, 64, step); }
static void new_verify(void) { expect("new mapping", fresh, 0, 64, 1); }

/* brk growth */
static char *heap;
static void brk_set_up(void)
{
    char *end = sbrk(0);
    CHECK(sbrk((PAGE - (uintptr_t)end % PAGE) % PAGE) != (void *)-1);
    heap = sbrk(32 * PAGE);
    put(heap, 0, 32, 1);
}
static void brk_operate(int step)
{
    CHECK(sbrk(32 * PAGE) == heap + 32 * PAGE);
    put(heap, 32, 64, 1 + step);
}
static void brk_verify(void)
{
    expect("heap", heap, 0, 32, 1);
    expect("grown heap", heap, 32, 64, 2);
}

/* hole in the middle, mapped again */
static char *holed;
static void hole_set_up(void) { put(holed = area(32), 0, 32, 1); }
static void hole_operate(int step)
{
    CHECK(munmap(holed + 8 * PAGE, 8 * PAGE) == 0);
    map(holed + 8 * PAGE, 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    put(holed, 10, 12, 1 + step);
}
static void hole_verify(void)
{
    expect("around the hole", holed, 0, 8, 1);
    expect("in the hole", holed, 8, 10, 0);
    expect("written in the hole", holed, 10, 12, 2);
    expect("in the hole", holed, 12, 16, 0);
    expect("around the hole", holed, 16, 32, 1);
}

/* fork child, which goes on with its own copy */
static char *inherited;
static pid_t child;
static void child_set_up(void) { put(inherited = area(64), 0, 64, 1); }
static void child_compare(uint64_t version)
{
    expect("shared with the other process", inherited, 0, 32, 1);
    expect("own", inherited, 32, 36, version);
    expect("shared with the other process", inherited, 36, 64, 1);
}
static void child_operate(int step)
{
    pid_t parent = getpid();
    CHECK((child = fork()) >= 0);
    if (child) {
        put(inherited, 32, 36, 1 + step);
        CHECK(await(SIGUSR2) == SIGUSR2);
        return;
    }
    put(inherited, 32, 36, 7);
    for (;;) {
        CHECK(kill(parent, SIGUSR2) == 0);
        await(SIGUSR1);
        child_compare(7);
    }
}
static void child_verify(void)
{
    child_compare(2);
    CHECK(kill(child, SIGUSR1) == 0);
    if (await(SIGUSR2) != SIGUSR2)
        fail("the child found a wrong page");
}

/* parent after fork: the child is gone, the parent's clean pages stay clean */
static char *parents;
static void parent_set_up(void) { put(parents = area(512), 0, 512, 1); }
static void parent_operate(int step)
{
    pid_t one = fork();
    CHECK(one >= 0);
    if (!one) {
        put(parents, 0, 256, 9);
        _exit(0);
    }
    int status;
    CHECK(waitpid(one, &status, 0) == one && status == 0 && await(SIGCHLD) == SIGCHLD);
    put(parents, 100, 102, 1 + step);
}
static void parent_verify(void)
{
    expect("parent", parents, 0, 100, 1);
    expect("parent", parents, 100, 102, 2);
    expect("parent", parents, 102, 512, 1);
}

/* mremap: grown and moved */
static char *moved;
static void mremap_set_up(void) { put(moved = area(32), 0, 32, 1); }
static void mremap_operate(int step)
{
    char *to = map(NULL, 64, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    moved = mremap(moved, 32 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    CHECK(moved == to);
    put(moved, 40, 42, 1 + step);
}
static void mremap_verify(void)
{
    expect("moved", moved, 0, 32, 1);
    expect("grown", moved, 32, 40, 0);
    expect("written after the move", moved, 40, 42, 2);
    expect("grown", moved, 42, 64, 0);
}

/* mremap: what is moved becomes one mapping with its new neighbour, which the kernel then takes from its userfaultfd */
static char *joined, *joining;
static void joined_set_up(void)
{
    joined = map(NULL, 64, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    map(joined, 32, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    joining = map(joined + 48 * PAGE, 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    put(joined, 0, 32, 1);
}
static void joined_operate(int step)
{
    char *to = joined + 32 * PAGE;
    CHECK(mremap(joining, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    put(joined, 10, 12, 1 + step);
}
static void joined_verify(void)
{
    expect("beside what was moved", joined, 0, 10, 1);
    expect("written beside what was moved", joined, 10, 12, 2);
    expect("beside what was moved", joined, 12, 32, 1);
    expect("moved", joined, 32, 40, 0);
}

/* MADV_DONTNEED of private anonymous memory: zeros from now on */
static char *dropped;
static void dropped_set_up(void) { put(dropped = area(64), 0, 64, 1); }
static void dropped_operate(int step)
{
    CHECK(madvise(dropped + 8 * PAGE, 24 * PAGE, MADV_DONTNEED) == 0);
    /* Some stay absent, some read as the zero page, some are written. */
    read_all(dropped + 16 * PAGE, 4);
    put(dropped, 24, 26, 1 + step);
}
static void dropped_verify(void)
{
    expect("kept", dropped, 0, 8, 1);
    expect("dropped", dropped, 8, 24, 0);
    expect("dropped and written", dropped, 24, 26, 2);
    expect("dropped", dropped, 26, 32, 0);
    expect("kept", dropped, 32, 64, 1);
}

/* MADV_DONTNEED of changed pages of a private file mapping: the file's again */
static char *of_file;
static void file_set_up(void)
{
    int fd = file("private", 64, 100, 0);
    of_file = map(NULL, 64, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    close(fd);
    put(of_file, 0, 48, 1);
}
static void file_operate(int step)
{
    CHECK(madvise(of_file + 8 * PAGE, 24 * PAGE, MADV_DONTNEED) == 0);
    read_all(of_file + 16 * PAGE, 4);
    put(of_file, 24, 26, 1 + step);
}
static void file_verify(void)
{
    expect("changed", of_file, 0, 8, 1);
    expect("back to file", of_file, 8, 24, 100);
    expect("changed again", of_file, 24, 26, 2);
    expect("back to file", of_file, 26, 32, 100);
    expect("changed", of_file, 32, 48, 1);
    expect("never changed", of_file, 48, 64, 100);
}

/* pages dropped in one generation, the place given to a file in the next */
static char *over;
static void over_set_up(void) { put(over = area(32), 0, 32, 1); }
static void over_operate(int step)
{
    if (step == 1) {
        CHECK(madvise(over, 16 * PAGE, MADV_DONTNEED) == 0);
        return;
    }
    int fd = file("over", 32, 100, 0);
    map(over, 32, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    close(fd);
    put(over, 30, 32, 2);
}
static void over_verify(void)
{
    expect("file over dropped pages", over, 0, 16, 100);
    expect("file over pages", over, 16, 30, 100);
    expect("changed", over, 30, 32, 2);
}

/* munmap and mmap at the same place */
static char *again;
static void again_set_up(void) { put(again = area(32), 0, 32, 1); }
static void again_operate(int step)
{
    CHECK(munmap(again, 32 * PAGE) == 0);
    map(again, 32, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    put(again, 3, 4, 1 + step);
}
static void again_verify(void)
{
    expect("mapped anew", again, 0, 3, 0);
    expect("written", again, 3, 4, 2);
    expect("mapped anew", again, 4, 32, 0);
}

/* 64 GiB reserved, of which a few pages are touched */
enum { FAR = 9000001 };
static char *reserved;
static void reserved_set_up(void)
{
    reserved = map(NULL, 64ull << 30 >> 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    put(reserved, 5, 6, 1);
    put(reserved, FAR, FAR + 1, 1);
}
static void reserved_operate(int step) { put(reserved, FAR / 2, FAR / 2 + 1, 1 + step); }
static void reserved_verify(void)
{
    expect("reserved", reserved, 5, 6, 1);
    expect("reserved", reserved, FAR, FAR + 1, 1);
    expect("reserved", reserved, FAR / 2, FAR / 2 + 1, 2);
}

/* mremap over two neighbours, which natively are one mapping; of one pair the new one is touched at once */
static char *across[2];
static void across_set_up(void)
{
    for (int i = 0; i < 2; i++) {
        char *room = map(NULL, 128, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        across[i] = map(room + 32 * PAGE, 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        put(across[i], 0, 16, 1);
    }
}
static void across_operate(int step)
{
    static const char *const names[] = {"untouched", "touched"};
    for (int i = 0; i < 2; i++) {
        if (step == 1)
            map(across[i] + 16 * PAGE, 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        if (step == 1 && i)
            put(across[i], 16, 32, 1);
        char *got = mremap(across[i], 32 * PAGE, 48 * PAGE, MREMAP_MAYMOVE);
        say(1, "mremap %d %s: %s\n", step, names[i], got == MAP_FAILED ? strerror(errno) : "moved");
        if (got != MAP_FAILED)
            across[i] = got;
    }
}
static void across_verify(void)
{
    for (int i = 0; i < 2; i++) {
        expect("tracked", across[i], 0, 16, 1);
        expect("its neighbour", across[i], 16, 32, i);
    }
}

/* mprotect */
static char *protected;
static void protect_set_up(void) { put(protected = area(512), 0, 512, 1); }
static void protect_operate(int step)
{
    CHECK(mprotect(protected, 256 * PAGE, PROT_READ) == 0);
    CHECK(mprotect(protected, 128 * PAGE, PROT_READ | PROT_WRITE) == 0);
    put(protected, 60, 62, 1 + step);
    put(protected, 300, 301, 1 + step);
}
static void protect_verify(void)
{
    expect("protected", protected, 0, 60, 1);
    expect("written", protected, 60, 62, 2);
    expect("protected", protected, 62, 300, 1);
    expect("written", protected, 300, 301, 2);
    expect("protected", protected, 301, 512, 1);
}

/* MADV_FREE: a page is what it was or zeros, until it is written */
static char *lazily;
static void free_set_up(void) { put(lazily = area(512), 0, 512, 1); }
static void free_operate(int step)
{
    CHECK(madvise(lazily, 256 * PAGE, MADV_FREE) == 0);
    put(lazily, 10, 12, 1 + step);
}
static void free_verify(void)
{
    for (int page = 0; page < 256; page++)
        if (page < 10 || page >= 12)
            expect("freed", lazily, page, page + 1, *(uint64_t *)(lazily + page * PAGE) ? 1 : 0);
    expect("freed and written", lazily, 10, 12, 2);
    expect("not freed", lazily, 256, 512, 1);
}

/* stack growth: goes on in a frame that is a megabyte deep */
static char *deep;
static void stack_set_up(void) {}
static void stack_operate(int step)
{
    char frame[257 * PAGE];
    deep = (char *)(((uintptr_t)frame + PAGE - 1) / PAGE * PAGE);
    put(deep, 0, 256, 1 + step);
    done(step);
    serve();
}
static void stack_verify(void) { expect("stack", deep, 0, 256, 2); }

/* exec: another program in the same process */
static void exec_set_up(void) { put(area(512), 0, 512, 1); }
static void exec_operate(int step)
{
    (void)step;
    execl(own_path, own_path, ".", "0", "executed", NULL);
    fail("exec");
}
static void exec_verify(void) { fail("still the old program"); }
static char *executed;
static void executed_set_up(void) { put(executed = area(64), 0, 64, 3); }
static void executed_verify(void) { expect("after exec", executed, 0, 64, 3); }

/* nothing at all, but the vdso in use */
static char *idle;
static void idle_set_up(void) { put(idle = area(512), 0, 512, 1); }
static void idle_operate(int step)
{
    uint64_t begun = now_ns();
    for (int i = 0; i < 100000 * step; i++)
        CHECK(now_ns() >= begun);
}
static void idle_verify(void) { expect("untouched", idle, 0, 512, 1); }

/* huge pages: one store dirties one small page */
static char *huge;
static void huge_set_up(void)
{
    char *room = area(2048);
    huge = (char *)(((uintptr_t)room + (2 << 20) - 1) & -(2ul << 20));
    CHECK(madvise(huge, 1024 * PAGE, MADV_HUGEPAGE) == 0);
    put(huge, 0, 1024, 1);
}
static void huge_operate(int step) { put(huge, 700, 701, 1 + step); }
static void huge_verify(void)
{
    expect("huge", huge, 0, 700, 1);
    expect("written", huge, 700, 701, 2);
    expect("huge", huge, 701, 1024, 1);
}

/* PROT_NONE with contents, and made so between two checkpoints */
static char *hidden, *veiled;
static void none_set_up(void)
{
    put(hidden = area(64), 0, 64, 1);
    CHECK(mprotect(hidden, 64 * PAGE, PROT_NONE) == 0);
    put(veiled = area(64), 0, 64, 1);
}
static void none_operate(int step)
{
    put(veiled, 8, 12, 1 + step);
    CHECK(mprotect(veiled, 64 * PAGE, PROT_NONE) == 0);
}
static void none_verify(void)
{
    CHECK(mprotect(hidden, 64 * PAGE, PROT_READ) == 0 && mprotect(veiled, 64 * PAGE, PROT_READ) == 0);
    expect("without access", hidden, 0, 64, 1);
    expect("access taken away", veiled, 0, 8, 1);
    expect("written, then access taken away", veiled, 8, 12, 2);
    expect("access taken away", veiled, 12, 64, 1);
    CHECK(mprotect(hidden, 64 * PAGE, PROT_NONE) == 0 && mprotect(veiled, 64 * PAGE, PROT_NONE) == 0);
}

/* zeros, written and read; some of them huge */
static char *zeros, *huge_zeros;
static void zero_set_up(void)
{
    memset(zeros = area(4096), 0, 4096 * PAGE);
    char *room = area(2048);
    huge_zeros = (char *)(((uintptr_t)room + (2 << 20) - 1) & -(2ul << 20));
    CHECK(madvise(huge_zeros, 1024 * PAGE, MADV_HUGEPAGE) == 0);
    read_all(huge_zeros, 1024);
}
static void zero_operate(int step)
{
    memset(zeros, 0, 4096 * PAGE);
    put(zeros, 7, 8, 1 + step);
    read_all(huge_zeros, 1024);
}
static void zero_verify(void)
{
    expect("zeros", zeros, 0, 7, 0);
    expect("written", zeros, 7, 8, 2);
    expect("zeros", zeros, 8, 4096, 0);
    expect("zeros", huge_zeros, 0, 1024, 0);
}

/* the file cut off below changed pages of a private mapping: they go with it */
static char *shortened;
static int shortened_fd;
static void shortened_set_up(void)
{
    shortened_fd = file("shortened", 8, 100, 0);
    shortened = map(NULL, 8, PROT_READ | PROT_WRITE, MAP_PRIVATE, shortened_fd);
    put(shortened, 0, 8, 1);
}
static void shortened_operate(int step)
{
    (void)step;
    CHECK(ftruncate(shortened_fd, 4 * PAGE) == 0);
}
static void shortened_verify(void) { expect("what is left of a file", shortened, 0, 4, 1); }

/* guard pages over changed pages of a private file mapping */
static char *guarded;
static int has_guards, guarded_pipe[2];
static void guarded_set_up(void)
{
    int fd = file("guarded", 8, 100, 0);
    guarded = map(NULL, 8, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    close(fd);
    put(guarded, 0, 8, 1);
    CHECK(pipe(guarded_pipe) == 0);
}
static void guarded_operate(int step)
{
    has_guards = madvise(guarded + 2 * PAGE, 4 * PAGE, 102 /* MADV_GUARD_INSTALL */) == 0;
    if (!has_guards)
        say(1, "no guard pages: %s\n", strerror(errno));
    put(guarded, 7, 8, 1 + step);
}
static void guarded_verify(void)
{
    expect("before guard pages", guarded, 0, 2, 1);
    expect("behind guard pages", guarded, 6, 7, 1);
    expect("behind guard pages", guarded, 7, 8, 2);
    for (int page = 2; has_guards && page < 6; page++)
        CHECK(write(guarded_pipe[1], guarded + page * PAGE, 1) < 0 && errno == EFAULT);
    if (has_guards) {
        CHECK(madvise(guarded + 2 * PAGE, PAGE, 103 /* MADV_GUARD_REMOVE */) == 0);
        expect("under a guard page", guarded, 2, 3, 100);
        CHECK(madvise(guarded + 2 * PAGE, PAGE, 102) == 0);
    }
}

/* everything, eight megabytes of it */
static char *rewritten;
static void rewritten_set_up(void) { put(rewritten = area(2048), 0, 2048, 1); }
static void rewritten_operate(int step) { put(rewritten, 0, 2048, 1 + step); }
static void rewritten_verify(void) { expect("rewritten", rewritten, 0, 2048, 2); }
#endif
