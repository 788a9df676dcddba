/* dirty DIR STEPS ROW...: what a program can do to its memory between two checkpoints, one row of a table each.
 *
 * Sets all ROWs up and says "ready". Each SIGUSR1 then takes one of STEPS steps of all of them ("done STEP"), and from
 * there on compares every page with what must be in it ("right N"); a wrong page ends the program with its name.
 * "dirty hold PID FD" takes a descriptor of another process over and keeps it. */
#include "dirty_kernel.h"
#include "dirty_private.h"

#define ROW(name, prefix) {name, prefix##_set_up, prefix##_operate, prefix##_verify}

static const struct row table[] = {
    ROW("new", new),
    ROW("brk", brk),
    ROW("hole", hole),
    ROW("child", child),
    ROW("parent", parent),
    ROW("mremap", mremap),
    ROW("joined", joined),
    ROW("dropped", dropped),
    ROW("file", file),
    ROW("over", over),
    ROW("again", again),
    ROW("reserved", reserved),
    ROW("across", across),
    ROW("mprotect", protect),
    ROW("free", free),
    ROW("stack", stack),
    ROW("exec", exec),
    {"executed", executed_set_up, NULL, executed_verify},
    ROW("idle", idle),
    ROW("huge", huge),
    ROW("none", none),
    ROW("zero", zero),
    ROW("rewritten", rewritten),
    ROW("guarded", guarded),
    ROW("shortened", shortened),
    ROW("punched", punched),
    ROW("alias", alias),
    ROW("read", read),
    ROW("writev", writev),
    ROW("mem", mem),
    ROW("direct", direct),
    ROW("streaming", streaming),
    ROW("churn", churn),
    ROW("ring", ring),
    ROW("aio", aio),
    ROW("watched", watched),
    ROW("awaited", awaited),
    ROW("shared-watched", shared_watched),
    ROW("shared-awaited", shared_awaited),
    ROW("shared-minor", shared_minor),
};

static const struct row *chosen[32];
static int rows, steps, taken;

/* Also called from a row's own deep frame, which thereby stays. */
static void serve(void)
{
    for (;;) {
        CHECK(await(SIGUSR1) == SIGUSR1);
        if (taken < steps) {
            taken++;
            for (int r = 0; r < rows; r++)
                if (chosen[r]->operate)
                    chosen[r]->operate(taken);
            done(taken);
        } else {
            for (int r = 0; r < rows; r++)
                chosen[r]->verify();
            say(1, "right %d\n", ++taken - steps);
        }
    }
}

/* Says so once; the deep frame of a step says it before it goes on serving. */
static void done(int step)
{
    static int said;
    if (said < step)
        say(1, "done %d\n", said = step);
}

static int hold(int pid, int fd)
{
    int process = syscall(SYS_pidfd_open, pid, 0);
    CHECK(process >= 0 && syscall(SYS_pidfd_getfd, process, fd, 0) >= 0);
    say(1, "held\n");
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    CHECK(argc > 3);
    if (!strcmp(argv[1], "hold"))
        return hold(atoi(argv[2]), atoi(argv[3]));
    own_path = argv[0];
    CHECK(chdir(argv[1]) == 0);
    steps = atoi(argv[2]);
    sigset_t all;
    sigemptyset(&all);
    sigaddset(&all, SIGUSR1);
    sigaddset(&all, SIGUSR2);
    sigaddset(&all, SIGCHLD);
    CHECK(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
    for (int a = 3; a < argc; a++) {
        const struct row *row = table, *end = table + sizeof table / sizeof *table;
        while (row < end && strcmp(row->name, argv[a]))
            row++;
        if (row == end || rows == 32)
            fail("no row is called %s", argv[a]);
        chosen[rows++] = row;
        row->set_up();
    }
    say(1, "ready\n");
    serve();
}
