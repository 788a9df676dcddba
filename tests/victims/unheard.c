/* unheard GATE: forks, execs and exits in a noise of others.
 *
 * GATE ("-" nothing, "signal" a SIGUSR1) is waited for before each act. Four children are there before the first one. Acts:
 * "noise": 400 children that end at once. "unheard": a child with a child of its own, a child that executes the program
 * again, and so does one of the four; another one ends and is not waited for, a third one is. "change": whoever lives
 * rewrites some of its memory. "sums": the checksum of everybody's memory; then all end, and their statuses are looked at. */
#include "victim.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 256, NOISE = 400 };
enum { STAYS, REPLACED, ENDS, GONE, PARENT, CHILD, EXECUTES, ALL };
static const char *const names[] = {"stays", "replaced", "ends", "gone", "parent", "child", "executes"};

static uint64_t *memory;
static int orders[ALL][2], answers[2];
static pid_t pids[ALL];
static char *program;

static void rewrite(uint64_t seed, int every)
{
    for (int page = 0; page < PAGES; page += every)
        for (int i = 0; i < WORDS; i++)
            memory[page * WORDS + i] = next_random(&seed);
}

static void map(uint64_t seed)
{
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    rewrite(seed, 1);
}

static void execute(int who)
{
    char words[3][16];
    int numbers[] = {who, orders[who][0], answers[1]};
    for (int i = 0; i < 3; i++)
        snprintf(words[i], sizeof words[i], "%d", numbers[i]);
    execl(program, program, words[0], words[1], words[2], NULL);
    fail("execl");
}

__attribute__((noreturn)) static void end(int who)
{
    int status;
    if (who == PARENT)
        CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 10 + CHILD);
    _exit(10 + who);
}

/* Does as it is told, and answers with the sum of its memory. */
__attribute__((noreturn)) static void serve(int who)
{
    char order;
    for (;;) {
        CHECK(read(orders[who][0], &order, 1) == 1);
        if (order == 'e')
            end(who);
        if (order == 'x')
            execute(who);
        if (order == 'c')
            rewrite(200 + who, 16);
        uint64_t sum = mix_words(who, memory, PAGES * WORDS);
        write_all(answers[1], &sum, sizeof sum);
    }
}

static uint64_t tell(int who, char order)
{
    uint64_t sum = 0;
    write_all(orders[who][1], &order, 1);
    if (order != 'e')
        CHECK(read(answers[0], &sum, sizeof sum) == sizeof sum);
    return sum;
}

static void start(int who)
{
    pids[who] = fork();
    CHECK(pids[who] >= 0);
    if (pids[who])
        return;
    /* Half of it stays what it was in the process that it comes from. */
    rewrite(100 + who, 2);
    if (who == PARENT)
        start(CHILD);
    serve(who);
}

static void act(const char *gate, const sigset_t *usr1, const char *name)
{
    int signal;
    say(1, "before %s\n", name);
    if (!strcmp(gate, "signal"))
        CHECK(sigwait(usr1, &signal) == 0);
}

static void expect_end(int who, int options)
{
    siginfo_t info;
    CHECK(waitid(P_PID, pids[who], &info, WEXITED | options) == 0);
    CHECK(info.si_code == CLD_EXITED && info.si_status == 10 + who);
}

int main(int argc, char **argv)
{
    program = argv[0];
    if (argc == 4) {
        int who = atoi(argv[1]);
        CHECK(who == REPLACED || who == EXECUTES);
        orders[who][0] = atoi(argv[2]), answers[1] = atoi(argv[3]);
        map(300 + who);
        uint64_t sum = mix_words(who, memory, PAGES * WORDS);
        write_all(answers[1], &sum, sizeof sum);
        serve(who);
    }
    if (argc != 2)
        fail("usage: unheard GATE");
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    CHECK(pipe(answers) == 0);
    for (int who = 0; who < ALL; who++)
        CHECK(pipe(orders[who]) == 0);
    map(1);
    for (int who = STAYS; who <= GONE; who++) {
        start(who);
        tell(who, 's');
    }

    act(argv[1], &usr1, "noise");
    for (int i = 0; i < NOISE; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child)
            _exit(0);
        CHECK(waitpid(child, NULL, 0) == child);
    }

    act(argv[1], &usr1, "unheard");
    rewrite(2, 3);
    start(PARENT);
    start(EXECUTES);
    tell(REPLACED, 'x');
    tell(EXECUTES, 'x');
    tell(ENDS, 'e');
    tell(GONE, 'e');
    expect_end(GONE, 0);
    expect_end(ENDS, WNOWAIT);
    static const int alive[] = {STAYS, REPLACED, PARENT, CHILD, EXECUTES};
    for (size_t i = 0; i < sizeof alive / sizeof *alive; i++)
        tell(alive[i], 's');

    act(argv[1], &usr1, "change");
    for (size_t i = 0; i < sizeof alive / sizeof *alive; i++)
        tell(alive[i], 'c');

    act(argv[1], &usr1, "sums");
    say(1, "root %016lx\n", mix_words(0, memory, PAGES * WORDS));
    for (size_t i = 0; i < sizeof alive / sizeof *alive; i++)
        say(1, "%s %016lx\n", names[alive[i]], tell(alive[i], 's'));
    tell(CHILD, 'e');
    for (size_t i = 0; i < sizeof alive / sizeof *alive; i++) {
        if (alive[i] != CHILD) {
            tell(alive[i], 'e');
            expect_end(alive[i], 0);
        }
    }
    expect_end(ENDS, 0);
    CHECK(wait(NULL) < 0 && errno == ECHILD);
    say(1, "all as it should be\n");
    return 0;
}
