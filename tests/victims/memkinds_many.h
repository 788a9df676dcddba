/* Ten thousand mappings, and reservations of a terabyte of which little is touched. */
#ifndef MEMKINDS_MANY_H
#define MEMKINDS_MANY_H
#include "memkinds.h"

enum { MANY = 10000, SPARSE = 16, MOST_TABLES_KB = 4096 };
#define TERABYTE (1ul << 40)

static char *many_at;
static long many_version[MANY];

/* Every other page is read-only: each is a mapping of its own. */
static void many_set_up(void)
{
    many_at = map_it((size_t)MANY * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (int page = 0; page < MANY; page += 2) {
        *(uint64_t *)(many_at + (size_t)page * PAGE) = mix(41, page);
        CHECK(mprotect(many_at + (size_t)page * PAGE, PAGE, PROT_READ) == 0);
    }
}

static uint64_t many_round(long round)
{
    uint64_t sum = round;
    int in, out, pair[2];
    CHECK(pipe(pair) == 0);
    out = pair[0], in = pair[1];
    for (int page = 0; page < MANY; page++) {
        uint64_t expected = page % 2 ? (many_version[page] ? mix(mix(42, page), many_version[page]) : 0) : mix(41, page);
        uint64_t found = *(volatile uint64_t *)(many_at + (size_t)page * PAGE);
        if (found != expected)
            fail("mapping %d: %016lx and not %016lx", page, found, expected);
        sum = mix(sum, found);
    }
    for (int i = 0; i < 5; i++) {
        int page = next_random(&random_state) % (MANY / 2) * 2 + 1;
        *(uint64_t *)(many_at + (size_t)page * PAGE) = mix(mix(42, page), round);
        many_version[page] = round;
        /* The kernel writes to no page that is read-only. */
        CHECK(write(in, "x", 1) == 1 && read(out, many_at + (size_t)(page - 1) * PAGE, 1) < 0 && errno == EFAULT);
    }
    close(in), close(out);
    return sum;
}

static char *untouched_at, *sparse_at;
static long sparse_version[SPARSE];

static void sparse_set_up(void)
{
    untouched_at = map_it(TERABYTE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    sparse_at = map_it(TERABYTE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    /* A huge page at each place would be another test. */
    madvise(sparse_at, TERABYTE, MADV_NOHUGEPAGE);
}

/* What the kernel keeps of page tables, kB. */
static long page_tables(void)
{
    char line[256];
    long kb = -1;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status);
    while (kb < 0 && fgets(line, sizeof line, status))
        sscanf(line, "VmPTE: %ld kB", &kb);
    fclose(status);
    return kb;
}

static uint64_t sparse_round(long round)
{
    uint64_t sum = round;
    long tables = page_tables();
    if (tables < 0 || tables > MOST_TABLES_KB)
        fail("page tables of %ld kB", tables);
    for (int i = 0; i < SPARSE; i++) {
        volatile uint64_t *word = (uint64_t *)(sparse_at + TERABYTE / SPARSE * i);
        uint64_t expected = sparse_version[i] ? mix(mix(43, i), sparse_version[i]) : 0;
        if (*word != expected)
            fail("place %d: %016lx and not %016lx", i, *word, expected);
        sum = mix(sum, expected);
    }
    int place = round % SPARSE;
    *(uint64_t *)(sparse_at + TERABYTE / SPARSE * place) = mix(mix(43, place), round);
    sparse_version[place] = round;
    return sum;
}
#endif
