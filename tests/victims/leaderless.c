/* leaderless WHICH STEPS PERIOD_US: a process whose first thread has ended while two others go on. WHICH is "itself", or
 * "child": a child of the program, which waits for it and says how it has ended.
 *
 * Each step rewrites memory, moves a file, a pipe and a timer on, and looks at what is left of the first thread; a second
 * thread has a part in each. Their state is of every kind that /proc, ptrace(2) and the like reach by a process's id. */
#include "victim.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

enum { WORDS = 1 << 18, SHARED = 1 << 14, BITS = 1 << 13 };

static long steps, period;
static int status_of_first;
static uint64_t *own, *shared, *of_file;
static int log_file, pipe_ends[2], events, watch, locked;
static pthread_barrier_t begin, end;
static volatile int is_over;
static volatile uint64_t of_other;
static volatile long rings;
static pid_t child;

static void on_ring(int signal)
{
    (void)signal;
    rings++;
}

/* Has a part in each step, on its own signal mask and alternate stack. */
static void *other(void *unused)
{
    static char stack[1 << 15];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack}, seen;
    sigset_t all, mask;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0 && sigaltstack(&alternate, NULL) == 0);
    CHECK(prctl(PR_SET_NAME, "the other") == 0);
    for (;;) {
        pthread_barrier_wait(&begin);
        if (is_over)
            syscall(SYS_exit, status_of_first ? 9 : 0);
        CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0 && sigaltstack(NULL, &seen) == 0);
        uint64_t sum = sigismember(&mask, SIGTERM) + 2 * (seen.ss_sp == (void *)stack);
        for (int i = 0; i < SHARED; i += 512)
            sum = mix(sum, shared[i]++);
        of_other = sum;
        pthread_barrier_wait(&end);
    }
    return unused;
}

static void set_up(void)
{
    own = mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared = mmap(NULL, SHARED * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    FILE *content = tmpfile();
    CHECK(own != MAP_FAILED && shared != MAP_FAILED && content);
    for (uint64_t i = 0; i < BITS; i++)
        CHECK(fwrite(&i, sizeof i, 1, content) == 1);
    CHECK(fflush(content) == 0);
    of_file = mmap(NULL, BITS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(content), 0);
    CHECK(of_file != MAP_FAILED);
    log_file = open("log", O_RDWR | O_CREAT | O_TRUNC, 0600);
    locked = open("locked", O_RDWR | O_CREAT, 0600);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 5};
    CHECK(log_file >= 0 && locked >= 0 && fcntl(locked, F_SETLK, &lock) == 0);
    CHECK(pipe(pipe_ends) == 0 && (events = eventfd(7, 0)) >= 0 && (watch = epoll_create1(0)) >= 0);
    CHECK(epoll_ctl(watch, EPOLL_CTL_ADD, events, &(struct epoll_event){.events = EPOLLIN, .data.u32 = 5}) == 0);
    struct sigaction action = {.sa_handler = on_ring, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 5000}, {0, 5000}};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
    CHECK(setrlimit(RLIMIT_CORE, &(struct rlimit){12345, 23456}) == 0 && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pthread_barrier_init(&begin, NULL, 2);
    pthread_barrier_init(&end, NULL, 2);
}

/* What /proc shows of the first thread: its name, state, threads beside it; and how it has ended. */
static void show_first(char *line, size_t size)
{
    char path[64], text[512], name[32] = "", state = '?';
    long number = 0, threads = 0;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
    int stat = open(path, O_RDONLY);
    ssize_t length = read(stat, text, sizeof text - 1);
    CHECK(stat >= 0 && length > 0 && close(stat) == 0);
    text[length] = 0;
    char *field = strrchr(text, ')');
    CHECK(field && sscanf(text, "%*d (%31[^)]", name) == 1);
    state = field[2];
    for (int i = 3; i < 52; i++) {
        field = strchr(field + 1, ' ');
        CHECK(field);
        if (i == 20)
            threads = atol(field + 1);
    }
    CHECK((field = strchr(field + 1, ' ')));
    number = atol(field + 1);
    snprintf(line, size, "%s %c, threads %ld, status %ld", name, state, threads, number);
}

