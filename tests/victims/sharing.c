/* sharing ROUNDS PERIOD_US [away]: two processes and memory that they share, of no file (MAP_SHARED, MAP_ANONYMOUS).
 *
 * They take turns. Who has its turn writes some pages and drops one (MADV_REMOVE), and each compares what was written with a
 * model in its own memory. Some pages the first process never touches, some memory is mapped half by one and half by the other,
 * some in two places, some by the second alone, which may not read it while it waits. Of what was never written, or dropped,
 * no page may come to be there (mincore(2)): whoever looks at memory must not fill it. With "away" pages are put into swap. */
#include "victim.h"
#include <sys/mman.h>
#include <sys/wait.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
enum { PAGE = 4096, WORDS = PAGE / 8, SPARSE = 5000, SLOTS = 250, STRIDE = 20, OWN = 200, HALF = 32, EIGHT = 8, SOON = 50 };

static char *sparse, *halves, *moved, *first_eight, *twice, *hidden;
/* The round that wrote each last, 0 nobody: slots of `sparse`, this process's half, the eight pages that it writes, the hidden ones. */
static long slots[SLOTS + 1], half[HALF], eight[EIGHT], four[4];
static int me, away, is_exact;
static uint64_t seed = 5;

/* Where a slot is; the last one is the last page. */
static char *at_slot(int slot) { return sparse + (slot == SLOTS ? SPARSE - 1 : slot * STRIDE) * (size_t)PAGE; }

static uint64_t word(uint64_t name, long version, int i) { return mix(mix(mix(7, name), version), i); }

static void put(char *at, uint64_t name, long version)
{
    for (int i = 0; i < WORDS; i++)
        ((uint64_t *)at)[i] = word(name, version, i);
}

static uint64_t right(const char *what, const char *at, uint64_t name, long version)
{
    uint64_t sum = name;
    for (int i = 0; i < WORDS; i++) {
        uint64_t found = ((const uint64_t *)at)[i];
        if (found != word(name, version, i))
            fail("%s %ld, word %d: %016lx is not of round %ld", what, name, i, found, version);
        sum = mix(sum, found);
    }
    return sum;
}

