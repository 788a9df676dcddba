/* thirtytwo: a 32-bit program, without a C library. Waits by epoll, and says "step" each time, and what went wrong. */

static long call(long number, long a, long b, long c, long d)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
    return result;
}

static void say(const char *text, long length)
{
    call(4 /* write */, 1, (long)text, length, 0);
}

void _start(void)
{
    char events[64];
    long epoll = call(329 /* epoll_create1 */, 0, 0, 0, 0);
    for (;;) {
        long got = call(256 /* epoll_wait */, epoll, (long)events, 1, 20);
        if (got == 0)
            say("step\n", 5);
        else if (got == -4 /* EINTR */)
            say("EINTR\n", 6);
        else
            say("WRONG\n", 6);
    }
}
