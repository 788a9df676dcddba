/* handles CASE DIR ROUNDS PERIOD_US: descriptors that lead to processes, in /proc and beside it, and to what others do to
 * files. */
#include "victim.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int asks[2], answers[2], rings[2];
static pid_t child, ended;

/* What a child does with a byte. */
static void serve(unsigned char (*answer)(unsigned char))
{
    unsigned char c;
    close(asks[1]);
    while (read(asks[0], &c, 1) == 1) {
        c = answer(c);
        write_all(answers[1], &c, 1);
    }
    _exit(9);
}

static unsigned char ask(unsigned char c)
{
    write_all(asks[1], &c, 1);
    CHECK(read(answers[0], &c, 1) == 1);
    return c;
}

/* A child that has ended and is not waited for. */
static void end_one(int status)
{
    siginfo_t info;
    CHECK((ended = fork()) >= 0);
    if (!ended)
        _exit(status);
    CHECK(waitid(P_PID, ended, &info, WEXITED | WNOWAIT) == 0);
}

static int of_child, of_ended, of_self, of_thread, of_worker, watcher;
static pthread_t worker;
static pid_t worker_id, worker_process;
static int lets_go[2];

static void on_ring(int signal)
{
    (void)signal;
    write_all(rings[1], "r", 1);
}

static void *work(void *context)
{
    char c;
    __atomic_store_n(&worker_id, gettid(), __ATOMIC_SEQ_CST);
    while (read(lets_go[0], &c, 1) < 0 && errno == EINTR)
        ;
    return context;
}

static int name_of(pid_t pid, int flags)
{
    return syscall(SYS_pidfd_open, pid, flags);
}

static int signal_by(int pidfd)
{
    char c;
    return syscall(SYS_pidfd_send_signal, pidfd, SIGUSR1, NULL, 0) == 0 && read(rings[0], &c, 1) == 1;
}

static unsigned char ring_a_sibling(unsigned char c)
{
    return c + signal_by(of_worker) + 2 * (fcntl(of_worker, F_GETFL) & O_NONBLOCK ? 1 : 0);
}

static void watch(int fd, uint32_t data)
{
    struct epoll_event event = {EPOLLIN, {.u32 = data}};
    CHECK(epoll_ctl(watcher, EPOLL_CTL_ADD, fd, &event) == 0);
}

static void pidfds_begin(void)
{
    char c;
    CHECK(pipe(asks) == 0 && pipe(answers) == 0 && pipe(rings) == 0 && pipe(lets_go) == 0);
    CHECK((worker_process = fork()) >= 0);
    if (!worker_process) {
        close(lets_go[1]);
        signal(SIGUSR1, on_ring);
        write_all(rings[1], "b", 1);
        work(NULL);
        _exit(6);
    }
    CHECK(read(rings[0], &c, 1) == 1 && (of_worker = name_of(worker_process, 0)) >= 0);
    CHECK((child = fork()) >= 0);
    if (!child) {
        close(lets_go[1]);
        serve(ring_a_sibling);
    }
    end_one(4);
    CHECK((of_child = name_of(child, O_NONBLOCK)) >= 0 && (of_ended = name_of(ended, 0)) >= 0);
    CHECK((of_self = name_of(getpid(), 0)) >= 0 && (watcher = epoll_create1(0)) >= 0);
    CHECK(pthread_create(&worker, NULL, work, NULL) == 0);
    while (!__atomic_load_n(&worker_id, __ATOMIC_SEQ_CST))
        sleep_us(100);
    /* PIDFD_THREAD, from Linux 6.9. */
    of_thread = name_of(worker_id, O_EXCL);
    watch(of_child, 1), watch(of_ended, 2);
    if (of_thread >= 0)
        watch(of_thread, 3);
    /* Watched, and not open any more but by a duplicate. */
    int moved = dup(of_worker);
    watch(moved, 4);
    close(moved);
}

static int is_ended(int pidfd)
{
    struct pollfd fd = {pidfd, POLLIN, 0};
    CHECK(poll(&fd, 1, 0) >= 0);
    return fd.revents;
}

static pid_t named_by(int pidfd)
{
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0 && close(fd) == 0);
    char *line = strstr(text, "\nPid:");
    return line ? atoi(line + 5) : 0;
}

