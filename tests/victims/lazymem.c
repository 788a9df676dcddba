/* lazymem MIB STEPS GATE TOUCH [TASKS]: memory that checks itself, a few pages a step.
 *
 * GATE is what is waited for before each step: "-" nothing, "signal" a SIGUSR1, "call" one, after which the step's first
 * page is given to a system call before it is touched, a number that many microseconds.
 * Each step checks and rewrites TOUCH pseudo-random pages and prints "STEP CHECKSUM"; the last line, "all CHECKSUM",
 * comes after every page has been checked. A wrong byte is printed as "WRONG". TASKS processes more (0 unless said)
 * do the same with the pages they inherited, printing nothing but what is wrong. */
#include "victim.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static void fill(uint64_t *page, uint64_t number, uint64_t version)
{
    uint64_t seed = number * 1000003 + version + 1;
    for (int i = 0; i < WORDS; i++)
        page[i] = next_random(&seed);
}

static uint64_t check(const uint64_t *page, uint64_t number, uint64_t version)
{
    uint64_t seed = number * 1000003 + version + 1;
    for (int i = 0; i < WORDS; i++) {
        uint64_t expected = next_random(&seed);
        if (page[i] != expected) {
            say(1, "WRONG page %lu word %d: %016lx, not %016lx\n", number, i, page[i], expected);
            _exit(3);
        }
    }
    return page[WORDS - 1];
}

int main(int argc, char **argv)
{
    if (argc < 5)
        fail("usage: lazymem MIB STEPS GATE TOUCH [TASKS]");
    size_t pages = (size_t)atol(argv[1]) << 8;
    long steps = atol(argv[2]), touch = atol(argv[4]), tasks = number(argc, argv, 5, 0);
    const char *gate = argv[3];
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *versions = calloc(pages, 1);
    CHECK(memory != MAP_FAILED && versions);
    for (size_t i = 0; i < pages; i++)
        fill(memory + i * WORDS, i, 0);
    int is_task = 0;
    for (long i = 0; i < tasks && !is_task; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        is_task = child == 0;
    }
    if (!is_task)
        say(1, "ready\n");
    uint64_t seed = 11;
    for (long step = 1; step <= steps; step++) {
        int signal, is_call = !strcmp(gate, "call");
        hold_at(step, is_task ? 0 : steps);
        if ((is_call || !strcmp(gate, "signal")) && !is_task)
            CHECK(sigwait(&usr1, &signal) == 0);
        else if (strcmp(gate, "-"))
            sleep_us(is_task ? 1000 : atol(gate));
        uint64_t sum = 0, first = seed;
        if (is_call)
            access((const char *)(memory + next_random(&first) % pages * WORDS), F_OK);
        for (long i = 0; i < touch; i++) {
            uint64_t page = next_random(&seed) % pages;
            sum = mix(sum, check(memory + page * WORDS, page, versions[page]));
            fill(memory + page * WORDS, page, ++versions[page]);
        }
        if (!is_task)
            say(1, "%ld %016lx\n", step, sum);
    }
    uint64_t sum = 0;
    for (size_t i = 0; i < pages; i++)
        sum = mix(sum, check(memory + i * WORDS, i, versions[i]));
    if (is_task)
        return 0;
    for (long i = 0; i < tasks; i++) {
        int status;
        CHECK(wait(&status) > 0 && status == 0);
    }
    say(1, "all %016lx\n", sum);
    return 0;
}
