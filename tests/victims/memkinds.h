/* Pages that say whose they are, and the cases of memkinds.c. */
#ifndef MEMKINDS_H
#define MEMKINDS_H
#include "victim.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 32 };

struct memory_case {
    const char *name;
    void (*set_up)(void);
    uint64_t (*round)(long round);
};

/* Pages of one object, with the round that wrote each last; 0: zeros. */
struct model {
    uint64_t id;
    long version[PAGES];
};

static uint64_t random_state = 11;
static long last_round;

static inline void put(char *at, struct model *model, int page, long version)
{
    uint64_t *words = (uint64_t *)(at + (size_t)page * PAGE);
    for (int i = 0; i < WORDS; i++)
        words[i] = version ? mix(mix(mix(model->id, page), version), i) : 0;
    model->version[page] = version;
}

/* Compares `pages` pages at `at` with the model. */
static inline uint64_t right(const char *what, const char *at, const struct model *model, int pages)
{
    uint64_t sum = model->id;
    for (int page = 0; page < pages; page++) {
        const volatile uint64_t *words = (const uint64_t *)(at + (size_t)page * PAGE);
        for (int i = 0; i < WORDS; i++) {
            uint64_t expected =
                model->version[page] ? mix(mix(mix(model->id, page), model->version[page]), i) : 0;
            if (words[i] != expected)
                fail("%s: page %d, word %d: %016lx and not %016lx of round %ld", what, page, i, words[i], expected,
                     model->version[page]);
            sum = mix(sum, expected);
        }
    }
    return sum;
}

static inline char *map_it(size_t length, int protection, int flags, int fd)
{
    char *at = mmap(NULL, length, protection, flags, fd, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* A few pages that `round` writes. */
static inline void change(char *at, struct model *model, long round)
{
    for (int i = 0; i < 3; i++)
        put(at, model, next_random(&random_state) % PAGES, round);
}

/* The object that a mapping or descriptor shows in /proc, as the program could see it. */
static inline void leads_to(const char *link, const char *expected)
{
    char target[512];
    ssize_t n = readlink(link, target, sizeof target - 1);
    CHECK(n > 0);
    target[n] = 0;
    if (strcmp(target, expected))
        fail("%s leads to %s and not %s", link, target, expected);
}

static inline void fd_leads_to(int fd, const char *expected)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    leads_to(link, expected);
}
#endif
