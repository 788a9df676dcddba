/* fpu STEPS PERIOD_US: results that live in x87, SSE and, where there is AVX, YMM registers over a sleep.
 *
 * The registers are loaded before a system call that inline assembly makes itself, and read after it: nothing is
 * spilled to memory meanwhile, so a register that a restart forgets shows in the output. */
#include "victim.h"
#include <immintrin.h>
#include <sys/syscall.h>

/* nanosleep with st(0..1), xmm and ymm registers live; going on with the time left is the kernel's work. */
#define SLEEP_KEEPING(constraint, value)                                                          \
    asm volatile("1: syscall\n cmp $-4, %%rax\n jne 2f\n mov %[number], %%eax\n jmp 1b\n 2:"       \
                 : constraint(value), "=a"(result)                                                \
                 : "a"(SYS_nanosleep), [number] "i"(SYS_nanosleep), "D"(&time), "S"(&time)        \
                 : "rcx", "r11", "memory")

static int result;

static void sse_step(__m128d *sum, struct timespec time)
{
    __m128d live = _mm_add_pd(*sum, _mm_set_pd(1.0 / 3, 1.0 / 7));
    SLEEP_KEEPING("+x", live);
    *sum = _mm_mul_pd(live, _mm_set_pd(0.9999, 1.0001));
}

__attribute__((target("avx"))) static void avx_step(double *sum, struct timespec time)
{
    __m256d live = _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_set_pd(1.0 / 3, 1.0 / 7, 1.0 / 11, 1.0 / 13));
    SLEEP_KEEPING("+x", live);
    _mm256_storeu_pd(sum, _mm256_mul_pd(live, _mm256_set_pd(0.9999, 1.0001, 0.9998, 1.0002)));
}

static void x87_step(long double *sum, struct timespec time)
{
    long double live = *sum + 1.0L / 3;
    SLEEP_KEEPING("+t", live);
    *sum = live * 0.99999L;
}

int main(int argc, char **argv)
{
    long steps = number(argc, argv, 1, 300), period = number(argc, argv, 2, 1000);
    struct timespec time = {0, period * 1000 / 3};
    int avx = __builtin_cpu_supports("avx");
    __m128d sse = _mm_setzero_pd();
    double four[4] = {0};
    long double x87 = 0;
    /* Rounding and precision control are state as well: both go into the results. */
    uint16_t control = 0x0b7f;
    asm volatile("fldcw %0" ::"m"(control));
    _mm_setcsr((_mm_getcsr() & ~0x6000u) | 0x4000u);
    for (long i = 1; i <= steps; i++) {
        hold_at(i, steps);
        x87_step(&x87, time);
        sse_step(&sse, time);
        if (avx)
            avx_step(four, time);
        uint64_t bits[8] = {0};
        uint16_t fpu;
        asm volatile("fnstcw %0" : "=m"(fpu));
        memcpy(bits, &x87, 10);
        memcpy(bits + 2, &sse, 16);
        memcpy(bits + 4, four, 32);
        say(1, "%ld %016lx %04x %04x\n", i, mix_words(i, bits, 8), fpu, _mm_getcsr() & 0x6000u);
    }
    return 0;
}
