/* leftover STEPS PERIOD_US: has a child in its own memory (CLONE_VM), and executes itself when it gets a SIGUSR1: the child keeps
 * the memory that it leaves. Then one line a step, with a checksum of what it has in its new memory, changed a little each
 * step. */
#include "victim.h"
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { WORDS = 1 << 16, STACK = 1 << 16 };

static int stay(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return 0;
}

int main(int argc, char **argv)
{
    CHECK(argc > 2);
    if (argc == 3) {
        sigset_t wanted;
        int signal;
        char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), child[32];
        CHECK(stack != MAP_FAILED && sigemptyset(&wanted) == 0 && sigaddset(&wanted, SIGUSR1) == 0);
        snprintf(child, sizeof child, "%d", clone(stay, stack + STACK, CLONE_VM | SIGCHLD, NULL));
        CHECK(sigprocmask(SIG_BLOCK, &wanted, NULL) == 0);
        say(1, "here\n");
        CHECK(sigwait(&wanted, &signal) == 0);
        execv("/proc/self/exe", (char *[]){argv[0], argv[1], argv[2], child, NULL});
        fail("execv");
    }
    long steps = number(argc, argv, 1, 300), period = number(argc, argv, 2, 1000);
    pid_t child = number(argc, argv, 3, 0);
    uint64_t *words = malloc(WORDS * sizeof *words), seed = 7;
    CHECK(words);
    for (int i = 0; i < WORDS; i++)
        words[i] = next_random(&seed);
    for (long step = 1; step <= steps; step++) {
        hold_at(step, steps);
        for (int k = 0; k < 16; k++)
            words[next_random(&seed) % WORDS] += step;
        say(1, "%ld %016lx\n", step, mix_words(0, words, WORDS));
        sleep_us(period);
    }
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    return 0;
}
