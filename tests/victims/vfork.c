/* vfork MS: its child ends after that long, and until then it cannot be stopped itself. */
#include "victim.h"
#include <sys/wait.h>

int main(int argc, char **argv)
{
    long us = number(argc, argv, 1, 1000) * 1000;
    pid_t child = vfork();
    if (child == 0) {
        sleep_us(us);
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, NULL, 0) == child);
    return 0;
}
