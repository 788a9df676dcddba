/* System V shared memory: under a key, private and removed, attached twice, and by a child. */
#ifndef MEMKINDS_SYSV_H
#define MEMKINDS_SYSV_H
#include "memkinds.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { KEY = 0x5150, ODD_SEGMENT = PAGES * PAGE - 1000 };

static struct model keyed = {31, {0}}, removed = {32, {0}}, born = {33, {0}};
static int keyed_id, removed_id, born_id;
static char *keyed_at, *keyed_read_only, *removed_at, *born_at;
static int ask_child, child_says;

static void forget_segments(void) { shmctl(keyed_id, IPC_RMID, NULL); }

static char *attach(int id, int flags)
{
    char *at = shmat(id, NULL, flags);
    CHECK(at != (void *)-1);
    return at;
}

/* The child has the segment of its parent, and writes one page in each round. */
__attribute__((noreturn)) static void sysv_child(int in, int out)
{
    long round;
    while (read(in, &round, sizeof round) == sizeof round) {
        put(born_at, &born, PAGES - 1, round);
        write_all(out, &round, sizeof round);
    }
    _exit(0);
}

static void sysv_set_up(void)
{
    int down[2], up[2];
    keyed_id = shmget(KEY, ODD_SEGMENT, IPC_CREAT | IPC_EXCL | 0640);
    removed_id = shmget(IPC_PRIVATE, PAGES * PAGE, 0600);
    born_id = shmget(IPC_PRIVATE, PAGES * PAGE, 0600);
    CHECK(keyed_id >= 0 && removed_id >= 0 && born_id >= 0);
    struct shmid_ds wanted = {.shm_perm = {.uid = 12, .gid = 13, .mode = 0604}};
    CHECK(shmctl(keyed_id, IPC_SET, &wanted) == 0);
    keyed_at = attach(keyed_id, 0);
    keyed_read_only = attach(keyed_id, SHM_RDONLY);
    removed_at = attach(removed_id, 0);
    born_at = attach(born_id, 0);
    CHECK(shmctl(removed_id, IPC_RMID, NULL) == 0 && shmctl(born_id, IPC_RMID, NULL) == 0);
    CHECK(pipe(down) == 0 && pipe(up) == 0);
    if (!fork()) {
        close(down[1]), close(up[0]);
        sysv_child(down[0], up[1]);
    }
    close(down[0]), close(up[1]);
    ask_child = down[1], child_says = up[0];
    CHECK(mprotect(removed_at + 4 * PAGE, 2 * PAGE, PROT_READ) == 0);
    CHECK(atexit(forget_segments) == 0);
}

static void is(const char *what, int id, unsigned mode, size_t size, unsigned uid, unsigned gid)
{
    struct shmid_ds now;
    CHECK(shmctl(id, IPC_STAT, &now) == 0);
    if (now.shm_perm.mode != mode || now.shm_segsz != size || now.shm_perm.uid != uid || now.shm_perm.gid != gid ||
        now.shm_perm.cuid != getuid() || now.shm_perm.cgid != getgid())
        fail("%s: mode %o, %lu bytes, of %d:%d, made by %d:%d", what, now.shm_perm.mode, now.shm_segsz, now.shm_perm.uid,
             now.shm_perm.gid, now.shm_perm.cuid, now.shm_perm.cgid);
}

static uint64_t sysv_round(long round)
{
    char byte = 1;
    long said = 0;
    is("keyed", keyed_id, 0604, ODD_SEGMENT, 12, 13);
    is("removed", removed_id, SHM_DEST | 0600, PAGES * PAGE, getuid(), getgid());
    is("of both", born_id, SHM_DEST | 0600, PAGES * PAGE, getuid(), getgid());
    CHECK(shmget(KEY, 0, 0) == keyed_id && shmget(KEY, 1, IPC_CREAT | IPC_EXCL) < 0 && errno == EEXIST);
    CHECK(mprotect(keyed_read_only, PAGE, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
    int half[2];
    CHECK(pipe(half) == 0 && write(half[1], &byte, 1) == 1);
    CHECK(read(half[0], removed_at + 4 * PAGE, 1) < 0 && errno == EFAULT);
    close(half[0]), close(half[1]);
    /* Attached anew, somewhere. */
    CHECK(shmdt(keyed_at) == 0);
    keyed_at = attach(keyed_id, 0);
    for (int i = 0; i < 3; i++)
        put(keyed_at, &keyed, next_random(&random_state) % (PAGES - 1), round);
    put(removed_at, &removed, next_random(&random_state) % 4, round);
    put(born_at, &born, next_random(&random_state) % (PAGES - 1), round);
    put(keyed_at, &keyed, next_random(&random_state) % (PAGES - 1), 0);
    write_all(ask_child, &round, sizeof round);
    CHECK(read(child_says, &said, sizeof said) == sizeof said && said == round);
    born.version[PAGES - 1] = round;
    uint64_t sum = right("keyed", keyed_at, &keyed, PAGES);
    sum = mix(sum, right("keyed, read-only", keyed_read_only, &keyed, PAGES));
    sum = mix(sum, right("removed", removed_at, &removed, PAGES));
    return mix(sum, right("of both", born_at, &born, PAGES));
}
#endif
