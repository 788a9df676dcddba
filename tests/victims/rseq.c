/* rseq STEPS PERIOD_US: two threads that are in a restartable sequence (rseq(2)) nearly all the time, the first thread is one.
 *
 * A sequence lasts until the step that it waits for, and whatever stops its thread before makes the kernel go on at its abort
 * handler. The kernel forgets a sequence when it has seen the thread outside: so a thread that was put back into the midst of
 * one sees there that it is none, and the program ends. In each step both threads also see that the area is registered, that it
 * tells the processor they are moved to, and that a signal aborts a sequence. */
#include "victim.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/rseq.h>
#include <sys/syscall.h>

enum how { COMMITTED, ABORTED, IN_THE_MIDST };
enum { THREADS = 2, NEVER = -1 };

static volatile long step;
static struct spinner {
    pthread_t thread;
    volatile long waits_for_signal, done;
    long aborts, processors;
} spinners[THREADS];
static long steps;
static cpu_set_t all;

static struct rseq *area(void)
{
    return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* A sequence that is committed once the step is `wanted`. */
__attribute__((noinline)) static enum how sequence(long wanted)
{
    int how;
    asm volatile(".pushsection .data\n .balign 32\n"
                 "1: .long 0, 0\n .quad 2f, 4f - 2f, 5f\n"
                 ".popsection\n"
                 "lea 1b(%%rip), %%rax\n mov %%rax, %[now]\n"
                 "2: cmp %%rax, %[now]\n jne 6f\n"
                 "cmp %[wanted], %[step]\n je 3f\n pause\n jmp 2b\n"
                 "3: movl %[committed], %[how]\n"
                 "4: jmp 7f\n"
                 /* An instruction that nobody executes, with the signature. */
                 ".byte 0x0f, 0xb9, 0x3d\n .long %c[signature]\n"
                 "5: movl %[aborted], %[how]\n jmp 7f\n"
                 "6: movl %[midst], %[how]\n"
                 "7: movq $0, %[now]\n"
                 : [how] "=m"(how), [now] "+m"(area()->rseq_cs)
                 : [wanted] "r"(wanted), [step] "m"(step), [signature] "i"(RSEQ_SIG), [committed] "i"(COMMITTED),
                   [aborted] "i"(ABORTED), [midst] "i"(IN_THE_MIDST)
                 : "rax", "memory", "cc");
    if (how == IN_THE_MIDST)
        fail("went on in the midst of a sequence");
    return how;
}

/* What the kernel answers to another registration of this thread. */
static int again(void *what, unsigned length)
{
    return syscall(SYS_rseq, what, length, 0, RSEQ_SIG) == 0 ? 0 : errno;
}

/* The C library does not tell the length that it has registered. */
static unsigned registered_length(void)
{
    unsigned length = 20;
    while (length < 1024 && again(area(), length) != EBUSY)
        length += 4;
    CHECK(length < 1024);
    return length;
}

/* How many processors it has been moved to. */
static long look(unsigned length)
{
    static char other[1024] __attribute__((aligned(1024)));
    long seen = 0;
    if (again(area(), length) != EBUSY || again(other, length) != EINVAL)
        fail("the area is not registered");
    for (int cpu = 0; cpu < CPU_SETSIZE && seen < 4; cpu++) {
        cpu_set_t one;
        unsigned is = ~0u;
        if (!CPU_ISSET(cpu, &all))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        CHECK(sched_setaffinity(0, sizeof one, &one) == 0 && syscall(SYS_getcpu, &is, NULL, NULL) == 0);
        if (area()->cpu_id != is || area()->cpu_id_start != is || is != (unsigned)cpu)
            fail("the area has processor %u, the call %u, and it is %d", area()->cpu_id, is, cpu);
        seen++;
    }
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
    return seen;
}

static void *spin(void *own)
{
    struct spinner *mine = own;
    unsigned length = registered_length();
    for (long i = 1; i <= steps; i++) {
        while (sequence(i) != COMMITTED)
            ;
        mine->processors = look(length);
        mine->waits_for_signal = i;
        mine->aborts += sequence(NEVER) == ABORTED;
        mine->done = i;
    }
    return NULL;
}

static void nothing(int signal)
{
    (void)signal;
}

static void *lead(void *period)
{
    for (long i = 1; i <= steps; i++) {
        sleep_us((long)period);
        hold_at(i, steps);
        step = i;
        for (struct spinner *one = spinners; one < spinners + THREADS; one++)
            while (one->done != i) {
                sleep_us(100);
                if (one->waits_for_signal == i)
                    CHECK(pthread_kill(one->thread, SIGUSR1) == 0);
            }
        say(1, "%ld", i);
        for (struct spinner *one = spinners; one < spinners + THREADS; one++)
            say(1, ": aborted %ld times, on %ld processors", one->aborts, one->processors);
        say(1, "\n");
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t leader;
    struct sigaction action = {.sa_handler = nothing};
    steps = number(argc, argv, 1, 300);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sched_getaffinity(0, sizeof all, &all) == 0);
    spinners[0].thread = pthread_self();
    CHECK(pthread_create(&spinners[1].thread, NULL, spin, spinners + 1) == 0);
    CHECK(pthread_create(&leader, NULL, lead, (void *)number(argc, argv, 2, 3000)) == 0);
    spin(spinners);
    CHECK(pthread_join(spinners[1].thread, NULL) == 0 && pthread_join(leader, NULL) == 0);
    return 0;
}
