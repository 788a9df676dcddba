/* lazyops GATE: what an address space can do while its pages are still on their way.
 *
 * GATE ("-" nothing, "signal" a SIGUSR1) is waited for before each act. Every act prints its name and a checksum of
 * what it sees, so that any byte that should be zero, or should not, shows. What one act leaves is looked at again
 * by the last. */
#include "victim.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 256, AREAS = 16 };

static char *area[AREAS];
static sigset_t usr1;
static const char *gate;
static int through[2], has_guards;

static char *map(void *at, size_t pages, int flags)
{
    char *got = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    CHECK(got != MAP_FAILED);
    return got;
}

static uint64_t sum(const char *from, size_t pages)
{
    return mix_words(17, (const uint64_t *)from, pages * WORDS);
}

static void act(const char *name)
{
    int signal;
    if (!strcmp(gate, "signal"))
        CHECK(sigwait(&usr1, &signal) == 0);
    say(1, "%s", name);
}

static void show(const char *from, size_t pages)
{
    say(1, " %016lx", sum(from, pages));
}

/* The child's sums come by its exit status being right or not: both sides print. */
static void forked(char *mine, char *shared, char *wiped)
{
    CHECK(madvise(wiped, 32 * PAGE, MADV_WIPEONFORK) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(madvise(shared, 16 * PAGE, MADV_DONTNEED) == 0);
        show(shared, PAGES);
        show(wiped, PAGES);
        memset(mine, 7, 32 * PAGE);
        pid_t grandchild = fork();
        CHECK(grandchild >= 0);
        if (grandchild == 0) {
            show(mine, PAGES);
            _exit(0);
        }
        CHECK(waitpid(grandchild, NULL, 0) == grandchild);
        CHECK(mremap(mine, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, area[0] - 4 * PAGES * PAGE) !=
              MAP_FAILED);
        show(area[0] - 4 * PAGES * PAGE, PAGES);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    show(mine, PAGES);
    show(shared, PAGES);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void *replace(void *argument)
{
    /* Unmapped and mapped again, page by page, against the background fill. */
    char *from = argument;
    for (int i = 0; i < PAGES; i++) {
        CHECK(munmap(from + i * PAGE, PAGE) == 0);
        map(from + i * PAGE, 1, MAP_FIXED);
    }
    return NULL;
}

static void *drop(void *argument)
{
    char *from = argument;
    for (int i = 0; i < PAGES; i += 2)
        CHECK(madvise(from + i * PAGE, PAGE, MADV_DONTNEED) == 0);
    return NULL;
}

/* Blocks that two threads move about: each goes to where the other has just left, as the kernel gives the highest hole. */
enum { BLOCKS = 8, BLOCK = 16, LARGEST = 24, MOVES = 400 };
static struct block {
    char *at;
    size_t pages;
} blocks[2][BLOCKS];

static void *trade(void *argument)
{
    struct block *mine = argument;
    for (int i = 0; i < MOVES; i++) {
        struct block *block = &mine[i % BLOCKS];
        size_t length = block->pages * PAGE;
        char *to = NULL;
        if (i % 5 == 4 && block->pages < LARGEST) {
            to = mremap(block->at, length, length + PAGE, MREMAP_MAYMOVE);
            block->pages++;
        } else {
            char *hole = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(hole != MAP_FAILED);
            to = mremap(block->at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, hole);
        }
        CHECK(to != MAP_FAILED);
        block->at = to;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    gate = argc > 1 ? argv[1] : "-";
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    /* Room before them for what moves; one fixed place, so that every run's sums are of the same addresses. */
    char *base = map((void *)0x200000000000, (AREAS + 8) * 2 * PAGES, MAP_FIXED_NOREPLACE);
    uint64_t seed = 3;
    for (int i = 0; i < AREAS; i++) {
        area[i] = base + (8 + i) * 2 * PAGES * PAGE;
        for (size_t word = 0; word < PAGES * WORDS; word++)
            ((uint64_t *)area[i])[word] = next_random(&seed);
    }
    for (int i = 0; i < 2 * BLOCKS; i++) {
        struct block *block = &blocks[i % 2][i / 2];
        *block = (struct block){map(NULL, BLOCK, 0), BLOCK};
        for (size_t word = 0; word < BLOCK * WORDS; word++)
            ((uint64_t *)block->at)[word] = next_random(&seed);
    }
    say(1, "ready\n");

    act("replace");
    CHECK(munmap(area[0], PAGES * PAGE) == 0);
    map(area[0], PAGES, MAP_FIXED);
    show(area[0], PAGES);
    memset(area[0] + 5 * PAGE, 5, PAGE);

    act("\ndrop");
    CHECK(madvise(area[1], PAGES / 2 * PAGE, MADV_DONTNEED) == 0);
    show(area[1], PAGES);

    act("\nmove");
    char *moved = base;
    CHECK(mremap(area[2], PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == moved);
    show(moved, 8);
    /* And again, half of it, before the rest is there. */
    char *again = base + 2 * PAGES * PAGE;
    CHECK(mremap(moved + PAGES / 2 * PAGE, PAGES / 2 * PAGE, PAGES / 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, again) ==
          again);
    map(area[2], PAGES, MAP_FIXED);
    show(area[2], PAGES);

    act("\nleave behind");
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
    char *kept = base + 4 * PAGES * PAGE;
    CHECK(mremap(area[3], PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, kept) == kept);
    show(area[3], PAGES);

    act("\nsplit");
    CHECK(mprotect(area[4] + 9 * PAGE, 11 * PAGE, PROT_READ) == 0);
    CHECK(mprotect(area[4] + 40 * PAGE, PAGE, PROT_NONE) == 0);
    show(area[4], 40);

    act("\nfork");
    forked(area[5], area[6], area[11]);

    act("\nrace");
    pthread_t threads[2];
    CHECK(pthread_create(&threads[0], NULL, replace, area[7]) == 0);
    CHECK(pthread_create(&threads[1], NULL, drop, area[8]) == 0);
    show(area[9], PAGES);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    show(area[7], PAGES);
    show(area[8], PAGES);

    act("\ntrade");
    CHECK(pthread_create(&threads[0], NULL, trade, blocks[0]) == 0);
    CHECK(pthread_create(&threads[1], NULL, trade, blocks[1]) == 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    for (int i = 0; i < BLOCKS; i++)
        show(blocks[0][i].at, blocks[0][i].pages);

    act("\nguard");
    CHECK(pipe(through) == 0);
    has_guards = madvise(area[10] + 3 * PAGE, 2 * PAGE, 102 /* MADV_GUARD_INSTALL */) == 0;
    show(area[10], 3);

    act("\nall");
    /* Not from the neighbours of what is looked at here, and not from the fill. */
    show(area[10] + 5 * PAGE, PAGES - 5);
    for (int i = 3; has_guards && i < 5; i++)
        CHECK(write(through[1], area[10] + i * PAGE, 1) < 0 && errno == EFAULT);
    CHECK(!has_guards || madvise(area[10] + 3 * PAGE, 2 * PAGE, 103 /* MADV_GUARD_REMOVE */) == 0);
    CHECK(mprotect(area[4], PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
    show(moved, PAGES / 2);
    show(again, PAGES / 2);
    show(kept, PAGES);
    for (int i = 0; i < BLOCKS; i++)
        show(blocks[1][i].at, blocks[1][i].pages);
    for (int i = 0; i < AREAS; i++)
        show(area[i], PAGES);
    say(1, "\n");
    return 0;
}
