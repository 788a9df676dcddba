/* maps DIR ROUNDS PERIOD_US: every kind of mapping, changed a little and checked whole in each round.
 *
 * A model in the heap says of each page what must be in it: nothing (zeros), the file's bytes, or what a round wrote.
 * Each round writes pages, drops pages (MADV_DONTNEED, MADV_REMOVE, a hole punched into the file), now and then splits
 * by mprotect, moves by mremap, or unmaps and maps anew in the same place; then every page of every mapping is
 * compared with the model. A line is the round and a digest; a wrong page ends the program with its name. */
#include "victim.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 64, RESERVED_TOUCHED = 24 };
#define RESERVED (64ull << 30)

enum kind { ANONYMOUS, SHARED, PRIVATE_FILE, SHARED_FILE, KINDS };
static const char *const names[] = {"anonymous", "shared", "private file", "shared file"};

static struct region {
    char *at;
    int fd;
    /* The round that wrote a page last; 0: zeros or, in a private file mapping, the file's. */
    uint32_t version[PAGES];
} regions[KINDS];
static uint64_t seed = 3;
static char *reserved, *guard, *growing;
static size_t grown = PAGE;
static uint32_t reserved_version[RESERVED_TOUCHED];
static int zero;

static uint64_t word(uint64_t region, uint64_t page, uint64_t version, int i)
{
    return version ? mix(mix(mix(mix(1, region), page), version), i) : 0;
}

static uint64_t file_word(uint64_t page, int i) { return mix(mix(99, page), i); }

static void put(char *at, uint64_t region, uint64_t page, uint64_t version)
{
    for (int i = 0; i < WORDS; i++)
        ((uint64_t *)at)[i] = word(region, page, version, i);
}

static char *map(enum kind kind, void *at, int fd)
{
    int flags = (kind == ANONYMOUS || kind == PRIVATE_FILE ? MAP_PRIVATE : MAP_SHARED) | (fd < 0 ? MAP_ANONYMOUS : 0);
    char *got = mmap(at, PAGES * PAGE, PROT_READ | PROT_WRITE, flags | (at ? MAP_FIXED : 0), fd, 0);
    CHECK(got != MAP_FAILED);
    return got;
}

