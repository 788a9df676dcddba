/* Mappings with each of the flags that smaps shows, which have to stay; locked memory. */
#ifndef MEMKINDS_FLAGS_H
#define MEMKINDS_FLAGS_H
#include "memkinds.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8
#endif
enum { EACH = 4 * PAGE, SYS_MSEAL = 462, ONFAULT = 1, FLAGS = 200 };

static void flags_in_one_look(const void *at, char *out, size_t size)
{
    char line[4096], start[32];
    int n = snprintf(start, sizeof start, "%lx-", (unsigned long)at), here = 0;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    CHECK(smaps);
    out[0] = 0;
    while (fgets(line, sizeof line, smaps)) {
        if (!strncmp(line, start, n))
            here = 1;
        if (!here || strncmp(line, "VmFlags:", 8))
            continue;
        for (char *word = strtok(line + 8, " \n"); word; word = strtok(NULL, " \n"))
            if (strcmp(word, "uw") && strcmp(word, "um") && strcmp(word, "sd") && strlen(out) + 4 < size)
                strcat(strcat(out, word), " ");
        break;
    }
    fclose(smaps);
    if (!here)
        strcpy(out, "no mapping begins there");
}

/* VmFlags of the mapping at `at` without what a tracker may add: watched for writes, written since. What two looks agree
 * on: a restart in the midst of one goes on from the same byte of another smaps. */
static void flags_of(const void *at, char out[FLAGS])
{
    char before[FLAGS];
    flags_in_one_look(at, out, FLAGS);
    do {
        strcpy(before, out);
        flags_in_one_look(at, out, FLAGS);
    } while (strcmp(before, out));
}

enum { ANONYMOUS, SHARED, MEMFD, OF_FILE };

static struct flagged {
    const char *what;
    int map, advice, lock, of;
    char *at, flags[FLAGS];
} flagged[] = {
    {.what = "plain"},
    {.what = "DONTFORK", .advice = MADV_DONTFORK},
    {.what = "DONTDUMP", .advice = MADV_DONTDUMP},
    {.what = "WIPEONFORK", .advice = MADV_WIPEONFORK},
    {.what = "HUGEPAGE", .advice = MADV_HUGEPAGE},
    {.what = "NOHUGEPAGE", .advice = MADV_NOHUGEPAGE},
    {.what = "MERGEABLE", .advice = MADV_MERGEABLE},
    {.what = "SEQUENTIAL", .advice = MADV_SEQUENTIAL},
    {.what = "RANDOM", .advice = MADV_RANDOM},
    {.what = "NORESERVE", .map = MAP_NORESERVE},
    {.what = "GROWSDOWN", .map = MAP_GROWSDOWN},
    {.what = "LOCKED", .map = MAP_LOCKED},
    {.what = "mlock", .lock = 1},
    {.what = "mlock2 on fault", .lock = 2},
    {.what = "DROPPABLE", .map = MAP_DROPPABLE},
    {.what = "sealed", .lock = 3},
    {.what = "shared, DONTFORK", .of = SHARED, .advice = MADV_DONTFORK},
    {.what = "shared, DONTDUMP", .of = SHARED, .advice = MADV_DONTDUMP},
    {.what = "shared, HUGEPAGE", .of = SHARED, .advice = MADV_HUGEPAGE},
    {.what = "shared, RANDOM", .of = SHARED, .advice = MADV_RANDOM},
    {.what = "shared, NORESERVE", .of = SHARED, .map = MAP_NORESERVE},
    {.what = "shared, mlock", .of = SHARED, .lock = 1},
    {.what = "shared, sealed", .of = SHARED, .lock = 3},
    {.what = "memfd, DONTFORK", .of = MEMFD, .advice = MADV_DONTFORK},
    {.what = "memfd, SEQUENTIAL", .of = MEMFD, .advice = MADV_SEQUENTIAL},
    {.what = "memfd, LOCKED", .of = MEMFD, .map = MAP_LOCKED},
    {.what = "memfd, sealed", .of = MEMFD, .lock = 3},
    {.what = "of a file, DONTFORK", .of = OF_FILE, .advice = MADV_DONTFORK},
    {.what = "of a file, DONTDUMP", .of = OF_FILE, .advice = MADV_DONTDUMP},
    {.what = "of a file, RANDOM", .of = OF_FILE, .advice = MADV_RANDOM},
    {.what = "of a file, LOCKED", .of = OF_FILE, .map = MAP_LOCKED},
    {.what = "of a file, mlock", .of = OF_FILE, .lock = 1},
    {.what = "of a file, sealed", .of = OF_FILE, .lock = 3},
};
enum { FLAGGED = sizeof flagged / sizeof *flagged };
static char *area;

