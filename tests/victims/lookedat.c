/* lookedat GATE WORD...: what it was called with, where others look for that too.
 *
 * GATE ("-" nothing, "signal" a SIGUSR1) is waited for before each step but the first. Every step prints the arguments, the
 * variables called LOOKED_*, and sums of memory: of an area at a fixed place, in huge pages where there are such, and of a
 * file's private pages, so many that a restart takes a while between its layout and its registering. */
#include "victim.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

enum { PAGE = 4096, STEPS = 4 };
static const size_t AREA = 4 << 20, PRIVATE = 32 << 20;

extern char **environ;

int main(int argc, char **argv)
{
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    uint64_t *area = mmap((void *)0x200000000000, AREA, PROT_READ | PROT_WRITE, flags, -1, 0), seed = 11;
    CHECK(area != MAP_FAILED);
    /* Where there are none it is as well without. */
    (void)!madvise(area, AREA, MADV_HUGEPAGE);
    for (size_t word = 0; word < AREA / 8; word++)
        area[word] = next_random(&seed);
    int file = open("looked-at", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0 && ftruncate(file, PRIVATE) == 0);
    uint64_t *private = mmap(NULL, PRIVATE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    CHECK(private != MAP_FAILED);
    for (size_t page = 0; page < PRIVATE / PAGE; page++)
        private[page * PAGE / 8] = next_random(&seed);
    for (int step = 0; step < STEPS; step++) {
        int signal;
        if (step && argc > 1 && !strcmp(argv[1], "signal"))
            CHECK(sigwait(&usr1, &signal) == 0);
        for (int i = 2; i < argc; i++)
            say(1, "[%s] ", argv[i]);
        for (char **variable = environ; *variable; variable++)
            if (!strncmp(*variable, "LOOKED_", 7))
                say(1, "{%s} ", *variable);
        say(1, "%016lx ", mix_words(17, area, AREA / 8));
        say(1, "%016lx step %d\n", mix_words(17, private, PRIVATE / 8), step);
        area[step * PAGE] = step;
    }
    return 0;
}
