/* openmp STEPS PERIOD_US: a stencil over a matrix by four OpenMP threads; a line with its checksum each step. */
#include "victim.h"
#include <omp.h>

enum { N = 256 };
static double now[N][N], then[N][N];

int main(int argc, char **argv)
{
    long steps = number(argc, argv, 1, 300), period = number(argc, argv, 2, 2000);
    omp_set_num_threads(4);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            now[i][j] = (i * 31 + j * 17) % 101;
    for (long step = 1; step <= steps; step++) {
        uint64_t sum = 0;
        hold_at(step, steps);
#pragma omp parallel for schedule(dynamic, 8)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++)
                then[i][j] = (now[(i + 1) % N][j] + now[(i + N - 1) % N][j] + now[i][(j + 1) % N] +
                              now[i][(j + N - 1) % N]) * 0.25 + (i == j) * 0.125;
#pragma omp parallel for reduction(+ : sum)
        for (int i = 0; i < N; i++)
            sum += mix_words(i, (uint64_t *)then[i], N);
        memcpy(now, then, sizeof now);
        say(1, "%ld %016lx\n", step, sum);
        sleep_us(period);
    }
    return 0;
}
