/* vfork MS|FILE: its child ends after that long, or once there is the file, and until then it cannot be stopped itself. */
#include "victim.h"
#include <sys/wait.h>

int main(int argc, char **argv)
{
    long us = number(argc, argv, 1, 1000) * 1000;
    pid_t child = vfork();
    if (child == 0) {
        sleep_us(us);
        while (!us && argc > 1 && access(argv[1], F_OK) != 0)
            sleep_us(1000);
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, NULL, 0) == child);
    return 0;
}
