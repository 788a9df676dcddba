/* Pages that the kernel has put away: in swap, or merged with equal ones (KSM). */
#ifndef MEMKINDS_PAGED_H
#define MEMKINDS_PAGED_H
#include "memkinds.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
enum { SOON_ROUNDS = 50, EQUAL = 256 };
static char *paged_at, *equal_at;
static struct model paged = {51, {0}};

/* A number from a file of /proc/self, after `key`; -1 where there is none. */
static long told(const char *file, const char *key)
{
    char line[256];
    long value = -1;
    FILE *from = fopen(file, "r");
    while (from && value < 0 && fgets(line, sizeof line, from))
        if (!strncmp(line, key, strlen(key)))
            value = strtol(line + strlen(key), NULL, 10);
    if (from)
        fclose(from);
    return value;
}

static void swapped_set_up(void)
{
    paged_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (int page = 0; page < PAGES; page++)
        put(paged_at, &paged, page, 1);
}

/* What is left in swap over the sleep is what a checkpoint finds there. */
static uint64_t swapped_round(long round)
{
    static int has_been_there;
    uint64_t sum = right("swapped", paged_at, &paged, PAGES);
    change(paged_at, &paged, round);
    CHECK(madvise(paged_at, PAGES * PAGE, MADV_PAGEOUT) == 0);
    has_been_there |= told("/proc/self/status", "VmSwap:") > 0;
    if (round == SOON_ROUNDS && !has_been_there)
        fail("nothing is ever swapped");
    return sum;
}

static void merged_set_up(void)
{
    equal_at = map_it(EQUAL * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memset(equal_at, 'k', EQUAL * PAGE);
    CHECK(madvise(equal_at, EQUAL * PAGE, MADV_MERGEABLE) == 0);
    for (int i = 0; i < 20000 && told("/proc/self/ksm_merging_pages", "") < EQUAL / 2; i++)
        sleep_us(1000);
    CHECK(told("/proc/self/ksm_merging_pages", "") >= EQUAL / 2);
}

/* One page is another one in each round, and that of the round before is like all others again. */
static uint64_t merged_round(long round)
{
    static int other = -1;
    for (int page = 0; page < EQUAL; page++)
        for (int i = 0; i < PAGE; i += 512)
            if (equal_at[page * PAGE + i] != (page == other ? 'o' : 'k'))
                fail("page %d, byte %d: %c in round %ld", page, i, equal_at[page * PAGE + i], round);
    if (other >= 0)
        memset(equal_at + other * PAGE, 'k', PAGE);
    other = next_random(&random_state) % EQUAL;
    memset(equal_at + other * PAGE, 'o', PAGE);
    return other;
}
#endif
