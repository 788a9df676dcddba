/* fds DIR ROUNDS PERIOD_US: one descriptor of each kind, looked at in each round without changing it.
 *
 * A round's line is the digest of a canonical report; SIGUSR1 prints the report itself to standard error. What cannot
 * be looked at without changing it (contents of pipes, counters, sharing) is read at the end, and printed. */
#include "victim.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

enum { PLAIN = 100, DUPLICATE, APPEND, CLOEXEC, READONLY, FOLDER, NUL, ZERO, PIPE_OUT, PIPE_IN, FIFO, EVENT, SEMAPHORE,
       EPOLL, TIMER, ABSOLUTE, FORKED, TO_CHILD, FROM_CHILD, NONBLOCK_OUT, NONBLOCK_IN, UNHEARD, FULL, RANDOM, URANDOM, LAST };

static volatile sig_atomic_t wanted;
static char report[32768];

static void on_usr1(int signal) { (void)signal, wanted = 1; }

static void move(int fd, int number, int flags)
{
    CHECK(fd >= 0 && dup3(fd, number, flags) == number);
    close(fd);
}

/* The child that shares FORKED: on each byte it moves the common offset by so much and answers. */
static pid_t start_child(int in, int out)
{
    pid_t child = fork();
    if (child)
        return child;
    /* Else it would keep its own pipe open and never see the end. */
    close(TO_CHILD);
    unsigned char step;
    while (read(in, &step, 1) == 1) {
        CHECK(lseek(FORKED, step, SEEK_CUR) >= 0);
        write_all(out, &step, 1);
    }
    _exit(9);
}

static pid_t set_up(const char *dir)
{
    char bytes[10000];
    int pair[2], back[2];
    CHECK(chdir(dir) == 0);
    for (int i = 0; i < (int)sizeof bytes; i++)
        bytes[i] = i * 7 + i / 256;
    move(open("plain", O_RDWR | O_CREAT | O_TRUNC, 0600), PLAIN, 0);
    write_all(PLAIN, bytes, sizeof bytes);
    CHECK(lseek(PLAIN, 1234, SEEK_SET) == 1234 && dup2(PLAIN, DUPLICATE) == DUPLICATE);
    move(open("append", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600), APPEND, 0);
    move(open("plain", O_RDWR | O_NOATIME), CLOEXEC, O_CLOEXEC);
    CHECK(lseek(CLOEXEC, 77, SEEK_SET) == 77);
    move(open("plain", O_RDONLY), READONLY, 0);
    move(open(".", O_RDONLY | O_DIRECTORY), FOLDER, 0);
    move(open("/dev/null", O_WRONLY), NUL, 0);
    move(open("/dev/zero", O_RDONLY), ZERO, 0);
    move(open("/dev/full", O_RDWR), FULL, 0);
    move(open("/dev/random", O_RDONLY), RANDOM, 0);
    move(open("/dev/urandom", O_RDONLY), URANDOM, 0);
    CHECK(pipe(pair) == 0 && fcntl(pair[1], F_SETPIPE_SZ, 32768) == 32768);
    move(pair[0], PIPE_OUT, 0), move(pair[1], PIPE_IN, O_CLOEXEC);
    /* In three pieces, over two pages and more. */
    write_all(PIPE_IN, bytes, 5000), write_all(PIPE_IN, bytes + 5000, 17), write_all(PIPE_IN, bytes + 5017, 4000);
    unlink("fifo");
    CHECK(mkfifo("fifo", 0600) == 0);
    move(open("fifo", O_RDWR), FIFO, 0);
    write_all(FIFO, bytes, 333);
    unlink("unheard");
    CHECK(mkfifo("unheard", 0600) == 0);
    move(open("unheard", O_RDONLY | O_NONBLOCK), UNHEARD, 0);
    move(eventfd(5, EFD_NONBLOCK), EVENT, 0);
    move(eventfd(3, EFD_SEMAPHORE), SEMAPHORE, 0);
    move(timerfd_create(CLOCK_MONOTONIC, 0), TIMER, 0);
    move(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK), ABSOLUTE, 0);
    struct itimerspec ticking = {{0, 4000000}, {0, 4000000}}, far = {{0, 0}, {4102444800, 0}};
    CHECK(timerfd_settime(TIMER, 0, &ticking, NULL) == 0);
    CHECK(timerfd_settime(ABSOLUTE, TFD_TIMER_ABSTIME, &far, NULL) == 0);
    CHECK(pipe2(pair, O_NONBLOCK) == 0);
    move(pair[0], NONBLOCK_OUT, 0), move(pair[1], NONBLOCK_IN, 0);
    move(epoll_create1(EPOLL_CLOEXEC), EPOLL, O_CLOEXEC);
    struct epoll_event out = {EPOLLIN, {.u64 = 0x1122334455667788}}, in = {EPOLLOUT | EPOLLET, {.u64 = 99}};
    CHECK(epoll_ctl(EPOLL, EPOLL_CTL_ADD, NONBLOCK_OUT, &out) == 0);
    CHECK(epoll_ctl(EPOLL, EPOLL_CTL_ADD, EVENT, &in) == 0);
    move(open("plain", O_RDONLY), FORKED, 0);
    CHECK(pipe(pair) == 0 && pipe(back) == 0);
    move(pair[1], TO_CHILD, 0), move(back[0], FROM_CHILD, 0);
    return start_child(pair[0], back[1]);
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* What /proc/self/fdinfo says, but what depends on the moment or on this run's numbers. Sorted: the kernel lists what
 * an epoll watches in the order of addresses. By one read: a restart between two would go on in another text. */
