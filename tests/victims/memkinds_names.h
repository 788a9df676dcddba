/* Mappings that were given names (PR_SET_VMA_ANON_NAME). */
#ifndef MEMKINDS_NAMES_H
#define MEMKINDS_NAMES_H
#include "memkinds.h"
#include <sys/prctl.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif
enum { NAMED = 4 };
static char *named_at[NAMED];
static long named_in[NAMED];

/* The kernel shows a space and a parenthesis as they are. */
static void name_of_mapping(char *name, int which)
{
    sprintf(name, "piece %d (of %ld)", which, named_in[which]);
}

static int give_name(int which, long round)
{
    char name[80];
    named_in[which] = round;
    name_of_mapping(name, which);
    return prctl(PR_SET_VMA, 0 /* PR_SET_VMA_ANON_NAME */, named_at[which], PAGE, which ? name : NULL);
}

static void names_set_up(void)
{
    /* One mapping, which names split. */
    char *at = map_it(NAMED * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (int i = 0; i < NAMED; i++) {
        named_at[i] = at + i * PAGE;
        if (give_name(i, 0)) {
            say(1, "cannot: no names of mappings (%s)\n", strerror(errno));
            _exit(0);
        }
    }
}

/* Whether /proc shows the name of the mapping that begins there; the first has none. */
static int shows_name(int which)
{
    char line[4096], begin[40], expected[96] = "", name[80];
    if (which) {
        name_of_mapping(name, which);
        snprintf(expected, sizeof expected, "[anon:%s]\n", name);
    }
    int n = snprintf(begin, sizeof begin, "%lx-", (unsigned long)named_at[which]), is_it = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    while (!is_it && fgets(line, sizeof line, maps))
        is_it = !strncmp(line, begin, n) && (which ? strstr(line, expected) != NULL : strstr(line, "[anon") == NULL);
    fclose(maps);
    return is_it;
}

static uint64_t names_round(long round)
{
    for (int i = 0; i < NAMED; i++) {
        /* A restart in the midst of a look goes on from the same byte of another file. */
        int look = 0;
        while (!shows_name(i) && look < 3)
            look++;
        /* What lies before the first may be one with it. */
        if (look == 3 && i)
            fail("mapping %d has another name than that of round %ld", i, named_in[i]);
        uint64_t *word = (uint64_t *)named_at[i];
        CHECK(*word == (round > 1 ? mix(i, round - 1) : 0));
        *word = mix(i, round);
        if ((round + i) % 20 == 0)
            CHECK(give_name(i, round) == 0);
    }
    return mix(round, named_in[1]);
}
#endif