static uint64_t pidfds_round(long n)
{
    struct epoll_event events[4];
    if (n % 5 == 0)
        CHECK(fcntl(of_worker, F_SETFL, n % 2 ? O_NONBLOCK : 0) == 0);
    uint64_t sum = mix(ask(n), n % 3 ? 0 : signal_by(of_worker));
    sum = mix(mix(mix(sum, is_ended(of_child)), is_ended(of_ended)), is_ended(of_self));
    sum = mix(sum, named_by(of_child) == child && named_by(of_ended) == ended && named_by(of_self) == getpid());
    sum = mix(sum, fcntl(of_child, F_GETFL) << 4 | fcntl(of_self, F_GETFD));
    if (of_thread >= 0)
        sum = mix(mix(sum, is_ended(of_thread)), named_by(of_thread) == worker_id);
    int count = epoll_wait(watcher, events, 4, 0);
    CHECK(count >= 0);
    for (int i = 0; i < count; i++)
        sum = mix(sum, events[i].data.u32);
    return mix(sum, n % 7 == 0 ? waitid(P_PIDFD, of_child, &(siginfo_t){0}, WEXITED | WNOHANG) : 0);
}

static void pidfds_end(void)
{
    siginfo_t info;
    close(asks[1]), close(lets_go[1]);
    struct pollfd fds[] = {{of_child, POLLIN, 0}, {of_thread, POLLIN, 0}};
    CHECK(pthread_join(worker, NULL) == 0 && poll(fds, 1, -1) == 1 && (of_thread < 0 || poll(fds + 1, 1, -1) == 1));
    CHECK(waitid(P_PIDFD, of_child, &info, WEXITED) == 0 && info.si_pid == child && info.si_status == 9);
    CHECK(waitid(P_PIDFD, of_ended, &info, WEXITED) == 0 && info.si_pid == ended && info.si_status == 4);
    CHECK(waitid(P_PIDFD, of_worker, &info, WEXITED) == 0 && info.si_status == 6);
}

static int stat_of, comm, status, list, memory, pages, maps, folder, all, name, mounts, stat_of_ended;
static uint64_t cell;
static off_t in_all, in_folder;
static char first_line[13];

static uint64_t page_entry(int fd, const void *address)
{
    uint64_t entry = 0;
    CHECK(pread(fd, &entry, sizeof entry, (uintptr_t)address / 4096 * 8) == sizeof entry);
    return entry;
}

static pid_t pid_in(int fd)
{
    char text[64] = "";
    CHECK(pread(fd, text, sizeof text - 1, 0) > 0);
    return atoi(text);
}

/* Of the child, which is somebody else: what it may not see it does not see after a restart either. */
static unsigned char look(unsigned char c)
{
    uint64_t entry = page_entry(pages, &cell);
    return c + (pid_in(stat_of) == getppid()) + 2 * (entry >> 63) + 4 * ((entry & ((1ull << 55) - 1)) != 0);
}

static off_t read_some(int fd)
{
    char entries[256];
    CHECK(syscall(SYS_getdents64, fd, entries, sizeof entries) > 0);
    return lseek(fd, 0, SEEK_CUR);
}

