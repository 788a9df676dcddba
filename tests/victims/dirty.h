/* Pages with known contents, and the rows of dirty.c. */
#ifndef DIRTY_H
#define DIRTY_H
#include "victim.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

struct row {
    const char *name;
    void (*set_up)(void);
    void (*operate)(int step);
    void (*verify)(void);
};

static inline uint64_t word(uint64_t page, uint64_t version, int i)
{
    return mix(mix(mix(17, page), version), i);
}

/* Writes pages [from, to) of the area at `at`. */
static inline void put(char *at, int from, int to, uint64_t version)
{
    for (int page = from; page < to; page++)
        for (int i = 0; i < WORDS; i++)
            ((uint64_t *)(at + (size_t)page * PAGE))[i] = word(page, version, i);
}

/* Every byte of pages [from, to) is of `version`, 0 meaning zeros. */
static inline void expect(const char *what, char *at, int from, int to, uint64_t version)
{
    for (int page = from; page < to; page++) {
        volatile uint64_t *words = (uint64_t *)(at + (size_t)page * PAGE);
        for (int i = 0; i < WORDS; i++) {
            uint64_t expected = version ? word(page, version, i) : 0;
            if (words[i] != expected)
                fail("%s: page %d, word %d: %016lx and not %016lx of version %ld", what, page, i, words[i], expected,
                     version);
        }
    }
}

static inline char *map(void *at, size_t pages, int protection, int flags, int fd)
{
    char *got = mmap(at, pages * PAGE, protection, flags | (at ? MAP_FIXED : 0), fd, 0);
    CHECK(got != MAP_FAILED);
    return got;
}

static inline char *area(size_t pages)
{
    return map(NULL, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* A file of `pages` pages of `version`. */
static inline int file(const char *name, int pages, uint64_t version, int flags)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    char *scratch = area(pages);
    put(scratch, 0, pages, version);
    write_all(fd, scratch, (size_t)pages * PAGE);
    CHECK(munmap(scratch, (size_t)pages * PAGE) == 0 && close(fd) == 0);
    CHECK((fd = open(name, O_RDWR | flags)) >= 0);
    return fd;
}

/* The next of `signal` and SIGCHLD, which are blocked. */
static inline int await(int signal)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    if (signal != SIGUSR1)
        sigaddset(&set, SIGCHLD);
    int got;
    CHECK(sigwait(&set, &got) == 0);
    return got;
}
#endif
