/* forktree ROUNDS PERIOD_US [zombie]: fifteen processes in a tree three deep, two children each.
 *
 * A token goes from process to process through one pipe each. Who has it changes memory of its own and memory shared
 * by all, checks its parent, process group and session, and prints a line: the order is fixed, so the output is. At
 * the end every parent collects its children's statuses, one of them a death by signal. With "zombie" the root has a
 * dead child all the time and collects it last. */
#include "victim.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { ALL = 15, WORDS = 1024 };

static struct shared {
    uint64_t sum, words[WORDS];
    pid_t pids[ALL], groups[ALL];
    char text[4096];
} *shared;
static int pipes[ALL][2], rounds;
static long period;
static uint64_t own[8192];

/* The root's group and session are those of whoever started or restarted it: a restart may come between two looks. */
static int is_the_root_s(pid_t (*of)(pid_t))
{
    pid_t own, roots;
    do {
        roots = of(shared->pids[0]);
        own = of(0);
    } while (of(shared->pids[0]) != roots);
    return own == roots;
}

/* The two children of process i are 2i+1 and 2i+2; the first of them leads a group of its own. */
static void check_place(int me)
{
    int parent = (me - 1) / 2;
    int with_root = shared->groups[me] == shared->groups[0];
    CHECK(getpid() == shared->pids[me] && is_the_root_s(getsid));
    CHECK(with_root ? is_the_root_s(getpgid) : getpgrp() == shared->groups[me]);
    CHECK(me == 0 || getppid() == shared->pids[parent]);
}

static void take_turns(int me)
{
    uint64_t seed = me + 1;
    for (int i = 0; i < 8192; i++)
        own[i] = next_random(&seed);
    for (int round = 1; round <= rounds; round++) {
        char token;
        if (me == 0)
            hold_at(round, rounds);
        CHECK(read(pipes[me][0], &token, 1) == 1 && token == (char)round);
        check_place(me);
        for (int i = 0; i < 64; i++) {
            own[next_random(&seed) % 8192] += round;
            shared->words[next_random(&seed) % WORDS] ^= seed;
        }
        shared->sum = mix(mix_words(mix_words(shared->sum, own, 8192), shared->words, WORDS), me);
        snprintf(shared->text, sizeof shared->text, "%d %d %016lx\n", round, me, shared->sum);
        say(1, "%s", shared->text);
        if (me == round % ALL)
            sleep_us(period);
        token += me == ALL - 1;
        if (me < ALL - 1 || round < rounds)
            write_all(pipes[(me + 1) % ALL][1], &token, 1);
    }
}

static int run(int me);

static pid_t start(int me)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child)
        return child;
    if (me % 2)
        CHECK(setpgid(0, 0) == 0);
    shared->pids[me] = getpid();
    shared->groups[me] = getpgrp();
    _exit(run(me));
}

static int run(int me)
{
    pid_t children[2] = {0, 0};
    int statuses[2];
    for (int i = 0; i < 2 && 2 * me + 2 < ALL; i++)
        children[i] = start(2 * me + 1 + i);
    take_turns(me);
    for (int i = 0; i < 2 && children[i]; i++) {
        CHECK(waitpid(children[i], &statuses[i], 0) == children[i]);
        int child = 2 * me + 1 + i, status = statuses[i];
        if (child == ALL - 1)
            CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
        else
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == child + 1);
    }
    if (me == ALL - 1)
        raise(SIGTERM);
    return me + 1;
}

int main(int argc, char **argv)
{
    int zombie = argc > 3 && !strcmp(argv[3], "zombie");
    pid_t dead = 0;
    rounds = number(argc, argv, 1, 100);
    period = number(argc, argv, 2, 3000);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED && rounds < 128);
    for (int i = 0; i < ALL; i++)
        CHECK(pipe(pipes[i]) == 0);
    shared->pids[0] = getpid();
    shared->groups[0] = getpgrp();
    if (zombie) {
        dead = fork();
        if (!dead)
            _exit(42);
    }
    /* The token waits in the pipe of the root until it looks for it. */
    char token = 1;
    write_all(pipes[0][1], &token, 1);
    CHECK(run(0) == 1);
    if (zombie) {
        int status;
        CHECK(waitpid(dead, &status, 0) == dead && WIFEXITED(status) && WEXITSTATUS(status) == 42);
    }
    say(1, "all collected %016lx\n", shared->sum);
    return 0;
}