static int fdinfo(int fd, char *to, size_t size)
{
    static const char *const varies[] = {"mnt_id:", "ino:", "eventfd-id:", "ticks:", "it_value:", "settime flags:"};
    char path[64], text[4096] = "", *lines[16], *rest = NULL;
    int n = 0, count = 0;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    int file = open(path, O_RDONLY);
    CHECK(file >= 0 && read(file, text, sizeof text - 1) > 0 && close(file) == 0);
    for (char *line = strtok_r(text, "\n", &rest); line && count < 16; line = strtok_r(NULL, "\n", &rest)) {
        char *position = strstr(line, "pos:");
        if (!strncmp(line, "tfd:", 4) && position)
            *position = 0;
        int skip = 0;
        for (int i = 0; i < 6; i++)
            skip |= !strncmp(line, varies[i], strlen(varies[i]));
        lines[count] = line;
        count += !skip;
    }
    qsort(lines, count, sizeof *lines, by_text);
    for (int i = 0; i < count; i++)
        n += snprintf(to + n, size - n, "  %s\n", lines[i]);
    return n;
}

/* Each is the device that it was, and not only something that is there. */
static void look_at_devices(void)
{
    char bytes[32] = {1}, zeros[32] = {0};
    CHECK(write(NUL, bytes, 1) == 1 && read(ZERO, bytes, 32) == 32 && !memcmp(bytes, zeros, 32));
    CHECK(write(FULL, bytes, 1) < 0 && errno == ENOSPC);
    CHECK(read(RANDOM, bytes, 32) == 32 && memcmp(bytes, zeros, 32));
    CHECK(read(URANDOM, zeros, 32) == 32 && memcmp(bytes, zeros, 32));
}

static uint64_t look(void)
{
    size_t n = 0;
    look_at_devices();
    for (int fd = PLAIN; fd < LAST; fd++) {
        struct stat stat, path;
        int waiting = 0;
        CHECK(fstat(fd, &stat) == 0);
        /* Of pipes only: a count of ticks or of other things would vary. */
        if (S_ISFIFO(stat.st_mode))
            ioctl(fd, FIONREAD, &waiting);
        const char *name = fd == APPEND ? "append" : fd == FOLDER ? "." : fd == FIFO ? "fifo" : fd == UNHEARD ? "unheard" : "plain";
        int same = lstat(name, &path) == 0 && path.st_ino == stat.st_ino && path.st_dev == stat.st_dev;
        n += snprintf(report + n, sizeof report - n, "%d: mode %o, file %d, waiting %d, pipe size %d, cloexec %d\n", fd,
                      stat.st_mode & S_IFMT, same, waiting, fcntl(fd, F_GETPIPE_SZ), fcntl(fd, F_GETFD));
        n += fdinfo(fd, report + n, sizeof report - n);
    }
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum = mix(sum, (unsigned char)report[i]);
    return sum;
}

static uint64_t drain(int fd, size_t expected)
{
    unsigned char byte;
    uint64_t sum = 0;
    for (size_t i = 0; i < expected; i++) {
        CHECK(read(fd, &byte, 1) == 1);
        sum = mix(sum, byte);
    }
    return sum;
}

int main(int argc, char **argv)
{
    struct sigaction usr1 = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    CHECK(argc > 1 && sigaction(SIGUSR1, &usr1, NULL) == 0);
    long rounds = number(argc, argv, 2, 200), period = number(argc, argv, 3, 3000);
    pid_t child = set_up(argv[1]);
    uint64_t ticks, value;
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        uint64_t sum = look();
        if (wanted)
            write_all(2, report, strlen(report)), wanted = 0;
        say(1, "%ld %016lx\n", round, sum);
        say(APPEND, "%ld\n", round);
        /* The timer goes on ticking. */
        CHECK(read(TIMER, &ticks, 8) == 8 && ticks >= 1);
        /* Nobody has written to it yet, and nobody has gone either. */
        struct pollfd unheard = {UNHEARD, POLLIN, 0};
        CHECK(poll(&unheard, 1, 0) == 0);
        sleep_us(period);
    }
    CHECK(lseek(DUPLICATE, 5, SEEK_CUR) == 1239 && lseek(PLAIN, 0, SEEK_CUR) == 1239);
    CHECK(lseek(CLOEXEC, 0, SEEK_CUR) == 77 && lseek(READONLY, 0, SEEK_CUR) == 0);
    unsigned char step = 100;
    write_all(TO_CHILD, &step, 1);
    CHECK(read(FROM_CHILD, &step, 1) == 1 && lseek(FORKED, 0, SEEK_CUR) == 100);
    say(1, "pipe %016lx fifo %016lx\n", drain(PIPE_OUT, 9017), drain(FIFO, 333));
    CHECK(read(EVENT, &value, 8) == 8 && value == 5 && read(SEMAPHORE, &value, 8) == 8 && value == 1);
    struct epoll_event event;
    write_all(NONBLOCK_IN, "x", 1);
    int ready = 0, n;
    while ((n = epoll_wait(EPOLL, &event, 1, 50)) > 0 && ready < 5)
        ready += event.data.u64 == 0x1122334455667788;
    CHECK(ready > 0);
    struct itimerspec left;
    CHECK(timerfd_gettime(ABSOLUTE, &left) == 0 && left.it_value.tv_sec + time(NULL) >= 4102444790);
    CHECK(read(NONBLOCK_OUT, &step, 1) == 1 && read(NONBLOCK_OUT, &step, 1) < 0 && errno == EAGAIN);
    int writer = open("unheard", O_WRONLY | O_NONBLOCK);
    CHECK(writer >= 0 && write(writer, "y", 1) == 1 && read(UNHEARD, &step, 1) == 1 && step == 'y');
    close(TO_CHILD);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 9);
    say(1, "all as it should be\n");
    return 0;
}