static void set_up(const char *dir)
{
    CHECK(chdir(dir) == 0);
    zero = open("/dev/zero", O_RDONLY);
    for (int k = 0; k < KINDS; k++) {
        regions[k].fd = -1;
        if (k == PRIVATE_FILE || k == SHARED_FILE) {
            regions[k].fd = open(k == PRIVATE_FILE ? "private" : "shared", O_RDWR | O_CREAT | O_TRUNC, 0600);
            for (int p = 0; k == PRIVATE_FILE && p < PAGES; p++) {
                uint64_t page[WORDS];
                for (int i = 0; i < WORDS; i++)
                    page[i] = file_word(p, i);
                write_all(regions[k].fd, page, sizeof page);
            }
            CHECK(ftruncate(regions[k].fd, PAGES * PAGE) == 0);
        }
        regions[k].at = map(k, NULL, regions[k].fd);
    }
    reserved = mmap(NULL, RESERVED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    guard = mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(reserved != MAP_FAILED && guard != MAP_FAILED);
    CHECK(mprotect(guard + PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
    put(guard + PAGE, 50, 0, 1);
    /* Far below where the kernel places mappings, so that growth meets none. */
    growing = mmap((void *)0x200000000000, PAGE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(growing != MAP_FAILED);
}

static void drop(enum kind kind, int page)
{
    struct region *region = &regions[kind];
    char *at = region->at + page * PAGE;
    if (kind == ANONYMOUS || kind == PRIVATE_FILE)
        CHECK(madvise(at, PAGE, MADV_DONTNEED) == 0);
    else if (kind == SHARED)
        CHECK(madvise(at, PAGE, MADV_REMOVE) == 0);
    else if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page * PAGE, PAGE))
        put(at, kind, page, 0);
    region->version[page] = 0;
}

static void change(long round)
{
    for (int k = 0; k < KINDS; k++) {
        for (int i = 0; i < 3; i++) {
            int page = next_random(&seed) % PAGES;
            put(regions[k].at + page * PAGE, k, page, round);
            regions[k].version[page] = round;
        }
        drop(k, next_random(&seed) % PAGES);
    }
    int slot = round % RESERVED_TOUCHED;
    put(reserved + RESERVED / RESERVED_TOUCHED / PAGE * PAGE * slot, 60, slot, round);
    reserved_version[slot] = round;
    struct region *anonymous = &regions[ANONYMOUS];
    if (round % 11 == 0) {
        char *to = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(to != MAP_FAILED);
        anonymous->at = mremap(anonymous->at, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        CHECK(anonymous->at == to);
    } else if (round % 13 == 0) {
        map(ANONYMOUS, anonymous->at, -1);
        memset(anonymous->version, 0, sizeof anonymous->version);
    }
    if (round % 5 == 0 && grown < 200 * PAGE) {
        growing -= PAGE;
        grown += PAGE;
        put(growing, 70, grown / PAGE, round - round % 5);
    }
}

static uint64_t check_page(const char *name, char *at, uint64_t region, uint64_t page, uint64_t version, int of_file)
{
    uint64_t *words = (uint64_t *)at, sum = region;
    for (int i = 0; i < WORDS; i++) {
        uint64_t expected = !version && of_file ? file_word(page, i) : word(region, page, version, i);
        if (words[i] != expected)
            fail("%s, page %ld, word %d: %016lx and not %016lx of round %ld", name, page, i, words[i], expected, version);
        sum = mix(sum, words[i]);
    }
    return sum;
}

/* Whether the kernel lets us write there, without changing what is there. */
static int is_writable(char *at)
{
    char kept;
    int pair[2];
    CHECK(pipe(pair) == 0);
    int readable = write(pair[1], at, 1) == 1;
    int writable = readable && read(pair[0], at, 1) == 1;
    if (readable && !writable)
        CHECK(read(pair[0], &kept, 1) == 1);
    close(pair[0]), close(pair[1]);
    return writable;
}

static uint64_t check(void)
{
    uint64_t sum = 0;
    for (int k = 0; k < KINDS; k++)
        for (int p = 0; p < PAGES; p++)
            sum = mix(sum, check_page(names[k], regions[k].at + p * PAGE, k, p, regions[k].version[p], k == PRIVATE_FILE));
    for (int s = 0; s < RESERVED_TOUCHED; s++) {
        char *at = reserved + RESERVED / RESERVED_TOUCHED / PAGE * PAGE * s;
        if (reserved_version[s])
            sum = mix(sum, check_page("reserved", at, 60, s, reserved_version[s], 0));
    }
    for (size_t g = 2; g <= grown / PAGE; g++)
        sum = mix(sum, check_page("growing", growing + grown - g * PAGE, 70, g, 5 * (g - 1), 0));
    sum = mix(sum, check_page("between guards", guard + PAGE, 50, 0, 1, 0));
    CHECK(read(zero, guard, 1) < 0 && errno == EFAULT && read(zero, guard + 2 * PAGE, 1) < 0 && errno == EFAULT);
    return sum;
}

/* Uses a little more of the main stack each round, up to two megabytes. */
static uint64_t deep(long depth)
{
    volatile uint64_t here[512];
    for (int i = 0; i < 512; i += 64)
        here[i] = depth;
    uint64_t below = depth > 0 ? deep(depth - 1) : 0;
    return mix(below, here[0] + here[448]);
}

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    long rounds = number(argc, argv, 2, 300), period = number(argc, argv, 3, 2000);
    set_up(argv[1]);
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        change(round);
        uint64_t sum = mix(check(), deep(round % 500));
        /* Read-only in the middle over the sleep, so that checkpoints find the mapping split. */
        char *middle = regions[ANONYMOUS].at + 20 * PAGE;
        CHECK(mprotect(middle, 8 * PAGE, round % 2 ? PROT_READ : PROT_READ | PROT_WRITE) == 0);
        say(1, "%ld %016lx\n", round, sum);
        sleep_us(period);
        CHECK(is_writable(middle) == !(round % 2));
        CHECK(mprotect(middle, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
    }
    return 0;
}
