/* memory MIB STEPS SUMS GATE PERCENT: rewrites PERCENT % of the pages (1 unless said) pseudo-randomly each step.
 *
 * GATE is what is waited for before each step: "-" nothing, "signal" a SIGUSR1, "asked" one too, or a SIGUSR2, on which
 * the last step's line is said once more, of the memory as it is then; a number that many microseconds, else the path
 * of a FIFO of which one byte is read. After each step "STEP CHECKSUM" of all memory goes to stdout and to the file
 * SUMS. The checksum covers every byte: the sum of the pages' sums, each tied to its page's number. */
#include "victim.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t page_sum(const uint64_t *page, uint64_t number)
{
    /* Four sums side by side, so that a gigabyte takes well under a second. */
    uint64_t a = number, b = 1, c = 2, d = 3;
    for (int i = 0; i < WORDS; i += 4) {
        a = mix(a, page[i]);
        b = mix(b, page[i + 1]);
        c = mix(c, page[i + 2]);
        d = mix(d, page[i + 3]);
    }
    return mix(mix(mix(a, b), c), d);
}

static uint64_t sum_of(const uint64_t *memory, size_t pages)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < pages; i++)
        sum += page_sum(memory + i * WORDS, i);
    return sum;
}

static void fill(uint64_t *page, uint64_t *seed)
{
    for (int i = 0; i < WORDS; i++)
        page[i] = next_random(seed);
}

/* Whether a step is to be taken; else the last one's line is asked for. */
static int is_step_after(const char *gate, int fifo, const sigset_t *waited)
{
    char byte;
    int signal = SIGUSR1;
    if (!strcmp(gate, "signal") || !strcmp(gate, "asked")) {
        CHECK(sigwait(waited, &signal) == 0);
    } else if (fifo >= 0) {
        ssize_t n;
        while ((n = read(fifo, &byte, 1)) < 0 && errno == EINTR)
            ;
        CHECK(n == 1);
    } else if (strcmp(gate, "-")) {
        sleep_us(atol(gate));
    }
    return signal == SIGUSR1;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        fail("usage: memory MIB STEPS SUMS GATE [PERCENT]");
    size_t pages = (size_t)atol(argv[1]) << 8;
    long steps = atol(argv[2]), percent = number(argc, argv, 5, 1);
    const char *gate = argv[4];
    int sums = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    /* Read and write: the FIFO then never ends when a test closes its side. */
    int fifo = strchr(gate, '/') ? open(gate, O_RDWR) : -1;
    sigset_t waited;
    sigemptyset(&waited);
    sigaddset(&waited, SIGUSR1);
    if (!strcmp(gate, "asked"))
        sigaddset(&waited, SIGUSR2);
    sigprocmask(SIG_BLOCK, &waited, NULL);
    uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && sums >= 0 && (!strchr(gate, '/') || fifo >= 0));
    uint64_t seed = 7;
    for (size_t i = 0; i < pages; i++)
        fill(memory + i * WORDS, &seed);
    for (long step = 0; step <= steps; step++) {
        hold_at(step, steps);
        if (step) {
            while (!is_step_after(gate, fifo, &waited))
                say(1, "%ld %016lx\n", step - 1, sum_of(memory, pages));
            for (size_t i = 0; i < pages * percent / 100; i++)
                fill(memory + next_random(&seed) % pages * WORDS, &seed);
        }
        uint64_t sum = sum_of(memory, pages);
        say(sums, "%ld %016lx\n", step, sum);
        say(1, "%ld %016lx\n", step, sum);
    }
    return 0;
}