static void files_begin(void)
{
    char path[64];
    CHECK(pipe(asks) == 0 && pipe(answers) == 0);
    end_one(3);
    CHECK((stat_of = open("/proc/self/stat", O_RDONLY)) >= 0 && (child = fork()) >= 0);
    if (!child) {
        CHECK(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
        CHECK(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
        CHECK((pages = open("/proc/self/pagemap", O_RDONLY)) >= 0);
        cell = 1;
        serve(look);
    }
    ask(0);
    snprintf(path, sizeof path, "/proc/%d/task/%d/comm", getpid(), gettid());
    CHECK((comm = open(path, O_RDWR)) >= 0);
    snprintf(path, sizeof path, "/proc/%d/status", child);
    CHECK((status = open(path, O_RDONLY)) >= 0);
    snprintf(path, sizeof path, "/proc/%d/stat", ended);
    CHECK((stat_of_ended = open(path, O_RDONLY)) >= 0);
    CHECK((list = open("/proc/version", O_RDONLY | O_CLOEXEC)) >= 0);
    CHECK((memory = open("/proc/self/mem", O_RDWR)) >= 0 && (pages = open("/proc/self/pagemap", O_RDONLY)) >= 0);
    CHECK((maps = open("/proc/self/maps", O_RDONLY)) >= 0 && read(maps, first_line, 12) == 12);
    CHECK((all = open("/proc", O_RDONLY | O_DIRECTORY)) >= 0 && (in_all = read_some(all)) > 0);
    CHECK((folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY)) >= 0 && (in_folder = read_some(folder)) > 0);
    CHECK((name = open("/proc/self/task", O_PATH)) >= 0 && (mounts = open("/proc/self/mounts", O_RDONLY)) >= 0);
    CHECK((watcher = epoll_create1(0)) >= 0);
    CHECK(epoll_ctl(watcher, EPOLL_CTL_ADD, mounts, &(struct epoll_event){EPOLLPRI, {.u32 = 8}}) == 0);
}

static uint64_t files_round(long n)
{
    char text[64] = "", own[32];
    struct epoll_event event;
    uint64_t value = 0;
    uint64_t sum = mix(ask(n), pid_in(stat_of) == getpid());
    snprintf(text, sizeof text, "round%ld", n);
    CHECK(write(comm, text, strlen(text)) == (ssize_t)strlen(text) && lseek(comm, 0, SEEK_SET) == 0);
    CHECK(read(comm, own, sizeof own) == (ssize_t)strlen(text) + 1 && memcmp(own, text, strlen(text)) == 0);
    /* On from where it was, and from the beginning behind the end. */
    ssize_t length = read(list, text, 7);
    CHECK(length >= 0);
    if (length == 0)
        CHECK(lseek(list, 0, SEEK_SET) == 0);
    for (ssize_t i = 0; i < length; i++)
        sum = mix(sum, text[i]);
    sum = mix(mix(sum, lseek(list, 0, SEEK_CUR)), fcntl(list, F_GETFD));
    cell = n * 3;
    CHECK(pread(memory, &value, sizeof value, (uintptr_t)&cell) == sizeof value && value == cell);
    value += 5;
    CHECK(pwrite(memory, &value, sizeof value, (uintptr_t)&cell) == sizeof value && cell == (uint64_t)n * 3 + 5);
    CHECK(page_entry(pages, &cell) >> 63);
    CHECK(lseek(maps, 0, SEEK_CUR) == 12 && pread(maps, text, 12, 0) == 12 && memcmp(text, first_line, 12) == 0);
    CHECK(lseek(all, 0, SEEK_CUR) == in_all && lseek(folder, 0, SEEK_CUR) == in_folder);
    CHECK(pread(status, text, 5, 0) == 5 && memcmp(text, "Name:", 5) == 0 && pid_in(stat_of_ended) == ended);
    snprintf(text, sizeof text, "%d/comm", gettid());
    int again = openat(name, text, O_RDONLY);
    CHECK(again >= 0 && close(again) == 0);
    return mix(mix(sum, fcntl(memory, F_GETFL)), epoll_wait(watcher, &event, 1, 0));
}

static void files_end(void)
{
    int how;
    close(asks[1]);
    CHECK(waitpid(child, &how, 0) == child && WEXITSTATUS(how) == 9);
    CHECK(waitpid(ended, &how, 0) == ended && WEXITSTATUS(how) == 3);
    /* The files of a process that is gone. */
    char c;
    CHECK(pread(status, &c, 1, 0) < 0 && errno == ESRCH);
}

static int instance, of_folder, of_file, of_once;

static int watch_file(const char *path, uint32_t mask)
{
    int watch = inotify_add_watch(instance, path, mask);
    CHECK(watch > 0);
    return watch;
}

static void inotify_begin(void)
{
    mkdir("w", 0700), mkdir("w/other", 0700);
    for (int i = 0; i < 2; i++)
        CHECK(close(open(i ? "w/once" : "w/f", O_WRONLY | O_CREAT, 0600)) == 0);
    CHECK((instance = inotify_init1(IN_NONBLOCK)) >= 0 && (watcher = epoll_create1(0)) >= 0);
    /* Numbers with gaps between them. */
    for (int i = 0; i < 5; i++)
        CHECK(inotify_rm_watch(instance, watch_file("w/other", IN_ALL_EVENTS)) == 0);
    of_folder = watch_file("w", IN_CLOSE_WRITE | IN_ATTRIB | IN_ONLYDIR | IN_EXCL_UNLINK);
    CHECK(inotify_rm_watch(instance, watch_file("w/other", IN_ALL_EVENTS)) == 0);
    of_file = watch_file("w/f", IN_MODIFY);
    of_once = watch_file("w/once", IN_MODIFY | IN_ONESHOT);
    char events[4096];
    CHECK(read(instance, events, sizeof events) > 0);
    watch(instance, 6);
}

static uint64_t take_events(void)
{
    char events[4096] __attribute__((aligned(8)));
    uint64_t sum = 0;
    ssize_t length = read(instance, events, sizeof events);
    CHECK(length > 0 || errno == EAGAIN);
    for (ssize_t at = 0; at < length;) {
        const struct inotify_event *event = (void *)(events + at);
        sum = mix(mix(mix(sum, event->wd), event->mask), event->cookie);
        for (const char *c = event->name; event->len && *c; c++)
            sum = mix(sum, *c);
        at += sizeof *event + event->len;
    }
    return sum;
}

static uint64_t inotify_round(long n)
{
    struct epoll_event event;
    char path[64], text[2048] = "";
    uint64_t sum = epoll_wait(watcher, &event, 1, 0);
    /* Events do not wait for long: a checkpoint that finds some is refused. */
    if (n % 4 == 0) {
        int fd = open("w/f", O_WRONLY);
        CHECK(fd >= 0 && pwrite(fd, "x", 1, n % 100) == 1 && close(fd) == 0 && chmod("w/f", n % 8 ? 0600 : 0640) == 0);
        CHECK(epoll_wait(watcher, &event, 1, 0) == 1 && event.data.u32 == 6);
        sum = mix(sum, take_events());
    }
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", instance);
    int info = open(path, O_RDONLY);
    CHECK(info >= 0 && read(info, text, sizeof text - 1) > 0 && close(info) == 0);
    for (char *line = text; (line = strstr(line, "inotify wd:")); line++)
        sum = mix(mix(sum, strtol(line + 11, NULL, 16)), strtoul(strstr(line, "mask:") + 5, NULL, 16));
    return mix(sum, fcntl(instance, F_GETFL));
}

static void inotify_end(void)
{
    int fd = open("w/once", O_WRONLY);
    write_all(fd, "ab", 2);
    close(fd);
    say(1, "once %016lx, then %d\n", take_events(), watch_file("w/other", IN_ALL_EVENTS));
}

static int leased, read_leased, foreign;
static volatile sig_atomic_t broken;

static void on_break(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    broken = info->si_fd == leased;
}

static unsigned char try_to_open(unsigned char c)
{
    int fd = open("leased", O_RDONLY | O_NONBLOCK), again = open("read", O_RDONLY | O_NONBLOCK);
    c += (fd < 0 && errno == EWOULDBLOCK) + 2 * (again >= 0);
    close(fd), close(again);
    return c;
}

/* Giving a lease up takes its signal away, too. */
static void lease_anew(void)
{
    CHECK(fcntl(leased, F_SETLEASE, F_UNLCK) == 0 && fcntl(leased, F_SETSIG, SIGRTMIN + 1) == 0);
    CHECK(fcntl(leased, F_SETLEASE, F_WRLCK) == 0);
}

static void leases_begin(void)
{
    struct sigaction action = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGRTMIN + 1, &action, NULL) == 0 && pipe(asks) == 0 && pipe(answers) == 0);
    CHECK(close(open("read", O_WRONLY | O_CREAT, 0600)) == 0);
    CHECK((leased = open("leased", O_RDWR | O_CREAT, 0600)) >= 0 && (read_leased = open("read", O_RDONLY)) >= 0);
    CHECK((foreign = open("leased2", O_RDWR | O_CREAT, 0600)) >= 0);
    CHECK(fcntl(leased, F_SETSIG, SIGRTMIN + 1) == 0 && fcntl(leased, F_SETLEASE, F_WRLCK) == 0);
    CHECK(fcntl(read_leased, F_SETLEASE, F_RDLCK) == 0);
    CHECK((child = fork()) >= 0);
    if (!child) {
        /* Taken by the child, who tells the parent. */
        CHECK(fcntl(foreign, F_SETLEASE, F_WRLCK) == 0);
        serve(try_to_open);
    }
    ask(0);
    while (fcntl(leased, F_GETLEASE) != F_WRLCK)
        lease_anew();
}

