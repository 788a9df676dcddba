/* Rows of dirty.c: shared memory, memory that the kernel or another process writes, and memory that cannot be saved. */
#ifndef DIRTY_KERNEL_H
#define DIRTY_KERNEL_H
#include "dirty.h"

static char *shared(size_t pages)
{
    return map(NULL, pages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
}

/* hole punched in shared memory */
static char *punched;
static void punched_set_up(void) { put(punched = shared(512), 0, 512, 1); }
static void punched_operate(int step)
{
    CHECK(madvise(punched + 8 * PAGE, 24 * PAGE, MADV_REMOVE) == 0);
    put(punched, 20, 22, 1 + step);
}
static void punched_verify(void)
{
    expect("shared", punched, 0, 8, 1);
    expect("punched", punched, 8, 20, 0);
    expect("punched and written", punched, 20, 22, 2);
    expect("punched", punched, 22, 32, 0);
    expect("shared", punched, 32, 512, 1);
}

/* shared memory written through another mapping, of this process and of a child that is gone */
static char *alias, *other;
static void alias_set_up(void)
{
    put(alias = shared(512), 0, 512, 1);
    other = mremap(alias, 0, 512 * PAGE, MREMAP_MAYMOVE);
    CHECK(other != MAP_FAILED && other != alias);
}
static void alias_operate(int step)
{
    put(other, 10, 12, 1 + step);
    pid_t one = fork();
    CHECK(one >= 0);
    if (!one) {
        put(other, 20, 22, 1 + step);
        _exit(0);
    }
    int status;
    CHECK(waitpid(one, &status, 0) == one && status == 0 && await(SIGCHLD) == SIGCHLD);
}
static void alias_verify(void)
{
    for (int i = 0; i < 2; i++) {
        char *at = i ? other : alias;
        expect("shared", at, 0, 10, 1);
        expect("written through the other mapping", at, 10, 12, 2);
        expect("shared", at, 12, 20, 1);
        expect("written by a child", at, 20, 22, 2);
        expect("shared", at, 22, 512, 1);
    }
}

/* pages that a system call writes; each row names the call */
static char *target;
static void target_set_up(void) { put(target = area(512), 0, 512, 1); }
static void target_verify(void)
{
    expect("clean", target, 0, 100, 1);
    expect("written by the kernel", target, 100, 104, 2);
    expect("clean", target, 104, 512, 1);
}
static char *source(int step)
{
    static char *made;
    if (!made)
        made = area(512);
    put(made, 100, 104, 1 + step);
    return made + 100 * PAGE;
}

#define read_set_up target_set_up
#define read_verify target_verify
static void read_operate(int step)
{
    int pair[2];
    CHECK(pipe(pair) == 0);
    write_all(pair[1], source(step), 4 * PAGE);
    CHECK(read(pair[0], target + 100 * PAGE, 4 * PAGE) == 4 * PAGE);
    close(pair[0]), close(pair[1]);
}

#define writev_set_up target_set_up
#define writev_verify target_verify
static void writev_operate(int step)
{
    pid_t parent = getpid(), one;
    char *bytes = source(step);
    CHECK((one = fork()) >= 0);
    if (!one) {
        struct iovec from = {bytes, 4 * PAGE}, to = {target + 100 * PAGE, 4 * PAGE};
        _exit(process_vm_writev(parent, &from, 1, &to, 1, 0) == 4 * PAGE ? 0 : 1);
    }
    int status;
    CHECK(waitpid(one, &status, 0) == one && status == 0 && await(SIGCHLD) == SIGCHLD);
}

#define mem_set_up target_set_up
#define mem_verify target_verify
static void mem_operate(int step)
{
    int fd = open("/proc/self/mem", O_RDWR);
    CHECK(fd >= 0 && pwrite(fd, source(step), 4 * PAGE, (off_t)(target + 100 * PAGE)) == 4 * PAGE && close(fd) == 0);
}

#define direct_set_up target_set_up
#define direct_verify target_verify
static void direct_operate(int step)
{
    int fd = file("direct", 104, 1 + step, O_DIRECT);
    CHECK(pread(fd, target + 100 * PAGE, 4 * PAGE, 100 * PAGE) == 4 * PAGE && close(fd) == 0);
}

/* O_DIRECT reads that never stop, so that some are in flight over every scan; every buffer is compared */
/* Blocks so large that a read is in flight for milliseconds; all together less than asks for a second round. */
enum { BUFFERS = 3, BLOCK = 1024, BLOCKS = 8 };
static char *buffers;
static int streamed;
/* -1: a read of it has not come back. */
static int block_of[BUFFERS];
static pthread_mutex_t still = PTHREAD_MUTEX_INITIALIZER;
static void compare_buffer(int b)
{
    int block = block_of[b];
    for (int page = 0; block > 0 && page < BLOCK; page++)
        for (int i = 0; i < WORDS; i += 64)
            if (((uint64_t *)(buffers + ((size_t)b * BLOCK + page) * PAGE))[i] !=
                word((block - 1) * BLOCK + page, 5, i))
                fail("buffer %d, page %d is not of block %d", b, page, block - 1);
}
static void *stream(void *unused)
{
    uint64_t seed = 11;
    for (;;) {
        CHECK(pthread_mutex_lock(&still) == 0);
        int b = next_random(&seed) % BUFFERS, block = next_random(&seed) % BLOCKS;
        compare_buffer(b);
        CHECK(pread(streamed, buffers + (size_t)b * BLOCK * PAGE, BLOCK * PAGE, (off_t)block * BLOCK * PAGE) ==
              BLOCK * PAGE);
        block_of[b] = 1 + block;
        compare_buffer(b);
        CHECK(pthread_mutex_unlock(&still) == 0);
    }
    return unused;
}
static void streaming_set_up(void)
{
    pthread_t thread;
    streamed = file("stream", BLOCKS * BLOCK, 5, O_DIRECT);
    buffers = area(BUFFERS * BLOCK);
    CHECK(pthread_create(&thread, NULL, stream, NULL) == 0);
}
static void streaming_operate(int step) { (void)step; }
static void streaming_verify(void)
{
    CHECK(pthread_mutex_lock(&still) == 0);
    for (int b = 0; b < BUFFERS; b++)
        compare_buffer(b);
    CHECK(pthread_mutex_unlock(&still) == 0);
}

/* pages written and dropped all the time, with a descriptor of O_DIRECT open */
enum { CHURNED = 2048 };
static char *churned;
static volatile uint32_t version_of[CHURNED];
static void *churn(void *unused)
{
    uint64_t seed = 13;
    for (uint32_t version = 1;; version++) {
        int page = next_random(&seed) % CHURNED;
        CHECK(pthread_mutex_lock(&still) == 0);
        expect("churned", churned, page, page + 1, version_of[page]);
        if (version % 2) {
            put(churned, page, page + 1, version);
            version_of[page] = version;
        } else {
            CHECK(madvise(churned + (size_t)page * PAGE, PAGE, MADV_DONTNEED) == 0);
            version_of[page] = 0;
        }
        CHECK(pthread_mutex_unlock(&still) == 0);
    }
    return unused;
}
static void churn_set_up(void)
{
    pthread_t thread;
    file("churn", 1, 1, O_DIRECT);
    churned = area(CHURNED);
    CHECK(pthread_create(&thread, NULL, churn, NULL) == 0);
}
static void churn_operate(int step) { (void)step; }
static void churn_verify(void)
{
    CHECK(pthread_mutex_lock(&still) == 0);
    for (int page = 0; page < CHURNED; page++)
        expect("churned", churned, page, page + 1, version_of[page]);
    CHECK(pthread_mutex_unlock(&still) == 0);
}

/* what is refused: an io_uring (registered buffers are written without a trace), asynchronous I/O */
static void nothing(int step) { (void)step; }
#define ring_operate nothing
#define aio_operate nothing
#define watched_verify ring_verify
#define awaited_verify ring_verify
#define awaited_operate watched_operate
#define shared_watched_verify ring_verify
#define shared_watched_operate watched_operate
#define shared_awaited_verify ring_verify
#define shared_awaited_operate watched_operate
#define shared_minor_verify ring_verify
#define shared_minor_operate watched_operate
#define aio_verify ring_verify
static void ring_verify(void) {}
static void ring_set_up(void)
{
    uint32_t parameters[30] = {0};
    int ring = syscall(SYS_io_uring_setup, 8, parameters);
    say(1, "io_uring %s\n", ring < 0 ? strerror(errno) : "made");
    if (ring < 0)
        return;
    char *fixed = area(16);
    put(fixed, 0, 16, 1);
    struct iovec buffer = {fixed, 16 * PAGE};
    CHECK(syscall(SYS_io_uring_register, ring, 0 /* IORING_REGISTER_BUFFERS */, &buffer, 1) == 0);
}
static void aio_set_up(void)
{
    uint64_t context = 0;
    CHECK(syscall(SYS_io_setup, 8, &context) == 0);
}

/* memory that the program itself gave to a userfaultfd, which somebody else holds by now */
static int userfault;
static void watch(char *at, uint64_t features, uint64_t mode)
{
    userfault = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    put(at, 0, 16, 1);
    struct uffdio_register range = {{(uintptr_t)at, 16 * PAGE}, mode, 0};
    CHECK(userfault >= 0 && ioctl(userfault, UFFDIO_API, &api) == 0 && ioctl(userfault, UFFDIO_REGISTER, &range) == 0);
    say(1, "userfaultfd %d\n", userfault);
}
static char *shared_area(void)
{
    char *at = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}
static void watched_set_up(void)
{
    watch(area(16), UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP);
}
static void awaited_set_up(void) { watch(area(16), 0, UFFDIO_REGISTER_MODE_MISSING); }
static void shared_watched_set_up(void)
{
    watch(shared_area(), UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFDIO_REGISTER_MODE_WP);
}
static void shared_awaited_set_up(void)
{
    watch(shared_area(), UFFD_FEATURE_MISSING_SHMEM, UFFDIO_REGISTER_MODE_MISSING);
}
static void shared_minor_set_up(void) { watch(shared_area(), UFFD_FEATURE_MINOR_SHMEM, UFFDIO_REGISTER_MODE_MINOR); }
static void watched_operate(int step)
{
    (void)step;
    close(userfault);
}
#endif
