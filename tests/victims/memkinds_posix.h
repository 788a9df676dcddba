/* POSIX shared memory (shm_open(3)): with its name, and without; a child has it, too. */
#ifndef MEMKINDS_POSIX_H
#define MEMKINDS_POSIX_H
#include "memkinds.h"

#define POSIX_NAME "/victim-memkinds"
/* The first of them by a descriptor and read-only, too, and with a place for all of it from the beginning. */
#define POSIX_OTHERS 2
static const char *const other_names[POSIX_OTHERS] = {"/victim-memkinds-2", "/victim-memkinds-3"};
static struct model others_posix[POSIX_OTHERS] = {{53, {0}}, {54, {0}}};
static char *at_other[POSIX_OTHERS];
static const char *at_other_read_only;
static int other_fd;
static struct model named_posix = {51, {0}}, nameless_posix = {52, {0}};
static char *at_name, *at_none;
static pid_t posix_child;
static int posix_ask[2], posix_answer[2];

static char *posix_memory(const char *name)
{
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0640);
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
    for (int i = 0; i < POSIX_OTHERS; i++)
        at_other[i] = posix_memory(other_names[i]);
    other_fd = shm_open(other_names[0], O_RDWR, 0);
    int fd = shm_open(other_names[0], O_RDONLY, 0);
    CHECK(other_fd >= 0 && fd >= 0 && posix_fallocate(other_fd, 0, PAGES * PAGE) == 0);
    at_other_read_only = map_it(PAGES * PAGE, PROT_READ, MAP_PRIVATE, fd);
    CHECK(close(fd) == 0);
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
    for (int i = 0; i < POSIX_OTHERS; i++) {
        put(at_other[i], &others_posix[i], next_random(&random_state) % PAGES, round);
        sum = mix(sum, right("another", at_other[i], &others_posix[i], PAGES));
    }
    sum = mix(sum, right("read only", (char *)at_other_read_only, &others_posix[0], PAGES));
    struct stat found;
    CHECK(fstat(other_fd, &found) == 0 && found.st_size == PAGES * PAGE);
    sum = mix(sum, (uint64_t)found.st_mode << 32 | found.st_blocks);
    CHECK(stat("/dev/shm/victim-memkinds-2", &found) == 0);
    struct stat by_name = found;
    CHECK(fstat(other_fd, &found) == 0 && found.st_ino == by_name.st_ino && found.st_dev == by_name.st_dev);
    /* By its name it is the same. */
    int fd = shm_open(POSIX_NAME, O_RDONLY, 0);
    CHECK(fd >= 0);
    char *again = map_it(PAGES * PAGE, PROT_READ, MAP_SHARED, fd);
    sum = mix(sum, right("by its name", again, &named_posix, PAGES - 1));
    CHECK(munmap(again, PAGES * PAGE) == 0 && close(fd) == 0);
    if (round == last_round)
        CHECK(shm_unlink(POSIX_NAME) == 0 && shm_unlink(other_names[0]) == 0 && shm_unlink(other_names[1]) == 0);
    return sum;
}
#endif