static uint64_t leases_round(long n)
{
    uint64_t sum = mix(fcntl(leased, F_GETLEASE), fcntl(read_leased, F_GETLEASE));
    sum = mix(mix(sum, fcntl(foreign, F_GETLEASE)), n);
    if (n % 10 == 0) {
        sigset_t set, old;
        sigemptyset(&set), sigaddset(&set, SIGRTMIN + 1);
        CHECK(sigprocmask(SIG_BLOCK, &set, &old) == 0);
        broken = 0;
        sum = mix(sum, ask(n));
        while (!broken)
            sigsuspend(&old);
        CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
        lease_anew();
    }
    return sum;
}

static void leases_end(void)
{
    int how;
    CHECK(fcntl(leased, F_SETLEASE, F_UNLCK) == 0);
    say(1, "%d\n", ask(0));
    close(asks[1]);
    CHECK(waitpid(child, &how, 0) == child && WEXITSTATUS(how) == 9);
}

static const struct thing things[] = {
    {"pidfds", pidfds_begin, pidfds_round, pidfds_end},
    {"files", files_begin, files_round, files_end},
    {"inotify", inotify_begin, inotify_round, inotify_end},
    {"leases", leases_begin, leases_round, leases_end},
};

int main(int argc, char **argv) { return rounds_of(things, sizeof things / sizeof *things, argc, argv); }
