/* onewait MS: waits for so long by semtimedop(2), which the kernel does not go on with after a stop, and tells how long it was. */
#include "victim.h"
#include <sys/ipc.h>
#include <sys/sem.h>

int main(int argc, char **argv)
{
    long ms = number(argc, argv, 1, 1000);
    int semaphores = semget(IPC_PRIVATE, 1, 0600);
    CHECK(semaphores >= 0);
    struct sembuf take = {0, -1, 0};
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    uint64_t begun = now_ns();
    say(1, "begun\n");
    long got = semtimedop(semaphores, &take, 1, &time);
    int error = errno;
    long took = (now_ns() - begun) / 1000000;
    say(1, "%ld %d %ld\n", got, error, took);
    return semctl(semaphores, 0, IPC_RMID);
}
