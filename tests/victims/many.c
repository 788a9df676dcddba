/* many DIR FILES PIPES ROUNDS PERIOD_US: more descriptors than ckptbpf may have itself, each with something of its own. The soft
 * limit is raised by the program, and must stay as it has set it. */
#include "victim.h"
#include <fcntl.h>
#include <sys/resource.h>

enum { MOST = 10000 };

static int files[MOST], pipes[MOST][2];
static struct rlimit limit;

static void set_up(const char *dir, long n_files, long n_pipes)
{
    char name[32];
    CHECK(chdir(dir) == 0 && n_files <= MOST && n_pipes <= MOST && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = n_files + 2 * n_pipes + 40;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (long i = 0; i < n_files; i++) {
        snprintf(name, sizeof name, "file%ld", i % 50);
        CHECK((files[i] = open(name, O_RDWR | O_CREAT, 0600)) >= 0 && lseek(files[i], i, SEEK_SET) == i);
    }
    for (long i = 0; i < n_pipes; i++) {
        CHECK(pipe(pipes[i]) == 0);
        write_all(pipes[i][1], &i, sizeof i);
    }
}

/* What each of them holds, which is one more then. */
static uint64_t look(long n_files, long n_pipes)
{
    struct rlimit now;
    uint64_t sum = 7;
    CHECK(getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == limit.rlim_cur && now.rlim_max == limit.rlim_max);
    for (long i = 0; i < n_files; i++)
        sum = mix(sum, lseek(files[i], 1, SEEK_CUR));
    for (long i = 0; i < n_pipes; i++) {
        uint64_t word;
        CHECK(read(pipes[i][0], &word, sizeof word) == sizeof word);
        sum = mix(sum, word++);
        write_all(pipes[i][1], &word, sizeof word);
    }
    return sum;
}

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    long n_files = number(argc, argv, 2, 1000), n_pipes = number(argc, argv, 3, 1000);
    long rounds = number(argc, argv, 4, 100), period = number(argc, argv, 5, 2000);
    set_up(argv[1], n_files, n_pipes);
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        say(1, "%ld %016lx\n", round, look(n_files, n_pipes));
        sleep_us(period);
    }
    return 0;
}
