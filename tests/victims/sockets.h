/* What the victims with sockets share: options, set and mixed into a sum. */
#ifndef SOCKETS_H
#define SOCKETS_H
#include "victim.h"
#include <sys/socket.h>

static void set(int fd, int level, int name, int value)
{
    CHECK(setsockopt(fd, level, name, &value, sizeof value) == 0);
}

static uint64_t option(uint64_t sum, int fd, int level, int name)
{
    unsigned char value[64] = {0};
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, level, name, value, &length) == 0);
    for (socklen_t i = 0; i < length; i++)
        sum = mix(sum, value[i]);
    return mix(sum, length);
}
#endif
