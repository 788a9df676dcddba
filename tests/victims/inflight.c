/* inflight HOW FOLDER: memory that a read is under way into, HOW being a row of the table below.
 *
 * Sets its memory up and says "ready". SIGUSR1 makes it begin the read ("reading"); the next one does what a row does while
 * the read is in flight ("meanwhile"); the next one waits until the data has landed ("landed"). From there on each SIGUSR1
 * has every page compared with what must be in it ("right N"). FOLDER has the files of tests/src/slow_disk.rs. */
#include "dirty.h"
#include <linux/aio_abi.h>
#include <linux/io_uring.h>

enum { PAGES = 512, FROM = 100, TO = 108, BYTES = (TO - FROM) * PAGE, READ_VERSION = 7 };

static char *target;
static const char *folder;
static int fd;
static pthread_t reader;

static int slow(const char *name, int flags)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int got = open(path, O_RDONLY | flags);
    CHECK(got >= 0);
    return got;
}

static void nothing(void) {}

/* pread(2) by a thread */
static void *reads(void *unused)
{
    CHECK(pread(fd, target + FROM * PAGE, BYTES, FROM * PAGE) == BYTES);
    return unused;
}
static void thread_begins(void) { CHECK(pthread_create(&reader, NULL, reads, NULL) == 0); }
static void thread_lands(void) { CHECK(pthread_join(reader, NULL) == 0); }
static void cached_begins(void) { fd = slow("cached", 0), thread_begins(); }
static void o_direct_begins(void) { fd = slow("cached", O_DIRECT), thread_begins(); }
static void direct_begins(void) { fd = slow("direct", 0), thread_begins(); }
/* What is in flight has no descriptor any more. */
static void closes(void) { CHECK(close(fd) == 0); }

/* readv(2) by a thread, from a file that no page cache is before; its descriptor is closed meanwhile */
static void *reads_pieces(void *unused)
{
    struct iovec pieces[2] = {{target + FROM * PAGE, 4 * PAGE}, {target + (FROM + 4) * PAGE, BYTES - 4 * PAGE}};
    CHECK(preadv(fd, pieces, 2, FROM * PAGE) == BYTES);
    return unused;
}
static void pieces_begin(void)
{
    fd = slow("direct", 0);
    CHECK(pthread_create(&reader, NULL, reads_pieces, NULL) == 0);
}

/* process_vm_writev(2) by a child, whose source is not there yet */
static pid_t child;
static void writev_begins(void)
{
    pid_t parent = getpid();
    fd = slow("cached", 0);
    CHECK((child = fork()) >= 0);
    if (!child) {
        char *source = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
        struct iovec from = {source + FROM * PAGE, BYTES}, to = {target + FROM * PAGE, BYTES};
        _exit(source != MAP_FAILED && process_vm_writev(parent, &from, 1, &to, 1, 0) == BYTES ? 0 : 1);
    }
}
static void writev_lands(void)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* asynchronous I/O */
static aio_context_t context;
static void aio_begins(void)
{
    fd = slow("cached", O_DIRECT);
    CHECK(syscall(SYS_io_setup, 8, &context) == 0);
    struct iocb one = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd, .aio_buf = (uintptr_t)(target + FROM * PAGE),
                       .aio_nbytes = BYTES, .aio_offset = FROM * PAGE},
                *list = &one;
    CHECK(syscall(SYS_io_submit, context, 1, &list) == 1);
}
static void aio_lands(void)
{
    struct io_event event;
    CHECK(syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1 && event.res == BYTES);
    CHECK(syscall(SYS_io_destroy, context) == 0);
}
/* io_destroy(2) waits for what is in flight. */
static void aio_destroyed(void) { CHECK(syscall(SYS_io_destroy, context) == 0); }

