/* Ranges with memory policies of their own (mbind(2)), which one node is enough for. */
#ifndef MEMKINDS_POLICY_H
#define MEMKINDS_POLICY_H
#include "memkinds.h"
#include <linux/mempolicy.h>

#ifndef MPOL_PREFERRED_MANY
#define MPOL_PREFERRED_MANY 5
#endif
enum { NODE_WORDS = 16, NODE_BITS = 64 * NODE_WORDS, SYS_SET_HOME_NODE = 450 };

static const int modes[] = {MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED, MPOL_BIND | MPOL_F_STATIC_NODES,
                            MPOL_PREFERRED_MANY, MPOL_LOCAL, MPOL_DEFAULT};
enum { MODES = sizeof modes / sizeof *modes };

/* Of each, a piece in the middle; -1: no policy was given to it. */
static struct ranged {
    const char *what;
    int protection, flags;
    int fd;
    char *at;
    int mode;
    struct model model;
} ranged[] = {
    {"private", PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, -1, {21, {0}}},
    {"untouchable", PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, -1, {22, {0}}},
    {"shared", PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0, -1, {23, {0}}},
    {"memfd", PROT_READ | PROT_WRITE, MAP_SHARED, 0, 0, -1, {24, {0}}},
    {"of a file", PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, 0, -1, {25, {0}}},
};
enum { RANGED = sizeof ranged / sizeof *ranged, FIRST = 8, LAST = 24 };

static int mode_at(const char *at)
{
    int mode = -1;
    unsigned long nodes[NODE_WORDS] = {0};
    if (syscall(SYS_get_mempolicy, &mode, nodes, NODE_BITS, at, MPOL_F_ADDR)) {
        say(1, "cannot: %s\n", strerror(errno));
        _exit(0);
    }
    int has_nodes = mode != MPOL_DEFAULT && mode != MPOL_LOCAL;
    CHECK(nodes[0] == (unsigned)has_nodes && !nodes[1] && !nodes[NODE_WORDS - 1]);
    return mode;
}

static void policies_set_up(void)
{
    for (int i = 0; i < RANGED; i++) {
        struct ranged *one = &ranged[i];
        if (!one->fd) {
            one->fd = one->flags & MAP_SHARED ? memfd_create("m", 0) : open("ranged", O_RDWR | O_CREAT | O_TRUNC, 0600);
            CHECK(one->fd >= 0 && ftruncate(one->fd, PAGES * PAGE) == 0);
        }
        one->at = map_it(PAGES * PAGE, one->protection, one->flags, one->fd);
        one->mode = mode_at(one->at + FIRST * PAGE);
    }
}

static uint64_t policies_round(long round)
{
    uint64_t sum = round;
    for (int i = 0; i < RANGED; i++) {
        struct ranged *one = &ranged[i];
        int before = mode_at(one->at), inside = mode_at(one->at + FIRST * PAGE), end = mode_at(one->at + (LAST - 1) * PAGE);
        if (before != MPOL_DEFAULT || inside != one->mode || end != one->mode || mode_at(one->at + LAST * PAGE))
            fail("%s: the policies are %d, %d, %d and not 0, %d", one->what, before, inside, end, one->mode);
        sum = mix(sum, inside);
        if (one->protection) {
            change(one->at, &one->model, round);
            sum = mix(sum, right(one->what, one->at, &one->model, PAGES));
        }
        if ((round + i) % 50)
            continue;
        int mode = modes[(round / 50 + i) % MODES];
        unsigned long node = mode != MPOL_DEFAULT && mode != MPOL_LOCAL;
        char *at = one->at + FIRST * PAGE;
        size_t len = (LAST - FIRST) * PAGE;
        if (syscall(SYS_mbind, at, len, mode, &node, 64, 0) == 0)
            one->mode = mode;
        else
            CHECK(mode == MPOL_PREFERRED_MANY && errno == EINVAL);
        if (one->mode == MPOL_PREFERRED_MANY || one->mode == MPOL_BIND)
            CHECK(syscall(SYS_SET_HOME_NODE, at, len, 0, 0) == 0 || errno == ENOSYS);
    }
    return sum;
}
#endif