static char *map(size_t pages)
{
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* How many pages of `sparse` are there. */
static int there(void)
{
    static unsigned char pages[SPARSE];
    int count = 0;
    CHECK(mincore(sparse, SPARSE * (size_t)PAGE, pages) == 0);
    for (int i = 0; i < SPARSE; i++)
        count += pages[i] & 1;
    return count;
}

/* Bytes of `sparse` in swap. */
static long in_swap(void)
{
    char line[256], wanted[32];
    long found = 0, is_it = 0, kb;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    CHECK(smaps);
    snprintf(wanted, sizeof wanted, "%lx-", (unsigned long)sparse);
    while (fgets(line, sizeof line, smaps)) {
        if (strchr("0123456789abcdef", line[0]) && strchr(line, '-'))
            is_it = !strncmp(line, wanted, strlen(wanted));
        else if (is_it && sscanf(line, "Swap: %ld", &kb) == 1)
            found += kb << 10;
    }
    fclose(smaps);
    return found;
}

/* The pages of `sparse` that this process touches. */
static int is_mine(int slot) { return me ? !away || slot >= OWN : slot < OWN; }

/* What a round does to `sparse`; the same for both, but that one of them does it. */
static void change(long round, int doing)
{
    for (int i = 0; i < 6; i++) {
        int slot = next_random(&seed) % SLOTS;
        /* Its own part in swap is each one's to write. */
        if (away ? is_mine(slot) : doing && (me || slot < OWN)) {
            put(at_slot(slot), slot, round);
            slots[slot] = round;
        } else if (!away && (round % 2 || slot < OWN)) {
            slots[slot] = round;
        }
    }
    int dropped = next_random(&seed) % SLOTS;
    if (away)
        return;
    if (doing)
        CHECK(madvise(at_slot(dropped), PAGE, MADV_REMOVE) == 0);
    slots[dropped] = 0;
}

static uint64_t check_and_write(long round)
{
    uint64_t sum = round;
    int doing = round % 2 == me;
    change(round, doing);
    for (int slot = 0; slot <= SLOTS; slot++)
        if (slots[slot] && is_mine(slot))
            sum = mix(sum, right("slot", at_slot(slot), slot, slots[slot]));
    for (int i = 0; i < HALF; i++)
        if (half[i])
            sum = mix(sum, right("page of a half", halves + (me * HALF + i) * PAGE, 1000 + i, half[i]));
    put(halves + (me * HALF + round % HALF) * PAGE, 1000 + round % HALF, round);
    half[round % HALF] = round;
    char *eights = me ? moved + EIGHT * PAGE : first_eight;
    for (int i = 0; i < EIGHT; i++)
        if (eight[i])
            sum = mix(sum, right("page of eight", eights + i * PAGE, 2000 + i, eight[i]));
    put((me && round % 3 ? twice : eights) + round % EIGHT * PAGE, 2000 + round % EIGHT, round);
    eight[round % EIGHT] = round;
    if (me) {
        CHECK(mprotect(hidden, 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
        for (int i = 0; i < 4; i++)
            if (four[i])
                sum = mix(sum, right("hidden page", hidden + i * PAGE, 3000 + i, four[i]));
        put(hidden + round % 4 * PAGE, 3000 + round % 4, round);
        four[round % 4] = round;
        CHECK(mprotect(hidden, 4 * PAGE, PROT_NONE) == 0);
    }
    if (away)
        CHECK(madvise(sparse, SPARSE * (size_t)PAGE, MADV_PAGEOUT) == 0);
    return sum;
}

/* Each has its own part of what both had. */
static void divide(void)
{
    CHECK(munmap(halves + (1 - me) * HALF * PAGE, HALF * PAGE) == 0);
    if (me) {
        CHECK(munmap(moved, EIGHT * PAGE) == 0);
        twice = mremap(moved + EIGHT * PAGE, 0, EIGHT * PAGE, MREMAP_MAYMOVE);
        CHECK(twice != MAP_FAILED && mprotect(hidden, 4 * PAGE, PROT_NONE) == 0);
        /* In three pieces, so that it is the first process that has it as one. */
        CHECK(mprotect(sparse + 4 * PAGE, 4 * PAGE, PROT_READ) == 0);
    } else {
        char *to = mmap(NULL, EIGHT * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(to != MAP_FAILED && munmap(hidden, 4 * PAGE) == 0);
        first_eight = mremap(moved, EIGHT * PAGE, EIGHT * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        CHECK(first_eight == to && munmap(moved + EIGHT * PAGE, EIGHT * PAGE) == 0);
    }
}

int main(int argc, char **argv)
{
    long rounds = number(argc, argv, 1, 700), period = number(argc, argv, 2, 3000);
    int to[2], from[2], status, has_been_away = 0;
    away = argc > 3 && !strcmp(argv[3], "away");
    sparse = map(SPARSE), halves = map(2 * HALF), moved = map(2 * EIGHT), hidden = map(4);
    put(at_slot(SLOTS), SLOTS, 1);
    slots[SLOTS] = 1;
    is_exact = !away && there() == 1;
    CHECK(pipe(to) == 0 && pipe(from) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    me = !child;
    divide();
    if (me) {
        close(to[1]), close(from[0]);
        long round;
        while (read(to[0], &round, sizeof round) == sizeof round) {
            uint64_t sum = check_and_write(round);
            write_all(from[1], &sum, sizeof sum);
        }
        _exit(7);
    }
    close(to[0]), close(from[1]);
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        uint64_t its, own = round % 2 ? 0 : check_and_write(round);
        write_all(to[1], &round, sizeof round);
        CHECK(read(from[0], &its, sizeof its) == sizeof its);
        own = round % 2 ? check_and_write(round) : own;
        int written = 0;
        for (int slot = 0; slot <= SLOTS; slot++)
            written += slots[slot] != 0;
        if (is_exact && there() != written)
            fail("%d pages are there, and %d were written", there(), written);
        has_been_away |= away && in_swap() > 0;
        if (away && round == SOON && !has_been_away)
            fail("nothing is ever swapped");
        say(1, "%ld %016lx %016lx\n", round, own, its);
        sleep_us(period);
    }
    close(to[1]);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    say(1, "all as it should be\n");
    return 0;
}