static uint64_t step(long n)
{
    char first[128], bytes[8];
    uint64_t sum = n, random = n + 17;
    struct epoll_event ready;
    struct rlimit core;
    int subreaper = 0;
    pthread_barrier_wait(&begin);
    for (int i = 0; i < 64; i++) {
        uint64_t at = next_random(&random);
        own[at % WORDS] += at;
        of_file[at % BITS] ^= at;
    }
    sum = mix_words(mix_words(sum, own, WORDS), of_file, BITS);
    CHECK(dprintf(log_file, "%ld %016lx\n", n, sum) > 0);
    sum = mix(sum, lseek(log_file, 0, SEEK_CUR));
    /* A pipe that always holds the last three. */
    write_all(pipe_ends[1], &n, sizeof n);
    if (n > 3) {
        CHECK(read(pipe_ends[0], bytes, sizeof bytes) == sizeof bytes);
        sum = mix_words(sum, (uint64_t *)bytes, 1);
    }
    CHECK(epoll_wait(watch, &ready, 1, 0) == 1 && ready.data.u32 == 5);
    CHECK(getrlimit(RLIMIT_CORE, &core) == 0 && prctl(PR_GET_CHILD_SUBREAPER, &subreaper) == 0);
    sum = mix(mix(mix(sum, core.rlim_cur), core.rlim_max), subreaper);
    show_first(first, sizeof first);
    for (const char *c = first; *c; c++)
        sum = mix(sum, *c);
    pthread_barrier_wait(&end);
    if (n == 1)
        say(1, "%s\n", first);
    return mix(sum, of_other);
}

/* A child of a thread that is not the first. */
static void have_child(void)
{
    child = fork();
    CHECK(child >= 0);
    while (child == 0)
        pause();
}

static void *go_on(void *unused)
{
    char first[128];
    int status;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 20};
    do
        show_first(first, sizeof first);
    while (!strstr(first, " Z,"));
    have_child();
    for (long n = 1; n <= steps; n++) {
        hold_at(n, steps);
        say(1, "%ld %016lx\n", n, step(n));
        sleep_us(period);
    }
    long before = rings;
    while (rings == before)
        sleep_us(1000);
    pid_t asker = fork();
    if (asker == 0)
        _exit(fcntl(locked, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_start == 3 && lock.l_pid == getppid() ? 0 : 1);
    CHECK(waitpid(asker, &status, 0) == asker && status == 0);
    CHECK(kill(child, 0) == 0 && kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    say(1, "the lock is held, the timer rings\n");
    /* These threads, not the process: which of their statuses is its own is the kernel's affair. */
    is_over = 1;
    pthread_barrier_wait(&begin);
    syscall(SYS_exit, status_of_first ? 9 : 0);
    return unused;
}

static void lose_first(void)
{
    pthread_t one;
    set_up();
    CHECK(pthread_create(&one, NULL, other, NULL) == 0 && pthread_create(&one, NULL, go_on, NULL) == 0);
    CHECK(prctl(PR_SET_NAME, "was the first") == 0);
    syscall(SYS_exit, status_of_first);
}

int main(int argc, char **argv)
{
    steps = number(argc, argv, 2, 300), period = number(argc, argv, 3, 3000);
    CHECK(argc > 1);
    if (strcmp(argv[1], "itself") == 0)
        lose_first();
    status_of_first = 5;
    pid_t one = fork();
    CHECK(one >= 0);
    if (one == 0)
        lose_first();
    int status;
    CHECK(waitpid(one, &status, 0) == one);
    say(1, "ended with %x\n", status);
    return 0;
}
