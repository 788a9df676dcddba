/* handler FILE: a signal finds it with results in its vector registers, and its handler waits until there is FILE. */
#include "victim.h"
#include <signal.h>

static const char *awaited;

static void on_signal(int signal)
{
    say(1, "in the handler of %d\n", signal);
    while (access(awaited, F_OK))
        sleep_us(1000);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        fail("usage: handler FILE");
    awaited = argv[1];
    struct sigaction action = {.sa_handler = on_signal};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(raise(SIGUSR1) == 0);
    say(1, "back\n");
    return 0;
}
