/* Ten thousand mappings, as many as there may be, and reservations of a terabyte of which little is touched. */
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
/* Nearly as many mappings as vm.max_map_count allows; some of them grow, which takes no further one. */
enum { LEFT = 5, GROWING = 8, MOST = 8 };
static char *crowd_at, *growing_at[GROWING];
static long crowd_limit, crowd_used, crowd_count, grown_pages[GROWING];

static long lines_of(const char *path)
{
    static char buffer[1 << 16];
    long lines = 0;
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;)
        for (ssize_t i = 0; i < n; i++)
            lines += buffer[i] == '\n';
    close(fd);
    return lines;
}

static void crowd_set_up(void)
{
    FILE *limit = fopen("/proc/sys/vm/max_map_count", "r");
    CHECK(limit && fscanf(limit, "%ld", &crowd_limit) == 1 && fclose(limit) == 0);
    if (crowd_limit > 100000) {
        say(1, "cannot: vm.max_map_count is %ld\n", crowd_limit);
        _exit(0);
    }
    /* With room around each: they never become neighbours of each other, or of anything else. */
    size_t apart = 4 * MOST * PAGE;
    char *room = map_it(GROWING * apart, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    CHECK(munmap(room, GROWING * apart) == 0);
    for (int i = 0; i < GROWING; i++) {
        growing_at[i] = mmap(room + i * apart + MOST * PAGE, PAGE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        CHECK(growing_at[i] != MAP_FAILED);
        *(volatile uint64_t *)growing_at[i] = mix(44, i);
    }
    crowd_at = map_it((size_t)(crowd_limit + 10) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    /* Each page of another protection than the one before it adds two mappings. The last line of maps, [vsyscall], is none. */
    crowd_count = lines_of("/proc/self/maps") - 1;
    for (long page = 1; crowd_count < crowd_limit - LEFT - 1; page += 2, crowd_count += 2)
        CHECK(mprotect(crowd_at + page * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
    crowd_count = lines_of("/proc/self/maps") - 1;
    crowd_used = crowd_limit / 4;
    CHECK(crowd_count >= crowd_limit - LEFT - 1);
}

static uint64_t crowd_round(long round)
{
    uint64_t sum = round;
    for (int i = 0; i < GROWING; i++) {
        sum = mix(sum, *(volatile uint64_t *)growing_at[i]);
        CHECK(*(volatile uint64_t *)growing_at[i] == mix(44, i));
        for (long page = 1; page <= grown_pages[i]; page++)
            CHECK(*(volatile long *)(growing_at[i] + page * PAGE) == page);
        if (grown_pages[i] == MOST) {
            CHECK(munmap(growing_at[i] + PAGE, MOST * PAGE) == 0);
            grown_pages[i] = 0;
        }
        long next = ++grown_pages[i];
        char *at = mmap(growing_at[i] + next * PAGE, PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (at == MAP_FAILED)
            fail("mapping %d does not grow in round %ld: %ld mappings were %ld", i, round, lines_of("/proc/self/maps") - 1,
                 crowd_count);
        *(volatile long *)at = next;
    }
    for (long page = 1; page < crowd_used; page += 996) {
        long *word = (long *)(crowd_at + page * PAGE);
        if (round > 1)
            CHECK(*word == (round - 1) * page);
        *word = round * page;
    }
    /* A restart in the middle of the reading shows the ends of two files: then once more. */
    for (int i = 0; round % 20 == 0 && lines_of("/proc/self/maps") - 1 > crowd_count; i++)
        CHECK(i < 10);
    return sum;
}
#endif
