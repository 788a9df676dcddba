/* replaced DIR ROUNDS PERIOD_US: runs and maps files that were deleted or replaced meanwhile, as an upgrade does. */
#include "victim.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PAGES = 40, PAGE = 4096, SIZE = PAGES * PAGE };

static unsigned char *alone, *shared, *seen, *tail;
static int both, asks[2], answers[2];
static pid_t child;

static void copy(const char *from, const char *to)
{
    static char bytes[1 << 16];
    ssize_t n;
    unlink(to);
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_EXCL, 0755);
    CHECK(in >= 0 && out >= 0);
    while ((n = read(in, bytes, sizeof bytes)) > 0)
        write_all(out, bytes, n);
    close(in), close(out);
}

/* A file of random bytes, deleted, with another one under its name. */
static int make(const char *name, size_t size)
{
    static unsigned char bytes[SIZE];
    uint64_t random = name[0];
    for (size_t i = 0; i < size; i++)
        bytes[i] = next_random(&random);
    unlink(name);
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0640);
    CHECK(fd >= 0);
    write_all(fd, bytes, size);
    return fd;
}

static void replace(const char *name)
{
    CHECK(unlink(name) == 0);
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
    write_all(fd, "another one", 11);
    close(fd);
}

static void set_up(void)
{
    int fd = make("private", SIZE), few = make("tail", 5000);
    alone = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    tail = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, few, 0);
    both = make("shared", SIZE);
    shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, both, 0);
    int again = open("shared", O_RDONLY);
    seen = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, again, 0);
    CHECK(alone != MAP_FAILED && tail != MAP_FAILED && shared != MAP_FAILED && seen != MAP_FAILED);
    close(fd), close(few), close(again);
    replace("private"), replace("tail"), replace("shared");
    for (int page = 0; page < PAGES; page += 3)
        alone[page * PAGE + 5] = page;
    CHECK(pipe(asks) == 0 && pipe(answers) == 0 && (child = fork()) >= 0);
    if (child)
        return;
    unsigned char c;
    close(asks[1]);
    while (read(asks[0], &c, 1) == 1) {
        shared[c % PAGES * PAGE + 9] += 3;
        write_all(answers[1], &c, 1);
    }
    _exit(2);
}

static uint64_t look(const unsigned char *bytes, size_t size)
{
    return mix_words(0, (const uint64_t *)bytes, size / 8);
}

static void finish(long rounds)
{
    int how;
    struct stat stat;
    char target[512] = "";
    close(asks[1]);
    CHECK(waitpid(child, &how, 0) == child && WEXITSTATUS(how) == 2);
    CHECK(fstat(both, &stat) == 0 && stat.st_nlink == 0 && (stat.st_mode & 0777) == 0640 && stat.st_size == SIZE);
    /* A page that is dropped is the file's again. */
    alone[5] = rounds;
    CHECK(madvise(alone, SIZE, MADV_DONTNEED) == 0);
    say(1, "dropped %016lx\n", look(alone, SIZE));
    CHECK(readlink("/proc/self/exe", target, sizeof target - 1) > 0 && strstr(target, " (deleted)"));
    CHECK(ftruncate(both, 100) == 0 && shared[99] == seen[99]);
}

int main(int argc, char **argv)
{
    CHECK(argc > 3);
    if (strcmp(argv[0], "upgraded") != 0) {
        char *again[] = {"upgraded", argv[1], argv[2], argv[3], NULL};
        CHECK(chdir(argv[1]) == 0);
        copy("/proc/self/exe", "program");
        execv("program", again);
        fail("exec");
    }
    long rounds = number(argc, argv, 2, 150), period = number(argc, argv, 3, 2000);
    replace("program");
    set_up();
    for (long round = 1; round <= rounds; round++) {
        unsigned char c = round, got;
        hold_at(round, rounds);
        alone[round * 7 % PAGES * PAGE + round % PAGE] = round;
        shared[round * 11 % PAGES * PAGE + 1] = round;
        /* Through the descriptor, seen in the mappings; and the other way round. */
        CHECK(pwrite(both, &c, 1, 17) == 1 && shared[17] == c && seen[17] == c);
        shared[18] = ~c;
        CHECK(pread(both, &got, 1, 18) == 1 && got == (unsigned char)~c);
        write_all(asks[1], &c, 1);
        CHECK(read(answers[0], &c, 1) == 1);
        say(1, "%ld %016lx %016lx %016lx %016lx\n", round, look(alone, SIZE), look(shared, SIZE), look(seen, SIZE),
            look(tail, 2 * PAGE));
        sleep_us(period);
    }
    finish(rounds);
    say(1, "all as it should be\n");
    return 0;
}
