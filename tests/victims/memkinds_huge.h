/* Memory in huge pages of hugetlb: private, shared over fork, of memfd_create(2), of System V. */
#ifndef MEMKINDS_HUGE_H
#define MEMKINDS_HUGE_H
#include "memkinds.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4
#endif
#define HUGE (2ul << 20)
#define GIB (1ul << 30)
enum { HUGE_KB = HUGE >> 10, ANON_HUGE = MAP_ANONYMOUS | MAP_HUGETLB, RESERVED_HUGE = 64, TOUCHED = 40 };

static struct model of_own = {61, {0}}, of_fixed = {62, {0}}, of_far = {63, {0}}, of_family = {64, {0}};
static struct model of_both = {70, {0}}, of_object = {65, {0}}, of_copy = {66, {0}}, of_segment = {67, {0}}, of_dropped = {68, {0}};
static char *own_huge, *fixed_huge, *far_huge, *family_huge, *object_huge, *copy_huge, *segment_huge, *dropped_huge, *both_huge;
static int object_fd, huge_pipe[2], huge_down[2], huge_up[2];

/* The small pages that are looked at lie on both sides of the end of the first huge page. */
static char *middle(char *at) { return at + HUGE - PAGES / 2 * PAGE; }

/* The child writes and checks through the mapping that it has inherited, and a private one of which each has a copy. */
__attribute__((noreturn)) static void huge_child(void)
{
    struct model model;
    while (read(huge_down[0], &model, sizeof model) == sizeof model) {
        right("in the child", middle(family_huge), &model, PAGES);
        right("a copy in the child", both_huge, &of_both, PAGES);
        put(both_huge, &of_both, model.version[1] % PAGES, model.version[0] + 1);
        put(middle(family_huge), &model, model.version[1] % PAGES, model.version[0] + 1);
        write_all(huge_up[1], &model, sizeof model);
    }
    _exit(0);
}

