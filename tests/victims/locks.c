/* locks CASE DIR ROUNDS PERIOD_US: locks that others find, descriptors that signal, and descriptors of names alone. */
#include "victim.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int bytes, description, whole, shared, asks[2], answers[2];
static pid_t child;

static struct flock range(int type, off_t start, off_t length)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static int make(const char *name)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    write_all(fd, "0123456789", 10);
    return fd;
}

/* What somebody else finds: a child that tries, by new descriptions. */
static char found(void)
{
    int one = open("bytes", O_RDWR), two = open("whole", O_RDWR), three = open("shared", O_RDWR);
    struct flock first = range(F_WRLCK, 3, 4), second = range(F_WRLCK, 50, 0), gap = range(F_WRLCK, 7, 10);
    struct flock third = range(F_WRLCK, 30, 2), fourth = range(F_RDLCK, 40, 3);
    CHECK(one >= 0 && two >= 0 && three >= 0);
    CHECK(fcntl(one, F_GETLK, &third) == 0 && fcntl(one, F_GETLK, &fourth) == 0);
    CHECK(fcntl(one, F_GETLK, &first) == 0 && fcntl(one, F_GETLK, &second) == 0 && fcntl(one, F_GETLK, &gap) == 0);
    int mine = first.l_type == F_WRLCK && first.l_pid == getppid() && first.l_start == 3 && first.l_len == 4;
    int of_description = second.l_type == F_RDLCK && second.l_pid == -1 && second.l_start == 50 && second.l_len == 0;
    char c = 'a' + mine + 2 * of_description + 4 * (gap.l_type == F_UNLCK) + 8 * (flock(two, LOCK_SH | LOCK_NB) != 0);
    c += flock(three, LOCK_EX | LOCK_NB) != 0 && flock(three, LOCK_SH | LOCK_NB) == 0 ? 16 : 0;
    int readers = third.l_type == F_RDLCK && third.l_pid == getppid() && third.l_start == 30 && third.l_len == 2;
    int writer = fourth.l_type == F_WRLCK && fourth.l_pid == -1 && fourth.l_start == 40 && fourth.l_len == 3;
    c += !(readers && writer) * 64;
    close(one), close(two), close(three);
    return c;
}

static void locks_begin(void)
{
    struct flock write = range(F_WRLCK, 3, 4), read_on = range(F_RDLCK, 50, 0), childs = range(F_WRLCK, 20, 1);
    bytes = make("bytes"), whole = make("whole"), shared = make("shared");
    CHECK((description = open("bytes", O_RDWR)) >= 0);
    CHECK(fcntl(description, F_OFD_SETLK, &read_on) == 0 && flock(whole, LOCK_EX) == 0 && flock(shared, LOCK_SH) == 0);
    struct flock read_some = range(F_RDLCK, 30, 2), write_some = range(F_WRLCK, 40, 3);
    CHECK(fcntl(bytes, F_SETLK, &read_some) == 0 && fcntl(description, F_OFD_SETLK, &write_some) == 0);
    CHECK(fcntl(bytes, F_SETLK, &write) == 0 && pipe(asks) == 0 && pipe(answers) == 0 && (child = fork()) >= 0);
    if (child)
        return;
    /* A lock of the child through a descriptor that it shares; others of the file would give it up when closed. */
    int inherited = bytes;
    CHECK(fcntl(inherited, F_SETLK, &childs) == 0);
    close(asks[1]);
    char c;
    while (read(asks[0], &c, 1) == 1) {
        if (c == 'f') {
            c = found();
            CHECK(fcntl(inherited, F_SETLK, &childs) == 0);
        }
        write_all(answers[1], &c, 1);
    }
    _exit(5);
}

static uint64_t locks_round(long n)
{
    struct flock childs = range(F_WRLCK, 20, 1);
    char c = n % 2 ? 'f' : 'x';
    write_all(asks[1], &c, 1);
    CHECK(read(answers[0], &c, 1) == 1);
    CHECK(fcntl(bytes, F_GETLK, &childs) == 0);
    /* One of a child that had just been asked comes from before or after a restart. */
    return mix(mix(c, childs.l_type), childs.l_pid == child);
}

static void locks_end(void)
{
    int status;
    close(asks[1]);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
}

static volatile sig_atomic_t signalled, number_of;
static int line[2], of_group[2], of_inner[2];
static pid_t inner;

static void on_signal(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    signalled++, number_of = info->si_fd;
}