static int open_for(int of)
{
    int fd = of == MEMFD ? (int)syscall(SYS_memfd_create, "flagged", 0) : open("flagged", O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, EACH) == 0);
    return fd;
}

/* Each between two pieces that nobody may touch, so that none merges with another. */
static void flags_set_up(void)
{
    area = map_it(2 * FLAGGED * EACH + EACH, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (int i = 0; i < FLAGGED; i++) {
        struct flagged *one = &flagged[i];
        int type = one->map == MAP_DROPPABLE ? 0 : one->of == SHARED || one->of == MEMFD ? MAP_SHARED : MAP_PRIVATE;
        int fd = one->of == MEMFD || one->of == OF_FILE ? open_for(one->of) : -1;
        type |= one->map | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0);
        one->at = area + (2 * i + 1) * EACH;
        char *at = mmap(one->at, EACH, PROT_READ | PROT_WRITE, type, fd, 0);
        CHECK(fd < 0 || close(fd) == 0);
        if (at == MAP_FAILED && one->map == MAP_DROPPABLE)
            at = mmap(one->at, EACH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(at == one->at);
        if (one->advice && madvise(at, EACH, one->advice) != 0) {
            CHECK(errno == EINVAL);
            say(2, "cannot: %s (%s)\n", one->what, strerror(errno));
        }
        if (one->lock == 1)
            CHECK(mlock(at, EACH) == 0);
        if (one->lock == 2)
            CHECK(syscall(SYS_mlock2, at, EACH, ONFAULT) == 0);
        if (one->lock == 3 && syscall(SYS_MSEAL, at, EACH, 0) != 0) {
            CHECK(errno == ENOSYS);
            say(2, "cannot: %s (%s)\n", one->what, strerror(errno));
        }
        flags_of(at, one->flags);
    }
}

static void look_at_flags_of(const struct flagged *one)
{
    char now[FLAGS];
    flags_of(one->at, now);
    if (strcmp(now, one->flags))
        fail("%s: flags %s and not %s", one->what, now, one->flags);
}

static uint64_t flags_round(long round)
{
    uint64_t sum = round;
    for (int i = 0; i < FLAGGED; i++) {
        struct flagged *one = &flagged[i];
        if ((round + i) % 3 == 0)
            look_at_flags_of(one);
        uint64_t *words = (uint64_t *)one->at;
        if (words[0] != (round == 1 ? 0 : mix(i, round - 1)) && one->map != MAP_DROPPABLE)
            fail("%s: %lx in round %ld", one->what, words[0], round);
        words[0] = mix(i, round);
        for (const char *c = one->flags; *c; c++)
            sum = mix(sum, *c);
        if (strstr(one->flags, "sl "))
            CHECK(munmap(one->at, EACH) < 0 && errno == EPERM);
        /* On fault: what nobody has touched is not there. */
        unsigned char there[EACH / PAGE];
        CHECK(mincore(one->at, EACH, there) == 0);
        if (one->lock == 1 || one->map == MAP_LOCKED)
            CHECK(there[1] & there[2] & there[3] & 1);
        if (one->lock == 2)
            CHECK(!((there[1] | there[2] | there[3]) & 1));
    }
    return sum;
}

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
static char *guard_at;
static int guard_pipe[2];
/* One guard page, over contents that stay. NULL where the kernel has none in shared memory (before Linux 6.15). */
static char *guard_shared;

static void guard_set_up(void)
{
    guard_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    CHECK(pipe(guard_pipe) == 0);
    if (madvise(guard_at, PAGE, MADV_GUARD_INSTALL)) {
        say(1, "cannot: %s\n", strerror(errno));
        _exit(0);
    }
    CHECK(madvise(guard_at, PAGE, MADV_GUARD_REMOVE) == 0);
    guard_shared = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    memset(guard_shared, 'x', 2 * PAGE);
    if (madvise(guard_shared + PAGE, PAGE, MADV_GUARD_INSTALL))
        guard_shared = NULL;
}

static void guard_shared_round(void)
{
    CHECK(write(guard_pipe[1], guard_shared + PAGE, 1) < 0 && errno == EFAULT);
    CHECK(madvise(guard_shared + PAGE, PAGE, MADV_GUARD_REMOVE) == 0);
    CHECK(guard_shared[0] == 'x' && guard_shared[PAGE] == 'x' && guard_shared[2 * PAGE - 1] == 'x');
    CHECK(madvise(guard_shared + PAGE, PAGE, MADV_GUARD_INSTALL) == 0);
}

/* Two guard pages in each round, one over a page with contents; those of the round before are zeros again. */
static uint64_t guard_round(long round)
{
    static struct model model = {9, {0}};
    static int guarded[2] = {-1, -1};
    char byte;
    for (int i = 0; i < 2; i++) {
        if (guarded[i] < 0)
            continue;
        CHECK(write(guard_pipe[1], guard_at + guarded[i] * PAGE, 1) < 0 && errno == EFAULT);
        CHECK(madvise(guard_at + guarded[i] * PAGE, PAGE, MADV_GUARD_REMOVE) == 0);
    }
    if (guard_shared)
        guard_shared_round();
    uint64_t sum = right("with guard pages", guard_at, &model, PAGES);
    change(guard_at, &model, round);
    guarded[0] = next_random(&random_state) % PAGES;
    guarded[1] = (guarded[0] + 1) % PAGES;
    for (int i = 0; i < 2; i++) {
        put(guard_at, &model, guarded[i], i ? round : model.version[guarded[i]]);
        CHECK(madvise(guard_at + guarded[i] * PAGE, PAGE, MADV_GUARD_INSTALL) == 0);
        model.version[guarded[i]] = 0;
    }
    int next = (guarded[1] + 1) % PAGES;
    CHECK(write(guard_pipe[1], guard_at + next * PAGE, 1) == 1 && read(guard_pipe[0], &byte, 1) == 1);
    return sum;
}

static char *locked_at, *untouchable;
static char locked_flags[2][FLAGS];

static void locked_set_up(void)
{
    locked_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    untouchable = map_it(PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    CHECK(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
    flags_of(locked_at, locked_flags[0]);
    flags_of(untouchable, locked_flags[1]);
    CHECK(strstr(locked_flags[0], "lo ") && strstr(locked_flags[1], "lo "));
}

/* A mapping made now is locked, and there unless it is to come on fault. */
static void new_is_locked(int on_fault)
{
    char now[FLAGS];
    unsigned char there;
    char *at = map_it(EACH, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    flags_of(at, now);
    if (!strstr(now, "lo ") || !strstr(now, "lf ") != !on_fault)
        fail("a new mapping has the flags %s", now);
    CHECK(mincore(at, PAGE, &there) == 0 && (there & 1) == !on_fault);
    CHECK(munmap(at, EACH) == 0);
}

static uint64_t locked_round(long round)
{
    static struct model model = {8, {0}};
    char now[FLAGS];
    const char *at[] = {locked_at, untouchable};
    for (int i = 0; i < 2; i++) {
        flags_of(at[i], now);
        if (strcmp(now, locked_flags[i]))
            fail("mapping %d has the flags %s, and had %s", i, now, locked_flags[i]);
    }
    change(locked_at, &model, round);
    new_is_locked(0);
    return right("locked", locked_at, &model, PAGES);
}

static void to_come_set_up(void)
{
    CHECK(mlockall(MCL_FUTURE | MCL_ONFAULT) == 0);
    locked_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static uint64_t to_come_round(long round)
{
    static struct model model = {7, {0}};
    change(locked_at, &model, round);
    new_is_locked(1);
    return right("locked on fault", locked_at, &model, PAGES);
}
#endif
