/* Memory of memfd_create(2): mapped and open, mapped only, open only, sealed, and between processes. */
#ifndef MEMKINDS_MEMFD_H
#define MEMKINDS_MEMFD_H
#include "memkinds.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 16
#endif
/* Not a multiple of the page: the rest of the last page is zeros. */
enum { ODD_SIZE = PAGES * PAGE - 1000 };

static struct model kept = {1, {0}}, closed = {2, {0}}, own = {3, {0}}, unmapped = {4, {0}};
static char *kept_at, *kept_read_only, *closed_at, *own_at, *base_at;
static int kept_fd, kept_again, kept_dup, unmapped_fd, private_fd;

static int memory(const char *name, unsigned flags, off_t size)
{
    int fd = memfd_create(name, flags);
    CHECK(fd >= 0 && ftruncate(fd, size) == 0);
    return fd;
}

static void memfd_set_up(void)
{
    char path[64];
    kept_fd = memory("a name (with blanks)", MFD_ALLOW_SEALING, PAGES * PAGE);
    CHECK(fchmod(kept_fd, 0640) == 0);
    kept_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, kept_fd);
    snprintf(path, sizeof path, "/proc/self/fd/%d", kept_fd);
    CHECK((kept_again = open(path, O_RDONLY)) >= 0 && (kept_dup = dup(kept_fd)) >= 0);
    kept_read_only = map_it(PAGES * PAGE, PROT_READ, MAP_SHARED, kept_again);
    int fd = memory("closed", MFD_CLOEXEC, PAGES * PAGE);
    closed_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    CHECK(close(fd) == 0);
    unmapped_fd = memory("", MFD_CLOEXEC, 0);
    private_fd = memory("private", 0, PAGES * PAGE);
    base_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, private_fd);
    for (int page = 0; page < PAGES; page++)
        put(base_at, &own, page, 1);
    own_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, private_fd);
}

/* What is written to the private mapping is nobody else's; what is dropped there is the object's again. */
static uint64_t private_round(long round)
{
    static struct model changed = {3, {0}};
    if (round == 1)
        changed = own;
    int page = next_random(&random_state) % PAGES;
    put(own_at, &changed, page, round);
    page = next_random(&random_state) % PAGES;
    CHECK(madvise(own_at + page * PAGE, PAGE, MADV_DONTNEED) == 0);
    changed.version[page] = own.version[page];
    return mix(right("private mapping", own_at, &changed, PAGES), right("under it", base_at, &own, PAGES));
}

/* Of the object without a mapping: grown, cut and written by the round. */
static uint64_t unmapped_round(long round)
{
    static char page[PAGE], seen[PAGES * PAGE];
    static long size;
    struct stat stat;
    CHECK(fstat(unmapped_fd, &stat) == 0 && stat.st_size == size);
    CHECK(lseek(unmapped_fd, 0, SEEK_CUR) == (round - 1) % 100);
    size = round % 3 == 0 ? PAGES / 2 * PAGE : ODD_SIZE;
    CHECK(ftruncate(unmapped_fd, size) == 0);
    for (int i = PAGES / 2; round % 3 == 0 && i < PAGES; i++)
        unmapped.version[i] = 0;
    int at = next_random(&random_state) % (PAGES / 2);
    for (int i = 0; i < WORDS; i++)
        ((uint64_t *)page)[i] = mix(mix(mix(unmapped.id, at), round), i);
    unmapped.version[at] = round;
    CHECK(pwrite(unmapped_fd, page, PAGE, (off_t)at * PAGE) == PAGE);
    memset(seen, 0, sizeof seen);
    CHECK(pread(unmapped_fd, seen, size, 0) == size);
    CHECK(lseek(unmapped_fd, round % 100, SEEK_SET) == round % 100);
    return right("without a mapping", seen, &unmapped, PAGES);
}