/* io_uring */
static int ring;
static struct io_uring_params params;
static char *entries;
static struct io_uring_sqe *queue;
static void ring_is_made(void)
{
    fd = slow("cached", O_DIRECT);
    ring = syscall(SYS_io_uring_setup, 8, &params);
    if (ring < 0) {
        say(1, "no io_uring: %s\n", strerror(errno));
        _exit(0);
    }
    CHECK(params.features & IORING_FEAT_SINGLE_MMAP);
    entries = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    queue = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    CHECK(entries != MAP_FAILED && queue != MAP_FAILED);
}
static void ring_reads(int operation)
{
    queue[0] = (struct io_uring_sqe){.opcode = operation, .fd = fd, .addr = (uintptr_t)(target + FROM * PAGE),
                                     .len = BYTES, .off = FROM * PAGE};
    ((uint32_t *)(entries + params.sq_off.array))[0] = 0;
    __atomic_store_n((uint32_t *)(entries + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    CHECK(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) == 1);
}
static void ring_begins(void) { ring_is_made(), ring_reads(IORING_OP_READ); }
static void fixed_begins(void)
{
    ring_is_made();
    struct iovec buffer = {target, PAGES * PAGE};
    CHECK(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) == 0);
    ring_reads(IORING_OP_READ_FIXED);
}
static void ring_is_closed(void)
{
    CHECK(munmap(entries, PAGE) == 0 && munmap(queue, PAGE) == 0 && close(ring) == 0 && close(fd) == 0);
}
static void ring_lands(void)
{
    while (!__atomic_load_n((uint32_t *)(entries + params.cq_off.tail), __ATOMIC_ACQUIRE))
        CHECK(syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) >= 0 || errno == EINTR);
    CHECK(((struct io_uring_cqe *)(entries + params.cq_off.cqes))[0].res == BYTES);
    ring_is_closed();
}
/* What is read from has no descriptor any more; the ring has. */
static void ring_lands_alone(void)
{
    fd = dup(0);
    ring_lands();
}
/* Nobody tells of a ring that is closed: memory does. */
static void memory_tells(void)
{
    volatile uint64_t *last = (uint64_t *)(target + TO * PAGE) - 1;
    while (*last != word(TO - 1, READ_VERSION, WORDS - 1))
        sleep_us(1000);
}

static const struct how {
    const char *name;
    void (*begins)(void), (*meanwhile)(void), (*lands)(void);
} table[] = {
    {"cached", cached_begins, nothing, thread_lands},
    {"o_direct", o_direct_begins, nothing, thread_lands},
    {"o_direct-closed", o_direct_begins, closes, thread_lands},
    {"direct", direct_begins, nothing, thread_lands},
    {"direct-closed", pieces_begin, closes, thread_lands},
    {"writev", writev_begins, nothing, writev_lands},
    {"aio", aio_begins, nothing, aio_lands},
    {"aio-alone", aio_begins, closes, aio_lands},
    {"aio-destroyed", aio_begins, nothing, aio_destroyed},
    {"ring", ring_begins, nothing, ring_lands},
    {"fixed", fixed_begins, nothing, ring_lands},
    {"ring-alone", ring_begins, closes, ring_lands_alone},
    {"fixed-alone", fixed_begins, closes, ring_lands_alone},
    {"ring-closed", ring_begins, ring_is_closed, memory_tells},
    {"fixed-closed", fixed_begins, ring_is_closed, memory_tells},
};

static void serve(void)
{
    for (int n = 1;; n++) {
        CHECK(await(SIGUSR1) == SIGUSR1);
        expect("before", target, 0, FROM, 1);
        expect("read", target, FROM, TO, READ_VERSION);
        expect("after", target, TO, PAGES, 1);
        say(1, "right %d\n", n);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    const struct how *how = table, *end = table + sizeof table / sizeof *table;
    while (how < end && strcmp(how->name, argv[1]))
        how++;
    CHECK(how < end);
    folder = argv[2];
    sigset_t all;
    sigemptyset(&all);
    sigaddset(&all, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
    put(target = area(PAGES), 0, PAGES, 1);
    say(1, "ready\n");
    CHECK(await(SIGUSR1) == SIGUSR1);
    put(target, FROM, TO, 2);
    how->begins();
    say(1, "reading\n");
    CHECK(await(SIGUSR1) == SIGUSR1);
    how->meanwhile();
    say(1, "meanwhile\n");
    CHECK(await(SIGUSR1) == SIGUSR1);
    how->lands();
    say(1, "landed\n");
    serve();
}
