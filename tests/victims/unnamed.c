/* unnamed DIR ROUNDS PERIOD_US: files that have lost their names, or never had one, written and read in each round. */
#include "victim.h"
#include <fcntl.h>
#include <sys/stat.h>

enum { SIZE = (3 << 20) + 123 };

static const off_t VAST = 1ll << 40;
static int gone, again, twice, unborn, born, linked, renamed, vast;

/* A file of O_TMPFILE can be given a name. */
static void give_name(int fd, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    unlink(name);
    CHECK(linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0);
}

static void set_up(const char *dir)
{
    static unsigned char bytes[SIZE];
    uint64_t random = 7;
    CHECK(chdir(dir) == 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = next_random(&random);
    CHECK((gone = open("gone", O_RDWR | O_CREAT | O_TRUNC, 0640)) >= 0 && (again = open("gone", O_RDONLY)) >= 0);
    CHECK((twice = dup(gone)) >= 0 && unlink("gone") == 0);
    write_all(gone, bytes, sizeof bytes);
    /* Pages that are zero, and a hole behind them. */
    memset(bytes, 0, 20000);
    CHECK(pwrite(gone, bytes, 20000, 1 << 20) == 20000 && ftruncate(gone, SIZE + (8 << 20)) == 0);
    CHECK(lseek(gone, 4321, SEEK_SET) == 4321 && lseek(again, 77, SEEK_SET) == 77);
    CHECK((vast = open("vast", O_RDWR | O_CREAT | O_TRUNC, 0600)) >= 0 && unlink("vast") == 0);
    CHECK(ftruncate(vast, VAST) == 0);
    CHECK((unborn = open(".", O_RDWR | O_TMPFILE | O_APPEND, 0600)) >= 0);
    CHECK((born = open(".", O_RDWR | O_TMPFILE, 0600)) >= 0);
    give_name(born, "born");
    unlink("one"), unlink("two"), unlink("three"), unlink("four");
    CHECK((linked = open("one", O_RDWR | O_CREAT, 0600)) >= 0 && link("one", "two") == 0 && unlink("one") == 0);
    CHECK((renamed = open("three", O_RDWR | O_CREAT, 0600)) >= 0 && rename("three", "four") == 0);
}

static uint64_t look(int fd)
{
    static unsigned char bytes[1 << 16];
    struct stat stat;
    ssize_t n;
    CHECK(fstat(fd, &stat) == 0);
    int kept = O_ACCMODE | O_APPEND | O_NONBLOCK;
    uint64_t sum = mix(mix(mix(stat.st_size, stat.st_nlink), stat.st_mode), fcntl(fd, F_GETFL) & kept);
    sum = mix(mix(mix(sum, lseek(fd, 0, SEEK_CUR)), stat.st_uid), stat.st_gid);
    for (off_t at = 0; (n = pread(fd, bytes, sizeof bytes, at)) > 0; at += n)
        for (ssize_t i = 0; i < n; i++)
            sum = mix(sum, bytes[i]);
    CHECK(n == 0);
    return sum;
}

/* A terabyte, and next to nothing in it: some words far from each other, which are written over in each round. */
static uint64_t look_at_vast(long round)
{
    static uint64_t wrote[4];
    const off_t at[4] = {0, VAST / 2 + 5000, VAST / 2 + 40960, VAST - 8};
    struct stat stat;
    uint64_t word, sum = 0;
    for (int i = 0; i < 4; i++) {
        CHECK(pread(vast, &word, 8, at[i]) == 8 && word == wrote[i]);
        sum = mix(sum, wrote[i] = mix(round, i));
        CHECK(pwrite(vast, &wrote[i], 8, at[i]) == 8);
    }
    CHECK(pread(vast, &word, 8, VAST / 4) == 8 && word == 0);
    CHECK(fstat(vast, &stat) == 0 && stat.st_size == VAST && stat.st_blocks < 1000);
    return sum;
}

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    long rounds = number(argc, argv, 2, 150), period = number(argc, argv, 3, 2000);
    set_up(argv[1]);
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        uint64_t word = round * 0x9e3779b97f4a7c15ull;
        /* Through one descriptor, read through the others. */
        CHECK(pwrite(gone, &word, 8, round * 40009 % SIZE) == 8);
        write_all(unborn, &word, 8), write_all(born, &word, 8), write_all(linked, &word, 8), write_all(renamed, &word, 8);
        CHECK(lseek(twice, 3, SEEK_CUR) == 4321 + 3 * round);
        say(1, "%ld gone %016lx %016lx unborn %016lx born %016lx linked %016lx renamed %016lx vast %016lx\n", round,
            look(gone), look(again), look(unborn), look(born), look(linked), look(renamed), look_at_vast(round));
        sleep_us(period);
    }
    struct stat stat;
    give_name(unborn, "at last");
    CHECK(lstat("at last", &stat) == 0);
    say(1, "born with %ld bytes\n", (long)stat.st_size);
    return 0;
}
