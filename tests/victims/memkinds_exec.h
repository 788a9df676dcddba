/* Memory that may only be executed: code of the program's own, which says which round wrote it. */
#ifndef MEMKINDS_EXEC_H
#define MEMKINDS_EXEC_H
#include "memkinds.h"
#include "memkinds_flags.h"

enum { CODE_PAGES = 4 };

/* Of each page its protection, and what its code gives; -1: it has none. */
static struct coded {
    const char *what;
    int map, lock;
    int protection[CODE_PAGES];
    char *at, flags[CODE_PAGES][FLAGS];
    int gives[CODE_PAGES];
} coded[] = {
#define X PROT_EXEC
#define RX (PROT_READ | PROT_EXEC)
#define RW (PROT_READ | PROT_WRITE)
    {.what = "alone", .protection = {X, X, X, X}},
    {.what = "among others", .protection = {RW, X, RX, PROT_NONE}},
    {.what = "of a file", .map = -1, .protection = {X, X, RX, X}},
    {.what = "shared", .map = MAP_SHARED, .protection = {RW, X, X, RX}},
    {.what = "locked", .lock = 1, .protection = {X, X, RX, RW}},
    {.what = "sealed", .lock = 3, .protection = {X, X, RX, X}},
};
enum { CODED = sizeof coded / sizeof *coded };

static void write_code(struct coded *one, int page, int value)
{
    char *at = one->at + page * PAGE;
    CHECK(mprotect(at, PAGE, RW) == 0);
    /* mov $value, %eax; ret */
    at[0] = (char)0xb8;
    memcpy(at + 1, &value, sizeof value);
    at[5] = (char)0xc3;
    CHECK(mprotect(at, PAGE, one->protection[page]) == 0);
    one->gives[page] = value;
}

static void exec_set_up(void)
{
    int file = open("code", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0 && ftruncate(file, CODE_PAGES * PAGE) == 0);
    for (int i = 0; i < CODED; i++) {
        struct coded *one = &coded[i];
        /* Between pieces that nobody may touch, so that none merges with another. */
        char *room = map_it((CODE_PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        int of_file = one->map == -1, flags = MAP_FIXED | (of_file ? MAP_PRIVATE : MAP_ANONYMOUS);
        flags |= of_file || one->map ? of_file ? 0 : one->map : MAP_PRIVATE;
        one->at = mmap(room + PAGE, CODE_PAGES * PAGE, RW, flags, of_file ? file : -1, 0);
        CHECK(one->at == room + PAGE);
        if (one->lock == 1)
            CHECK(mlock(one->at, CODE_PAGES * PAGE) == 0);
        for (int page = 0; page < CODE_PAGES; page++) {
            one->gives[page] = -1;
            if (one->protection[page] & PROT_EXEC)
                write_code(one, page, i * CODE_PAGES + page);
            else
                CHECK(mprotect(one->at + page * PAGE, PAGE, one->protection[page]) == 0);
        }
        if (one->lock == 3 && syscall(SYS_MSEAL, one->at, CODE_PAGES * PAGE, 0))
            CHECK(errno == ENOSYS);
    }
    CHECK(close(file) == 0);
}

static void look_at_flags(struct coded *one, int page, long round)
{
    char flags[FLAGS], *expected = one->flags[page];
    flags_of(one->at + page * PAGE, flags);
    if (round == 1)
        strcpy(expected, flags);
    if (strcmp(flags, expected))
        fail("%s, page %d: %s and not %s", one->what, page, flags, expected);
}

static uint64_t exec_round(long round)
{
    uint64_t sum = round;
    for (int i = 0; i < CODED; i++) {
        struct coded *one = &coded[i];
        for (int page = 0; page < CODE_PAGES; page++) {
            if (round % 10 == 1)
                look_at_flags(one, page, round);
            if (one->gives[page] < 0)
                continue;
            int got = ((int (*)(void))(one->at + page * PAGE))();
            if (got != one->gives[page])
                fail("%s, page %d: it gives %d and not %d", one->what, page, got, one->gives[page]);
            sum = mix(sum, got);
            if (one->lock != 3 && (round + i + page) % 20 == 0)
                write_code(one, page, round * 100 + i * CODE_PAGES + page);
        }
    }
    return sum;
}
#undef X
#undef RX
#undef RW
#endif
