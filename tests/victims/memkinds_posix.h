/* POSIX shared memory (shm_open(3)): with its name, and without; a child has it, too. */
#ifndef MEMKINDS_POSIX_H
#define MEMKINDS_POSIX_H
#include "memkinds.h"

#define POSIX_NAME "/victim-memkinds"
static struct model named_posix = {51, {0}}, nameless_posix = {52, {0}};
static char *at_name, *at_none;
static pid_t posix_child;
static int posix_ask[2], posix_answer[2];

static char *posix_memory(const char *name)
{
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0);
    char *at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    CHECK(close(fd) == 0);
    return at;
}

static void posix_set_up(void)
{
    at_none = posix_memory("/victim-nameless");
    CHECK(shm_unlink("/victim-nameless") == 0);
    at_name = posix_memory(POSIX_NAME);
    CHECK(pipe(posix_ask) == 0 && pipe(posix_answer) == 0 && (posix_child = fork()) >= 0);
    long round;
    if (posix_child == 0) {
        CHECK(close(posix_ask[1]) == 0);
        while (read(posix_ask[0], &round, sizeof round) == sizeof round) {
            /* One word in the last page, which the parent leaves to it. */
            *(long *)(at_name + (PAGES - 1) * PAGE) = *(long *)(at_none + (PAGES - 1) * PAGE) = round;
            CHECK(write(posix_answer[1], &round, sizeof round) == sizeof round);
        }
        _exit(0);
    }
}

static uint64_t posix_round(long round)
{
    long answer;
    CHECK(write(posix_ask[1], &round, sizeof round) == sizeof round);
    CHECK(read(posix_answer[0], &answer, sizeof answer) == sizeof answer && answer == round);
    uint64_t sum = mix(*(long *)(at_name + (PAGES - 1) * PAGE), *(long *)(at_none + (PAGES - 1) * PAGE));
    for (int i = 0; i < 3; i++) {
        put(at_name, &named_posix, next_random(&random_state) % (PAGES - 1), round);
        put(at_none, &nameless_posix, next_random(&random_state) % (PAGES - 1), round);
    }
    sum = mix(sum, right("named", at_name, &named_posix, PAGES - 1));
    sum = mix(sum, right("nameless", at_none, &nameless_posix, PAGES - 1));
    /* By its name it is the same. */
    int fd = shm_open(POSIX_NAME, O_RDONLY, 0);
    CHECK(fd >= 0);
    char *again = map_it(PAGES * PAGE, PROT_READ, MAP_SHARED, fd);
    sum = mix(sum, right("by its name", again, &named_posix, PAGES - 1));
    CHECK(munmap(again, PAGES * PAGE) == 0 && close(fd) == 0);
    if (round == last_round)
        CHECK(shm_unlink(POSIX_NAME) == 0);
    return sum;
}
#endif