static void owners_begin(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct f_owner_ex own = {F_OWNER_PID, getpid()};
    CHECK(sigaction(SIGRTMIN + 2, &action, NULL) == 0 && pipe(line) == 0);
    CHECK(fcntl(line[0], F_SETOWN_EX, &own) == 0 && fcntl(line[0], F_SETSIG, SIGRTMIN + 2) == 0);
    CHECK(fcntl(line[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    CHECK(pipe(of_group) == 0 && fcntl(of_group[0], F_SETOWN, -getpgrp()) == 0);
    CHECK((inner = fork()) >= 0);
    while (inner == 0)
        pause();
    CHECK(setpgid(inner, inner) == 0 && pipe(of_inner) == 0 && fcntl(of_inner[0], F_SETOWN, -inner) == 0);
}

static uint64_t owners_round(long n)
{
    struct f_owner_ex own;
    char c = n;
    sigset_t set, old;
    sigemptyset(&set), sigaddset(&set, SIGRTMIN + 2);
    CHECK(sigprocmask(SIG_BLOCK, &set, &old) == 0);
    int before = signalled;
    write_all(line[1], &c, 1);
    while (signalled == before)
        sigsuspend(&old);
    CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
    CHECK(read(line[0], &c, 1) == 1 && c == (char)n && fcntl(line[0], F_GETOWN_EX, &own) == 0);
    CHECK(own.type == F_OWNER_PID && own.pid == getpid() && fcntl(line[0], F_GETSIG) == SIGRTMIN + 2);
    pid_t group;
    /* A restart between two looks gives it another one. */
    do {
        group = getpgrp();
        CHECK(fcntl(of_group[0], F_GETOWN_EX, &own) == 0);
    } while (getpgrp() != group);
    if (own.type != F_OWNER_PGRP || own.pid != group)
        fail("the group %d is signalled and not %d", own.pid, group);
    CHECK(fcntl(of_inner[0], F_GETOWN_EX, &own) == 0 && getpgid(inner) == inner);
    if (own.type != F_OWNER_PGRP || own.pid != inner)
        fail("the group %d is signalled and not that of the child, %d", own.pid, inner);
    return mix(mix(signalled - before, number_of == line[0]), fcntl(line[0], F_GETFL));
}

static void owners_end(void)
{
    CHECK(kill(inner, SIGKILL) == 0 && waitpid(inner, NULL, 0) == inner);
}

static int name_of_file, name_of_folder, name_of_link, half;

static void paths_begin(void)
{
    char name[32];
    mkdir("folder", 0700);
    for (int i = 0; i < 800; i++) {
        snprintf(name, sizeof name, "folder/%d", i);
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        CHECK(fd >= 0 && close(fd) == 0);
    }
    unlink("link");
    CHECK(symlink("nowhere", "link") == 0);
    CHECK((name_of_file = open("folder/7", O_PATH)) >= 0 && (name_of_folder = open("folder", O_PATH)) >= 0);
    CHECK((name_of_link = open("link", O_PATH | O_NOFOLLOW)) >= 0);
    /* Read two or three entries at a time. */
    CHECK((half = open("folder", O_RDONLY | O_DIRECTORY)) >= 0);
}

static off_t read_up_to;

/* The next one in the folder that is half read, or "". Who is stopped in the middle of the call gets fewer of them at a time
 * (filldir64 of fs/readdir.c), and the rest with the next. */
static const unsigned char *next_name(void)
{
    /* Names behind 8 bytes of inode number, 8 of the position behind it, 2 of length and 1 of type. */
    static unsigned char entries[64];
    static long at, length;
    if (at >= length) {
        at = 0, length = syscall(SYS_getdents64, half, entries, sizeof entries);
        CHECK(length >= 0);
    }
    if (length == 0)
        return (const unsigned char *)"";
    unsigned char *entry = entries + at;
    at += entry[16];
    for (long last = 0; last < length; last += entries[last + 16])
        memcpy(&read_up_to, entries + last + 8, sizeof read_up_to);
    return entry + 19;
}

static uint64_t paths_round(long n)
{
    struct stat stat;
    char target[32] = "";
    CHECK(fstat(name_of_file, &stat) == 0 && S_ISREG(stat.st_mode) && fstatat(name_of_folder, "7", &stat, 0) == 0);
    CHECK(readlinkat(name_of_link, "", target, sizeof target) == 7 && strcmp(target, "nowhere") == 0);
    uint64_t sum = mix(fcntl(name_of_file, F_GETFL), fcntl(name_of_link, F_GETFL) & O_NOFOLLOW);
    for (int i = 0; n % 2 && i < 2; i++)
        for (const unsigned char *c = next_name(); *c; c++)
            sum = mix(sum, *c);
    CHECK(lseek(half, 0, SEEK_CUR) == read_up_to);
    return sum;
}

static void paths_end(void)
{
    unsigned char c;
    int again = openat(name_of_folder, "7", O_RDONLY);
    CHECK(again >= 0 && read(again, &c, 1) == 0 && read(name_of_file, &c, 1) < 0 && errno == EBADF);
}

static const struct thing things[] = {
    {"locks", locks_begin, locks_round, locks_end},
    {"owners", owners_begin, owners_round, owners_end},
    {"paths", paths_begin, paths_round, paths_end},
};

int main(int argc, char **argv) { return rounds_of(things, sizeof things / sizeof *things, argc, argv); }