static void huge_set_up(void)
{
    enum { RW = PROT_READ | PROT_WRITE };
    CHECK(pipe(huge_pipe) == 0 && pipe(huge_down) == 0 && pipe(huge_up) == 0);
    family_huge = map_it(2 * HUGE, RW, MAP_SHARED | ANON_HUGE, -1);
    both_huge = map_it(HUGE, RW, MAP_PRIVATE | ANON_HUGE, -1);
    for (int page = 0; page < PAGES; page++)
        put(both_huge, &of_both, page, 1);
    if (!fork()) {
        close(huge_down[1]), close(huge_up[0]);
        huge_child();
    }
    close(huge_down[0]), close(huge_up[1]);
    own_huge = map_it(3 * HUGE, RW, MAP_PRIVATE | ANON_HUGE, -1);
    fixed_huge = map_it(HUGE, RW, MAP_PRIVATE | ANON_HUGE, -1);
    for (int page = 0; page < PAGES; page += 3)
        put(fixed_huge, &of_fixed, page, 1);
    CHECK(mprotect(fixed_huge, HUGE, PROT_READ) == 0);
    far_huge = map_it(RESERVED_HUGE * HUGE, RW, MAP_PRIVATE | MAP_NORESERVE | ANON_HUGE, -1);
    object_fd = memfd_create("in huge pages", MFD_HUGETLB | MFD_ALLOW_SEALING);
    CHECK(object_fd >= 0 && ftruncate(object_fd, 2 * HUGE) == 0);
    object_huge = map_it(2 * HUGE, RW, MAP_SHARED, object_fd);
    for (int page = 0; page < PAGES; page++)
        put(middle(object_huge), &of_object, page, 1);
    copy_huge = map_it(2 * HUGE, RW, MAP_PRIVATE, object_fd);
    of_copy = of_object;
    CHECK(fcntl(object_fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    int id = shmget(IPC_PRIVATE, 2 * HUGE, IPC_CREAT | SHM_HUGETLB | 0600);
    CHECK(id >= 0 && (segment_huge = shmat(id, NULL, 0)) != (void *)-1 && shmctl(id, IPC_RMID, NULL) == 0);
    dropped_huge = map_it(HUGE, RW, MAP_PRIVATE | ANON_HUGE, -1);
}

static long of_mapping_in_one_look(char *at, const char *key)
{
    char line[512], begin[32];
    int is_it = 0;
    long value = -1;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    CHECK(smaps);
    snprintf(begin, sizeof begin, "%lx-", (unsigned long)at);
    while (value < 0 && fgets(line, sizeof line, smaps))
        if (!strncmp(line, begin, strlen(begin)))
            is_it = 1;
        else if (is_it && !strncmp(line, key, strlen(key)))
            value = strtol(line + strlen(key), NULL, 10);
    fclose(smaps);
    return value;
}

/* What smaps says of the mapping at `at`, after `key`, kB; in two looks, as flags_of. */
static long of_mapping(char *at, const char *key)
{
    long before, value = of_mapping_in_one_look(at, key);
    do {
        before = value;
        value = of_mapping_in_one_look(at, key);
    } while (value != before);
    return value;
}

/* Pages of the right size, and none that nobody has touched. */
static void huge_kinds(long round)
{
    char *all[] = {own_huge, fixed_huge, far_huge, family_huge, object_huge, copy_huge, segment_huge, dropped_huge};
    for (int i = 0; i < 8; i++)
        CHECK(of_mapping(all[i], "KernelPageSize:") == HUGE_KB);
    CHECK(round < 20 || of_mapping(own_huge, "Private_Hugetlb:") == 2 * HUGE_KB);
    CHECK(of_mapping(far_huge, "Private_Hugetlb:") == (round > 1 ? HUGE_KB : 0));
    fd_leads_to(object_fd, "/memfd:in huge pages (deleted)");
    CHECK(fcntl(object_fd, F_GET_SEALS) == F_SEAL_SHRINK);
}

static uint64_t huge_round(long round)
{
    huge_kinds(round);
    uint64_t sum = right("private", middle(own_huge), &of_own, PAGES);
    change(middle(own_huge), &of_own, round);
    sum = mix(sum, right("read-only", fixed_huge, &of_fixed, PAGES));
    CHECK(write(huge_pipe[1], "x", 1) == 1 && read(huge_pipe[0], fixed_huge + PAGE, 1) < 0 && errno == EFAULT);
    CHECK(read(huge_pipe[0], (char[1]){0}, 1) == 1);
    if (round > 1)
        sum = mix(sum, right("reserved", far_huge + TOUCHED * HUGE, &of_far, PAGES));
    change(far_huge + TOUCHED * HUGE, &of_far, round);
    write_all(huge_down[1], &of_family, sizeof of_family);
    CHECK(read(huge_up[0], &of_family, sizeof of_family) == sizeof of_family);
    sum = mix(sum, right("a copy", both_huge, &of_both, PAGES));
    change(both_huge, &of_both, round);
    sum = mix(sum, right("over fork", middle(family_huge), &of_family, PAGES));
    change(middle(family_huge), &of_family, round);
    sum = mix(sum, right("memfd", middle(object_huge), &of_object, PAGES));
    change(middle(object_huge), &of_object, round);
    /* Of the private mapping both huge pages are copies from the first round on. */
    if (round == 1) {
        of_copy = of_object;
        put(middle(copy_huge), &of_copy, 0, round);
        put(middle(copy_huge), &of_copy, PAGES - 1, round);
    }
    sum = mix(sum, right("private mapping of it", middle(copy_huge), &of_copy, PAGES));
    change(middle(copy_huge), &of_copy, round);
    sum = mix(sum, right("segment", middle(segment_huge), &of_segment, PAGES));
    change(middle(segment_huge), &of_segment, round);
    sum = mix(sum, right("dropped", dropped_huge, &of_dropped, PAGES));
    if (round % 2) {
        change(dropped_huge, &of_dropped, round);
    } else {
        CHECK(madvise(dropped_huge, HUGE, MADV_DONTNEED) == 0);
        memset(of_dropped.version, 0, sizeof of_dropped.version);
    }
    return sum;
}

/* One page of a gibibyte. */
static char *gib_at;
static struct model of_gib = {69, {0}};
static void gib_set_up(void)
{
    gib_at = map_it(GIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | ANON_HUGE | 30 << MAP_HUGE_SHIFT, -1);
}
static uint64_t gib_round(long round)
{
    CHECK(of_mapping(gib_at, "KernelPageSize:") == (long)(GIB >> 10));
    char *at = gib_at + GIB - PAGES * PAGE;
    uint64_t sum = right("a gibibyte", at, &of_gib, PAGES);
    change(at, &of_gib, round);
    return sum;
}
#endif
