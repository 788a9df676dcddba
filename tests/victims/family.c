/* family ROUNDS PERIOD_US: relations that no plain fork tree has, looked at in each round.
 *
 * A child that has ended by itself and one that was killed, neither waited for until the end; an orphan in a group
 * whose leader is gone; a daemon whose session's leader is gone; a session leader with a child from before its
 * setsid() and one from after; a group of siblings led by the younger. */
#include "victim.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { ORPHAN, DAEMON, LEADER, BEFORE, AFTER, ELDER, YOUNGER, ALL };
static const char *const names[] = {"orphan", "daemon", "leader", "before", "after", "elder", "younger"};

static volatile struct shared {
    pid_t pid[ALL], group[ALL], session[ALL];
} *shared;

static void wait_for(volatile pid_t *pid)
{
    while (!*pid)
        sleep_us(1000);
}

__attribute__((noreturn)) static void stay(int who)
{
    shared->group[who] = getpgrp();
    shared->session[who] = getsid(0);
    shared->pid[who] = getpid();
    for (;;)
        pause();
}

static pid_t start(void (*body)(void))
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        body();
        _exit(0);
    }
    return child;
}

static void before(void) { stay(BEFORE); }
static void after(void) { stay(AFTER); }

static void orphan(void) { stay(ORPHAN); }

static void gone_leader(void)
{
    CHECK(setpgid(0, 0) == 0);
    start(orphan);
    wait_for(&shared->pid[ORPHAN]);
}

static void daemon_itself(void) { stay(DAEMON); }

static void gone_session(void)
{
    CHECK(setsid() == getpid());
    start(daemon_itself);
    wait_for(&shared->pid[DAEMON]);
}

static void leader(void)
{
    start(before);
    wait_for(&shared->pid[BEFORE]);
    CHECK(setsid() == getpid());
    start(after);
    stay(LEADER);
}

static void elder(void)
{
    wait_for(&shared->pid[YOUNGER]);
    CHECK(setpgid(0, shared->pid[YOUNGER]) == 0);
    stay(ELDER);
}

static void younger(void)
{
    CHECK(setpgid(0, 0) == 0);
    stay(YOUNGER);
}

/* Its group or session is what it was. One that is the root's changes with whoever restarts that, which may be between two
 * looks. */
static void look(int who, const char *what, pid_t (*of)(pid_t), pid_t was, int is_the_root_s)
{
    pid_t wanted, found;
    do {
        wanted = is_the_root_s ? of(0) : was;
        found = of(shared->pid[who]);
    } while (is_the_root_s && of(0) != wanted);
    if (found != wanted)
        fail("%s: %s %d and not %d", names[who], what, found, wanted);
}

static void ends(void) { _exit(42); }
static void killed(void) { raise(SIGUSR1); }

int main(int argc, char **argv)
{
    long rounds = number(argc, argv, 1, 300), period = number(argc, argv, 2, 3000);
    int status;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    pid_t dead = start(ends), shot = start(killed);
    for (int i = 0; i < 2; i++) {
        pid_t child = start(i ? gone_session : gone_leader);
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    pid_t leads = start(leader), old = start(elder), young = start(younger);
    for (int i = 0; i < ALL; i++)
        wait_for(&shared->pid[i]);
    pid_t group = getpgrp(), session = getsid(0);
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        for (int i = 0; i < ALL; i++) {
            look(i, "group", getpgid, shared->group[i], shared->group[i] == group);
            look(i, "session", getsid, shared->session[i], shared->session[i] == session);
        }
        say(1, "%ld\n", round);
        sleep_us(period);
    }
    CHECK(waitpid(dead, &status, 0) == dead && WIFEXITED(status) && WEXITSTATUS(status) == 42);
    CHECK(waitpid(shot, &status, 0) == shot && WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);
    for (int i = 0; i < ALL; i++)
        CHECK(kill(shared->pid[i], SIGTERM) == 0);
    pid_t mine[] = {leads, old, young};
    for (int i = 0; i < 3; i++)
        CHECK(waitpid(mine[i], &status, 0) == mine[i] && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    CHECK(waitpid(-1, &status, 0) < 0 && errno == ECHILD);
    say(1, "all as it should be\n");
    return 0;
}
