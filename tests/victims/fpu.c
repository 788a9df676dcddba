/* fpu STEPS PERIOD_US: results that live over a sleep in x87 and SSE registers and, where the processor has them, in those of
 * AVX (ymm) and of AVX-512 (zmm, and the opmasks k).
 *
 * The registers are loaded before a system call that inline assembly makes itself, and read after it: nothing is
 * spilled to memory meanwhile, so a register that a restart forgets shows in the output. */
#include "victim.h"
#include <immintrin.h>
#include <sys/syscall.h>

/* What the registers are loaded from and stored to. */
static struct {
    long double x87[8];
    double sse[2], avx[4];
    /* Opmasks are the last eight words. */
    uint64_t wide[32 * 8 + 8];
} kept;
enum { WIDE = sizeof kept.wide / 8 };
static int result;

/* nanosleep with st(0) to st(7) live, and what stands in vector registers. Going on with the time left is the kernel's work. */
#define SLEEP                                                                                     \
    ".irp i,0,1,2,3,4,5,6,7\n fldt 16*\\i(%[kept])\n .endr\n"                                     \
    "1: syscall\n cmp $-4, %%rax\n jne 2f\n mov %[number], %%eax\n jmp 1b\n 2:\n"                 \
    ".irp i,7,6,5,4,3,2,1,0\n fstpt 16*\\i(%[kept])\n .endr\n"
#define GIVEN "a"(SYS_nanosleep), [number] "i"(SYS_nanosleep), "D"(&time), "S"(&time), [kept] "r"(&kept)
#define CLOBBERS "rcx", "r11", "memory", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)"

static void sse_step(struct timespec time)
{
    __m128d live = _mm_add_pd(_mm_loadu_pd(kept.sse), _mm_set_pd(1.0 / 3, 1.0 / 7));
    asm volatile(SLEEP : "+x"(live), "=a"(result) : GIVEN : CLOBBERS);
    _mm_storeu_pd(kept.sse, _mm_mul_pd(live, _mm_set_pd(0.9999, 1.0001)));
}

__attribute__((target("avx"))) static void avx_step(struct timespec time)
{
    __m256d live = _mm256_add_pd(_mm256_loadu_pd(kept.avx), _mm256_set_pd(1.0 / 3, 1.0 / 7, 1.0 / 11, 1.0 / 13));
    asm volatile(SLEEP : "+x"(live), "=a"(result) : GIVEN : CLOBBERS);
    _mm256_storeu_pd(kept.avx, _mm256_mul_pd(live, _mm256_set_pd(0.9999, 1.0001, 0.9998, 1.0002)));
}

#define EACH_WIDE(zmm, opmask)                                                                                     \
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n" zmm "\n.endr\n" \
    ".irp i,0,1,2,3,4,5,6,7\n" opmask "\n.endr\n"

/* All registers that AVX-512 has. */
__attribute__((target("avx512f,avx512bw"))) static void avx512_step(struct timespec time)
{
    for (int i = 0; i < WIDE; i++)
        kept.wide[i] = kept.wide[i] * 0x5851f42d4c957f2dull + i + 1;
    asm volatile(EACH_WIDE("vmovdqu64 64*\\i(%[zmm]), %%zmm\\i", "kmovq 8*\\i(%[opmask]), %%k\\i")
                 SLEEP
                 EACH_WIDE("vmovdqu64 %%zmm\\i, 64*\\i(%[zmm])", "kmovq %%k\\i, 8*\\i(%[opmask])")
                 : "=a"(result)
                 : GIVEN, [zmm] "r"(kept.wide), [opmask] "r"(kept.wide + 32 * 8)
                 : CLOBBERS, "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                   "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
                   "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k0", "k1", "k2", "k3", "k4", "k5",
                   "k6", "k7");
}

int main(int argc, char **argv)
{
    long steps = number(argc, argv, 1, 300), period = number(argc, argv, 2, 1000);
    int avx = __builtin_cpu_supports("avx");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    /* Most of the time in the widest: that is where most checkpoints come. */
    struct timespec shorter = {0, period * 1000 / 8}, most = {0, period * 1000 * 6 / 8};
    /* Rounding and precision control are state as well: both go into the results. */
    uint16_t control = 0x0b7f;
    asm volatile("fldcw %0" ::"m"(control));
    _mm_setcsr((_mm_getcsr() & ~0x6000u) | 0x4000u);
    for (long i = 1; i <= steps; i++) {
        hold_at(i, steps);
        for (int j = 0; j < 8; j++)
            kept.x87[j] = (kept.x87[j] + 1.0L / (3 + j)) * 0.99999L;
        sse_step(avx ? shorter : most);
        if (avx)
            avx_step(avx512 ? shorter : most);
        if (avx512)
            avx512_step(most);
        uint64_t bits[2 * 8 + 2 + 4] = {0};
        uint16_t fpu;
        asm volatile("fnstcw %0" : "=m"(fpu));
        for (int j = 0; j < 8; j++)
            memcpy(bits + 2 * j, &kept.x87[j], 10);
        memcpy(bits + 16, kept.sse, 16);
        memcpy(bits + 18, kept.avx, 32);
        say(1, "%ld %016lx %016lx %04x %04x\n", i, mix_words(i, bits, sizeof bits / 8),
            mix_words(i, kept.wide, WIDE), fpu, _mm_getcsr() & 0x6000u);
    }
    return 0;
}
