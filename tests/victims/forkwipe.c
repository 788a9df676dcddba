/* forkwipe GATE ROUNDS THREADS: forks, and changes what a fork wipes as soon as it has.
 *
 * GATE ("-" nothing, "signal" a SIGUSR1) is waited for before the first fork. Of two areas the child must see the one that
 * is advised only after the fork, and must not see the one of which that is taken back after it. Meanwhile THREADS others
 * touch areas of their own, page by page, and map and unmap a page for each. */
#include "victim.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 256, OTHERS = 4096, MOST = 8 };

static uint64_t *areas[MOST], of_areas[MOST];

static uint64_t *map_filled(uint64_t *seed, size_t pages)
{
    uint64_t *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    for (size_t word = 0; word < pages * WORDS; word++)
        area[word] = next_random(seed);
    return area;
}

static void *touch(void *argument)
{
    size_t which = (size_t)argument;
    for (size_t i = 0; i < OTHERS; i++) {
        of_areas[which] = mix(of_areas[which], areas[which][i * 67 % OTHERS * WORDS]);
        void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(page != MAP_FAILED && munmap(page, PAGE) == 0);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const char *gate = argc > 1 ? argv[1] : "-";
    int rounds = number(argc, argv, 2, 1), threads = number(argc, argv, 3, 0), signal;
    CHECK(threads <= MOST);
    pthread_t others[MOST];
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    uint64_t seed = 5, wrong = 0;
    uint64_t *inherited = map_filled(&seed, PAGES), *wiped = map_filled(&seed, PAGES);
    for (int i = 0; i < threads; i++)
        areas[i] = map_filled(&seed, OTHERS);
    uint64_t sums[PAGES];
    for (int page = 0; page < PAGES; page++)
        sums[page] = mix_words(page, inherited + page * WORDS, WORDS);
    say(1, "ready\n");
    if (!strcmp(gate, "signal"))
        CHECK(sigwait(&usr1, &signal) == 0);
    for (size_t i = 0; i < (size_t)threads; i++)
        CHECK(pthread_create(&others[i], NULL, touch, (void *)i) == 0);
    for (int round = 0; round < rounds; round++) {
        int page = round % PAGES, status;
        CHECK(madvise(wiped, PAGES * PAGE, MADV_WIPEONFORK) == 0);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            _exit((mix_words(page, inherited + page * WORDS, WORDS) != sums[page]) | (wiped[page * WORDS + 7] != 0) << 1);
        CHECK(madvise(inherited, PAGES * PAGE, MADV_WIPEONFORK) == 0);
        CHECK(madvise(wiped, PAGES * PAGE, MADV_KEEPONFORK) == 0);
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        if (WEXITSTATUS(status) != 0 && wrong++ < 8)
            say(1, "round %d: %s%s\n", round, WEXITSTATUS(status) & 1 ? "lost what it inherits " : "",
                WEXITSTATUS(status) & 2 ? "sees what is wiped" : "");
        CHECK(madvise(inherited, PAGES * PAGE, MADV_KEEPONFORK) == 0);
    }
    for (int i = 0; i < threads; i++)
        CHECK(pthread_join(others[i], NULL) == 0);
    say(1, "forked %d times, %lu wrong, %016lx\n", rounds, wrong, mix_words(threads, of_areas, MOST));
    return 0;
}
