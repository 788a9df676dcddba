/* count FILE [N]: counts to N, 250 a second, one line a step into FILE, which stays open.
 *
 * It keeps a table of 64 MiB. Each step changes a few words of it and mixes others into a checksum that stands in
 * every line from then on; the last line covers the whole table. So a byte of memory, of the file or of the position
 * in it that a restart got wrong shows in what the program has written. Nothing here knows of ckptbpf. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 8 << 20, CHANGED = 4, LOOKED_AT = 2048 };

/* xorshift64*: the same numbers in every run. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1dull;
}

static uint64_t mix(uint64_t sum, uint64_t word)
{
    return (sum ^ word) * 0x100000001b3ull;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: count FILE [N]\n");
        return 2;
    }
    long n = argc > 2 ? atol(argv[2]) : 3000;
    int file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    uint64_t *table = malloc(WORDS * sizeof *table), seed = 42, sum = 0;
    if (file < 0 || !table) {
        perror(argv[1]);
        return 1;
    }
    for (long i = 0; i < WORDS; i++)
        table[i] = next_random(&seed);
    for (long i = 1; i <= n; i++) {
        for (int k = 0; k < CHANGED; k++)
            table[next_random(&seed) % WORDS] += i;
        for (int k = 0; k < LOOKED_AT; k++)
            sum = mix(sum, table[next_random(&seed) % WORDS]);
        dprintf(file, "%ld %016lx\n", i, sum);
        if (i % 250 == 0)
            dprintf(1, "%ld of %ld\n", i, n);
        struct timespec pause = {0, 4000000};
        while (nanosleep(&pause, &pause))
            ;
    }
    for (long i = 0; i < WORDS; i++)
        sum = mix(sum, table[i]);
    dprintf(file, "all %016lx\n", sum);
    return close(file);
}
