/* What the victims share: a checksum, exact output, and an end with a message. */
#ifndef VICTIM_H
#define VICTIM_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* FNV-1a over words: any changed, lost or stale word changes everything after it. */
static inline uint64_t mix(uint64_t sum, uint64_t word)
{
    return (sum ^ word) * 0x100000001b3ull;
}

static inline uint64_t mix_words(uint64_t sum, const uint64_t *words, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sum = mix(sum, words[i]);
    return sum;
}

/* xorshift64*: the same numbers in every run. */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1dull;
}

__attribute__((noreturn, format(printf, 1, 2), unused)) static void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "victim: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, " (%s)\n", strerror(errno));
    va_end(args);
    _exit(3);
}

#define CHECK(what)                                       \
    do {                                                  \
        if (!(what))                                      \
            fail("%s:%d: %s", __FILE__, __LINE__, #what); \
    } while (0)

/* Everything, in one piece where the kernel takes it so. */
__attribute__((unused)) static void write_all(int fd, const void *bytes, size_t n)
{
    const char *at = bytes;
    while (n) {
        ssize_t done = write(fd, at, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            fail("write to %d", fd);
        at += done;
        n -= done;
    }
}

/* One line to a descriptor, unbuffered, so that a checkpoint finds nothing in between. */
__attribute__((format(printf, 2, 3), unused)) static void say(int fd, const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    write_all(fd, line, n);
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Sleeps that long whatever interrupts it. */
__attribute__((unused)) static void sleep_us(long us)
{
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&left, &left) && errno == EINTR)
        ;
}

/* Before the last step: waits for the file that VICTIM_HOLD names, where it does. However slow the machine is, a program then
 * never ends before the test is done with it. */
__attribute__((unused)) static void hold_at(long step, long last)
{
    const char *file = getenv("VICTIM_HOLD");
    while (step == last && file && access(file, F_OK) != 0)
        sleep_us(1000);
}

static inline long number(int argc, char **argv, int i, long otherwise)
{
    return argc > i ? atol(argv[i]) : otherwise;
}

/* Something that must stay as it is: set up, looked at in each round, looked at for the last time. */
struct thing {
    const char *name;
    void (*begin)(void);
    uint64_t (*round)(long n);
    void (*end)(void);
};

/* The main function of "PROGRAM CASE DIR ROUNDS PERIOD_US": one of `things` in DIR, and a line of what each round has seen. */
__attribute__((unused)) static int rounds_of(const struct thing *things, size_t count, int argc, char **argv)
{
    long rounds = number(argc, argv, 3, 400), period = number(argc, argv, 4, 2000);
    size_t i = 0;
    while (argc > 2 && i < count && strcmp(things[i].name, argv[1]) != 0)
        i++;
    CHECK(argc > 2 && i < count && chdir(argv[2]) == 0);
    things[i].begin();
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        say(1, "%ld %016lx\n", round, things[i].round(round));
        sleep_us(period);
    }
    things[i].end();
    say(1, "all as it should be\n");
    return 0;
}
#endif
