/* bench MIB CONTENT RATE THREADS MAPPINGS FILES HUGE: computes over its memory and tells how it was held up (`cargo xtask bench`).
 *
 * MIB of private memory hold random words, or with CONTENT "compressible" what lz4 makes a third of, one page in 16 being
 * zeros. One thread, again and again, looks at the clock, adds up the next page, and writes a word to a random one where
 * that is due: RATE pages a second, evenly. THREADS - 1 others wait. MAPPINGS of a page each and FILES open descriptors are
 * there beside it. HUGE: "on" asks for huge pages, "off" forbids them, "-" does neither.
 *
 * At the start, and for each SIGUSR1, "NUMBER NANOSECONDS SUMS WRITTEN LONGEST" goes to stdout: of the time since the line
 * before, how long it was, pages added up and pages written, and the longest time between two looks at the clock. So a stop
 * of the program is in LONGEST, whoever stops it. It ends with the process that has started it. */
#include "victim.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { PAGE = 4096, WORDS = PAGE / 8, HUGE_PAGE = 2 << 20, SECOND = 1000000000 };
/* Writes that are late by more are left out: a program that was stopped does not work off at once what it has missed. */
enum { LATE = 1000000 };

static volatile sig_atomic_t asked = 1;
static volatile uint64_t result;

static void ask(int signal)
{
    (void)signal;
    asked = 1;
}

static void *wait_for_nothing(void *arg)
{
    for (;;)
        pause();
    return arg;
}

static void start_threads(long count)
{
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    /* The signal is for the thread that computes. */
    CHECK(pthread_sigmask(SIG_BLOCK, &usr1, NULL) == 0);
    for (long i = 0; i < count; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, wait_for_nothing, NULL) == 0);
    }
    CHECK(pthread_sigmask(SIG_UNBLOCK, &usr1, NULL) == 0);
}

/* Neighbours with other rights, so that the kernel makes no two of them one. */
static void make_mappings(long count)
{
    if (!count)
        return;
    char *room = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    for (long i = 0; i < count; i++) {
        room[i * PAGE] = 1;
        CHECK(i % 2 == 0 || mprotect(room + i * PAGE, PAGE, PROT_READ) == 0);
    }
}

static void open_files(long count, const char *path)
{
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (long i = 0; i < count; i++)
        CHECK(open(path, O_RDONLY) >= 0);
}

static void fill(uint64_t *page, size_t at, int compressible, uint64_t *seed)
{
    if (compressible && at % 16 == 0) {
        *(volatile uint64_t *)page = 0;
        return;
    }
    for (int i = 0; i < WORDS; i++)
        page[i] = compressible && i % 4 ? at : next_random(seed);
}

static uint64_t *make_memory(size_t pages, int compressible, const char *huge, uint64_t *seed)
{
    CHECK(strcmp(huge, "off") || prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    size_t size = pages * PAGE;
    char *room = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    uint64_t *memory = (uint64_t *)(((uintptr_t)room + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    CHECK(strcmp(huge, "on") || madvise(memory, size, MADV_HUGEPAGE) == 0);
    for (size_t i = 0; i < pages; i++)
        fill(memory + i * WORDS, i, compressible, seed);
    return memory;
}

int main(int argc, char **argv)
{
    if (argc != 8)
        fail("usage: bench MIB random|compressible RATE THREADS MAPPINGS FILES on|off|-");
    size_t pages = (size_t)atol(argv[1]) << 8;
    uint64_t rate = atol(argv[3]), seed = 7;
    int compressible = !strcmp(argv[2], "compressible");
    CHECK(pages > 0 && (compressible || !strcmp(argv[2], "random")));
    struct sigaction action = {.sa_handler = ask};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0);
    uint64_t *memory = make_memory(pages, compressible, argv[7], &seed);
    start_threads(atol(argv[4]) - 1);
    make_mappings(atol(argv[5]));
    open_files(atol(argv[6]), argv[0]);
    uint64_t lines = 0, begin = now_ns(), last = begin, due = begin;
    uint64_t sums = 0, written = 0, longest = 0;
    for (size_t page = 0;; page = (page + 1) % pages) {
        uint64_t now = now_ns();
        longest = now - last > longest ? now - last : longest;
        last = now;
        if (asked) {
            asked = 0;
            say(1, "%lu %lu %lu %lu %lu\n", lines++, now - begin, sums, written, longest);
            sums = written = longest = 0;
            begin = last = now_ns();
        }
        result = mix_words(result, memory + page * WORDS, WORDS);
        sums++;
        if (rate && now >= due) {
            uint64_t word = next_random(&seed);
            memory[word % pages * WORDS] = word;
            written++;
            due = now - due > LATE ? now : due + SECOND / rate;
        }
    }
}