static uint64_t memfd_round(long round)
{
    struct stat stat;
    char byte;
    fd_leads_to(kept_fd, "/memfd:a name (with blanks) (deleted)");
    CHECK(fstat(kept_fd, &stat) == 0 && (stat.st_mode & 07777) == 0640 && stat.st_size == PAGES * PAGE);
    CHECK(fcntl(kept_fd, F_GET_SEALS) == 0 && fcntl(unmapped_fd, F_GET_SEALS) == F_SEAL_SEAL);
    CHECK(fcntl(unmapped_fd, F_GETFD) == FD_CLOEXEC && fcntl(kept_fd, F_GETFD) == 0);
    /* Two descriptions, one of them with two numbers. */
    CHECK(lseek(kept_fd, 0, SEEK_CUR) == round - 1 && lseek(kept_dup, 0, SEEK_CUR) == round - 1);
    CHECK(lseek(kept_again, 0, SEEK_CUR) == 2 * (round - 1));
    CHECK(lseek(kept_dup, round, SEEK_SET) == round && lseek(kept_again, 2 * round, SEEK_SET) == 2 * round);
    CHECK(write(kept_again, &byte, 1) < 0 && errno == EBADF);
    CHECK(mprotect(kept_read_only, PAGE, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
    change(kept_at, &kept, round);
    change(closed_at, &closed, round);
    int page = next_random(&random_state) % PAGES;
    CHECK(fallocate(kept_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page * PAGE, PAGE) == 0);
    kept.version[page] = 0;
    uint64_t sum = right("mapped and open", kept_at, &kept, PAGES);
    sum = mix(sum, right("mapped read-only", kept_read_only, &kept, PAGES));
    sum = mix(sum, right("mapped and closed", closed_at, &closed, PAGES));
    return mix(mix(sum, private_round(round)), unmapped_round(round));
}

static struct model fixed = {5, {0}}, future = {6, {0}};
static int fixed_fd, future_fd;
static char *fixed_at, *fixed_private, *future_at;
enum { FIXED = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE };

enum { SEAL_EXEC = 0x20 };
static int exec_fd[2];

static void exec_seals(void)
{
    for (int i = 0; i < 2; i++) {
        struct stat found;
        if (exec_fd[i] < 0)
            continue;
        CHECK(fstat(exec_fd[i], &found) == 0);
        if ((found.st_mode & 0111) != (i ? 0111 : 0) || !(fcntl(exec_fd[i], F_GET_SEALS) & SEAL_EXEC) ||
            fchmod(exec_fd[i], found.st_mode ^ 0111) == 0 || errno != EPERM)
            fail("memory %d has mode %o, seals %x", i, found.st_mode, fcntl(exec_fd[i], F_GET_SEALS));
    }
}

static void sealed_set_up(void)
{
    fixed_fd = memory("fixed", MFD_ALLOW_SEALING, PAGES * PAGE);
    char *at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fixed_fd);
    for (int page = 0; page < PAGES; page += 2)
        put(at, &fixed, page, 1);
    CHECK(munmap(at, PAGES * PAGE) == 0);
    CHECK(fcntl(fixed_fd, F_ADD_SEALS, FIXED) == 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fixed_fd);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    fixed_at = map_it(PAGES * PAGE, PROT_READ, MAP_SHARED, fd);
    fixed_private = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fixed_fd);
    CHECK(close(fd) == 0);
    /* One that nobody may execute, ever, and one that anybody may (Linux 6.3). */
    for (int i = 0; i < 2; i++) {
        exec_fd[i] = memfd_create("exec", MFD_ALLOW_SEALING | (i ? 0x10u /* MFD_EXEC */ : 8u /* MFD_NOEXEC_SEAL */));
        CHECK(exec_fd[i] >= 0 || errno == EINVAL);
        CHECK(exec_fd[i] < 0 || !i || fcntl(exec_fd[i], F_ADD_SEALS, SEAL_EXEC) == 0);
    }
    future_fd = memory("future", MFD_ALLOW_SEALING, PAGES * PAGE);
    future_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, future_fd);
    CHECK(fcntl(future_fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK) == 0);
}

static uint64_t sealed_round(long round)
{
    static struct model changed = {5, {0}};
    if (round == 1)
        changed = fixed;
    char byte = 1;
    CHECK(fcntl(fixed_fd, F_GET_SEALS) == FIXED && pwrite(fixed_fd, &byte, 1, 0) < 0 && errno == EPERM);
    CHECK(ftruncate(fixed_fd, 0) < 0 && errno == EPERM && fcntl(fixed_fd, F_ADD_SEALS, 0) < 0 && errno == EPERM);
    CHECK(fcntl(future_fd, F_GET_SEALS) == (F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK));
    CHECK(pwrite(future_fd, &byte, 1, 0) < 0 && errno == EPERM);
    CHECK(mprotect(fixed_at, PAGE, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
    change(future_at, &future, round);
    exec_seals();
    put(fixed_private, &changed, next_random(&random_state) % PAGES, round);
    uint64_t sum = right("sealed", fixed_at, &fixed, PAGES);
    sum = mix(sum, right("private mapping of what is sealed", fixed_private, &changed, PAGES));
    return mix(sum, right("sealed for the future", future_at, &future, PAGES));
}

static struct model between = {7, {0}};
static char *between_at;
static int between_fd, to_child, from_child;

/* The child writes and checks through a mapping that it makes anew each time, of the descriptor alone. */
__attribute__((noreturn)) static void between_child(int in, int out)
{
    struct model model;
    while (read(in, &model, sizeof model) == sizeof model) {
        char *at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, between_fd);
        right("in the child", at, &model, PAGES);
        change(at, &model, model.version[0] + 1);
        CHECK(munmap(at, PAGES * PAGE) == 0);
        write_all(out, &model, sizeof model);
    }
    _exit(0);
}

static void between_set_up(void)
{
    int down[2], up[2];
    CHECK(pipe(down) == 0 && pipe(up) == 0);
    between_fd = memory("between", MFD_ALLOW_SEALING, PAGES * PAGE);
    if (!fork()) {
        close(down[1]), close(up[0]);
        between_child(down[0], up[1]);
    }
    close(down[0]), close(up[1]);
    between_at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, between_fd);
    CHECK(close(between_fd) == 0);
    to_child = down[1], from_child = up[0];
}

static uint64_t between_round(long round)
{
    put(between_at, &between, 0, round);
    change(between_at, &between, round);
    write_all(to_child, &between, sizeof between);
    size_t got = 0;
    while (got < sizeof between) {
        ssize_t n = read(from_child, (char *)&between + got, sizeof between - got);
        CHECK(n > 0 || (n < 0 && errno == EINTR));
        got += n > 0 ? n : 0;
    }
    return right("after the child", between_at, &between, PAGES);
}
#endif
