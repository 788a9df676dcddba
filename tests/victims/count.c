/* count FILE N PERIOD_US: counts to N, one line a step to stdout and the same to FILE, which stays open.
 *
 * Each line carries a checksum over a heap table and over globals, both changed a little each step, so that a wrong
 * byte anywhere in them shows in every line after it. */
#include "victim.h"
#include <fcntl.h>

enum { WORDS = 1 << 15 };
static uint64_t in_bss[4096];
static uint64_t in_data[4096] = {1, 2, 3}, copied[128];

int main(int argc, char **argv)
{
    if (argc < 2)
        fail("usage: count FILE [N] [PERIOD_US]");
    long n = number(argc, argv, 2, 1000), period = number(argc, argv, 3, 3000);
    int file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    uint64_t *heap = malloc(WORDS * sizeof *heap), seed = 42, sum = 0;
    CHECK(file >= 0 && heap);
    for (int i = 0; i < WORDS; i++)
        heap[i] = next_random(&seed);
    for (long i = 1; i <= n; i++) {
        hold_at(i, n);
        for (int k = 0; k < 16; k++)
            heap[next_random(&seed) % WORDS] += i;
        in_bss[i % 4096] ^= next_random(&seed);
        in_data[i % 4096] += i;
        /* By the C library, with the widest registers that it makes use of. */
        memmove(copied, heap + i % 1024, (64 + i % 64) * sizeof *copied);
        sum = mix_words(mix_words(mix_words(sum, heap, WORDS), in_bss, 4096), in_data, 4096);
        sum = mix_words(sum, copied, 128);
        say(1, "%ld %016lx\n", i, sum);
        say(file, "%ld %016lx\n", i, sum);
        sleep_us(period);
    }
    return 0;
}
