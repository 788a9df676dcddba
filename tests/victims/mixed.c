/* mixed: a 64-bit program with a thread that has gone over to 32-bit code, as some emulators do. Says "step" again and again. */
#include "victim.h"
#include <pthread.h>
#include <sys/mman.h>

static void *narrow(void *code)
{
    __asm__ volatile("pushq $0x23\n\tpushq %0\n\tlretq" : : "r"(code));
    return NULL;
}

int main(void)
{
    unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(code != MAP_FAILED);
    /* movb $1, %ss:flag, as the null selector is in %ds; pause; jmp to the pause */
    memcpy(code, "\x36\xc6\x05\0\0\0\0\1\xf3\x90\xeb\xfc", 12);
    volatile unsigned char *flag = code + 64;
    uint32_t address = (uintptr_t)flag;
    memcpy(code + 3, &address, sizeof address);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, narrow, code) == 0);
    while (!*flag)
        sleep_us(1000);
    for (;;) {
        sleep_us(10000);
        puts("step");
        fflush(stdout);
    }
}
