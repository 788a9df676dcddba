/* Memory with protection keys (pkeys(7)), rights of each thread, and memory that may only be executed. */
#ifndef MEMKINDS_KEYS_H
#define MEMKINDS_KEYS_H
#include "memkinds.h"
#include "memkinds_flags.h"
#include <pthread.h>
#include <setjmp.h>
#include <ucontext.h>

/* What the main thread may do with the memory, and whether the key is let go of while memory has it. */
static struct zone {
    const char *what;
    int flags, rights, is_stale;
    int key;
    char *at;
    struct model model;
} zones[] = {
    {"private", MAP_PRIVATE, 0, 0, 0, 0, {41, {0}}},
    {"read-only by its key", MAP_PRIVATE, PKEY_DISABLE_WRITE, 0, 0, 0, {42, {0}}},
    {"shared", MAP_SHARED, PKEY_DISABLE_ACCESS, 0, 0, 0, {43, {0}}},
    {"of a key that is free", MAP_PRIVATE, PKEY_DISABLE_WRITE, 1, 0, 0, {44, {0}}},
    {"another", MAP_SHARED, PKEY_DISABLE_WRITE, 0, 0, 0, {45, {0}}},
};
enum { ZONES = sizeof zones / sizeof *zones, CODE = 0x1234567 };

static char *code;
static int code_key, to_other[2], from_other[2];
static sigjmp_buf back;
static volatile int fault_code, fault_key;

static unsigned all_rights(void)
{
    unsigned low, high;
    __asm__ volatile("rdpkru" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static void set_all_rights(unsigned rights)
{
    __asm__ volatile("wrpkru" ::"a"(rights), "c"(0), "d"(0) : "memory");
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    fault_code = info->si_code;
    fault_key = info->si_pkey;
    siglongjmp(back, 1);
}

/* The key whose rights do not allow it, 0 if they do. The kernel gives a handler rights of its own. */
static int denied(volatile char *at, int writes)
{
    unsigned rights = all_rights();
    fault_code = 0;
    if (!sigsetjmp(back, 1)) {
        char byte = *at;
        if (writes)
            *at = byte;
    }
    set_all_rights(rights);
    CHECK(fault_code == 0 || fault_code == SEGV_PKUERR);
    return fault_code ? fault_key : 0;
}

static int key_shown(const char *at)
{
    char line[512];
    unsigned long start, end;
    int key = -1, is_it = 0;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    CHECK(smaps);
    while (key < 0 && fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            is_it = start <= (unsigned long)at && (unsigned long)at < end;
        else if (is_it)
            sscanf(line, "ProtectionKey: %d", &key);
    }
    fclose(smaps);
    return key;
}

/* Looked at again if it is another: a restart in the midst of a look goes on from the same byte of another smaps. */
static int key_at(const char *at, int expected)
{
    int key = -1;
    for (int look = 0; look < 3 && key != expected; look++)
        key = key_shown(at);
    return key;
}

static void *other(void *argument)
{
    unsigned long rights = (unsigned long)argument;
    char byte;
    set_all_rights(rights);
    CHECK(write(from_other[1], "r", 1) == 1);
    while (read(to_other[0], &byte, 1) == 1) {
        if (all_rights() != rights)
            fail("the other thread's rights are %x and not %lx", all_rights(), rights);
        CHECK(write(from_other[1], "r", 1) == 1);
    }
    return NULL;
}

static void keys_set_up(void)
{
    if (pkey_alloc(0, 0) != 1) {
        say(1, "cannot: no protection keys\n");
        _exit(0);
    }
    struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &act, NULL) == 0);
    for (int i = 0; i < ZONES; i++) {
        zones[i].key = i ? pkey_alloc(0, 0) : 1;
        zones[i].at = map_it(PAGES * PAGE, PROT_READ | PROT_WRITE, zones[i].flags | MAP_ANONYMOUS, -1);
        CHECK(zones[i].key == i + 1);
        CHECK(pkey_mprotect(zones[i].at, PAGES * PAGE, PROT_READ | PROT_WRITE, zones[i].key) == 0);
        CHECK(pkey_set(zones[i].key, zones[i].rights) == 0);
    }
    /* mov $CODE, %eax; ret */
    code = map_it(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    code[0] = (char)0xb8;
    *(int *)(code + 1) = CODE;
    code[5] = (char)0xc3;
    CHECK(mprotect(code, PAGE, PROT_EXEC) == 0);
    code_key = key_at(code, ZONES + 1);
    CHECK(code_key == ZONES + 1);
    for (int i = 0; i < ZONES; i++)
        CHECK(!zones[i].is_stale || pkey_free(zones[i].key) == 0);
    pthread_t thread;
    char byte;
    CHECK(pipe(to_other) == 0 && pipe(from_other) == 0);
    CHECK(pthread_create(&thread, NULL, other, (void *)0x55555510ul) == 0);
    CHECK(read(from_other[0], &byte, 1) == 1);
}

/* Those that are free come lowest first. */
static uint64_t take_and_return(uint64_t sum)
{
    int first = pkey_alloc(0, PKEY_DISABLE_ACCESS), next = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    sum = mix(mix(sum, first), next);
    for (int i = 0; i < ZONES; i++)
        if (zones[i].is_stale && first != zones[i].key)
            fail("key %d is free and not %d", first, zones[i].key);
    if (next != ZONES + 2)
        fail("key %d is the next and not %d", next, ZONES + 2);
    CHECK(pkey_free(next) == 0 && pkey_free(first) == 0);
    return sum;
}

static uint64_t keys_round(long round)
{
    uint64_t sum = round;
    char byte;
    if (((int (*)(void))code)() != CODE || denied(code, 0) != code_key || key_at(code, code_key) != code_key)
        fail("the code may not be executed, or read by key %d", code_key);
    for (int i = 0; i < ZONES; i++) {
        struct zone *one = &zones[i];
        int reads = one->rights & PKEY_DISABLE_ACCESS ? one->key : 0, writes = one->rights ? one->key : 0;
        if (pkey_get(one->key) != one->rights || key_at(one->at, one->key) != one->key)
            fail("%s: rights %d, key %d and not %d", one->what, pkey_get(one->key), key_shown(one->at), one->key);
        if (denied(one->at, 0) != reads || denied(one->at + PAGE, 1) != writes)
            fail("%s: reading is denied by %d, writing by %d", one->what, denied(one->at, 0), denied(one->at, 1));
        CHECK(pkey_set(one->key, 0) == 0);
        change(one->at, &one->model, round);
        sum = mix(sum, right(one->what, one->at, &one->model, PAGES));
        CHECK(pkey_set(one->key, one->rights) == 0);
    }
    CHECK(write(to_other[1], "r", 1) == 1 && read(from_other[0], &byte, 1) == 1);
    unsigned rights = all_rights();
    sum = take_and_return(sum);
    set_all_rights(rights);
    /* Two change keys. */
    if (round % 50 == 0) {
        int key = zones[0].key;
        zones[0].key = zones[4].key;
        zones[4].key = key;
        for (int i = 0; i < ZONES; i += 4) {
            CHECK(pkey_mprotect(zones[i].at, PAGES * PAGE, PROT_READ | PROT_WRITE, zones[i].key) == 0);
            CHECK(pkey_set(zones[i].key, zones[i].rights) == 0);
        }
    }
    return sum;
}
#endif
