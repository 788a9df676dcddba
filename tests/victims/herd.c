/* herd STEPS FILE [signal]: three processes and three threads that take each step together, when the first gets a
 * SIGUSR1 where `signal` is given.
 *
 * A number goes from the first process through a thread of it, a child, and a child of that, by pipes; each mixes in
 * what it has in memory, rewrites some of that, and passes it on. "STEP NUMBER" goes to stdout and to FILE. A process
 * whose neighbour is gone ends. */
#include "victim.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096, PAGES = 16, STATIONS = 4 };

static int links[STATIONS][2];
static int end_of_thread;

/* The next station's number; 0 is the end. */
static int take(int from, uint64_t *value)
{
    ssize_t n;
    while ((n = read(from, value, sizeof *value)) < 0 && errno == EINTR)
        ;
    CHECK(n == 0 || n == sizeof *value);
    return n != 0;
}

static uint64_t *memory_of(uint64_t station)
{
    uint64_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    for (uint64_t i = 0; i < PAGES * PAGE / 8; i++)
        memory[i] = mix(station, i);
    return memory;
}

static uint64_t change(uint64_t *memory, uint64_t value)
{
    for (int i = 0; i < 3; i++) {
        uint64_t *word = memory + value % (PAGES * PAGE / 8);
        value = mix(value, *word);
        *word = value;
    }
    return mix_words(value, memory, PAGES * PAGE / 8);
}

/* Station N takes from link N-1 and gives to link N. */
static void work(uint64_t station)
{
    uint64_t *memory = memory_of(station), value;
    while (take(links[station - 1][0], &value)) {
        value = change(memory, value);
        write_all(links[station][1], &value, sizeof value);
    }
}

static void *thread(void *unused)
{
    (void)unused;
    work(1);
    return NULL;
}

static void *idler(void *unused)
{
    char byte;
    while (read(end_of_thread, &byte, 1) < 0 && errno == EINTR)
        ;
    return unused;
}

/* Of all the links, a process keeps what its station takes from and gives to. */
static void keep(int from, int to)
{
    for (int i = 0; i < STATIONS; i++) {
        if (i != from)
            close(links[i][0]);
        if (i != to)
            close(links[i][1]);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3)
        fail("usage: herd STEPS FILE [signal]");
    long steps = atol(argv[1]);
    int file = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644), unused[2], signal;
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    CHECK(file >= 0);
    for (int i = 0; i < STATIONS; i++)
        CHECK(pipe(links[i]) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        child = fork();
        CHECK(child >= 0);
        uint64_t station = child == 0 ? 3 : 2;
        keep(station - 1, station);
        work(station);
        if (station == 2) {
            close(links[2][1]);
            CHECK(waitpid(child, NULL, 0) == child);
        }
        return 0;
    }
    close(links[1][0]);
    close(links[2][0]);
    close(links[2][1]);
    close(links[3][1]);
    CHECK(pipe(unused) == 0);
    end_of_thread = unused[0];
    pthread_t threads[2];
    CHECK(pthread_create(&threads[0], NULL, thread, NULL) == 0);
    CHECK(pthread_create(&threads[1], NULL, idler, NULL) == 0);
    uint64_t *memory = memory_of(0), value = 1;
    say(1, "ready\n");
    for (long step = 1; step <= steps; step++) {
        CHECK(argc < 4 || sigwait(&usr1, &signal) == 0);
        value = change(memory, value);
        write_all(links[0][1], &value, sizeof value);
        CHECK(take(links[3][0], &value));
        say(file, "%ld %016lx\n", step, value);
        say(1, "%ld %016lx\n", step, value);
    }
    return 0;
}
