/* endpoints ROUNDS PERIOD_US: sockets that are not connected, and what comes in through them. */
#include "sockets.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/un.h>

enum { UNIX_STREAM, UNIX_PACKETS, UNIX_BELOW, TCP4, TCP6, TWIN_A, TWIN_B, LISTENERS };

static int listeners[LISTENERS], fresh[4], datagrams[2], udp, bound_only, connected, watcher;
static struct sockaddr_storage names[LISTENERS];
static socklen_t lengths[LISTENERS];
static struct sockaddr_in udp_name;

/* A name that begins with @ is an abstract one. */
static socklen_t unix_name(struct sockaddr_un *name, const char *path)
{
    *name = (struct sockaddr_un){.sun_family = AF_UNIX};
    strcpy(name->sun_path, path);
    if (*path == '@')
        *name->sun_path = 0;
    return offsetof(struct sockaddr_un, sun_path) + strlen(path) + (*path != '@');
}

static int unix_bound(int kind, const char *path)
{
    struct sockaddr_un name;
    socklen_t length = unix_name(&name, path);
    int fd = socket(AF_UNIX, kind, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&name, length) == 0);
    return fd;
}

static int tcp(int family, unsigned port, int share)
{
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = port};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(family, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (share)
        set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
    CHECK((family == AF_INET ? bind(fd, (struct sockaddr *)&four, sizeof four)
                             : bind(fd, (struct sockaddr *)&six, sizeof six)) == 0);
    return fd;
}

static void make_fresh(void)
{
    fresh[0] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    fresh[1] = socket(AF_INET6, SOCK_DGRAM, 0);
    fresh[2] = socket(AF_UNIX, SOCK_STREAM, 0);
    fresh[3] = socket(AF_UNIX, SOCK_DGRAM, 0);
    set(fresh[0], IPPROTO_TCP, TCP_NODELAY, 1), set(fresh[0], SOL_SOCKET, SO_KEEPALIVE, 1);
    set(fresh[0], IPPROTO_TCP, TCP_KEEPIDLE, 77), set(fresh[0], IPPROTO_IP, IP_TOS, 0x10);
    set(fresh[0], SOL_SOCKET, SO_RCVBUF, 30000), set(fresh[0], SOL_SOCKET, SO_PRIORITY, 3);
    struct linger linger = {1, 9};
    CHECK(setsockopt(fresh[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    struct timeval soon = {1, 500000};
    CHECK(setsockopt(fresh[0], SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon) == 0);
    set(fresh[1], IPPROTO_IPV6, IPV6_V6ONLY, 1), set(fresh[1], SOL_SOCKET, SO_BROADCAST, 1);
    set(fresh[1], IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 5);
    set(fresh[2], SOL_SOCKET, SO_PASSCRED, 1), set(fresh[3], SOL_SOCKET, SO_SNDBUF, 20000);
}

static uint64_t look_at_fresh(uint64_t sum)
{
    static const int socket_options[] = {SO_REUSEADDR, SO_REUSEPORT, SO_KEEPALIVE, SO_RCVBUF, SO_SNDBUF, SO_PRIORITY,
                                         SO_LINGER, SO_RCVTIMEO, SO_BROADCAST, SO_PROTOCOL, SO_TYPE};
    for (size_t i = 0; i < sizeof fresh / sizeof *fresh; i++) {
        for (size_t o = 0; o < sizeof socket_options / sizeof *socket_options; o++)
            sum = option(sum, fresh[i], SOL_SOCKET, socket_options[o]);
        sum = mix(sum, fcntl(fresh[i], F_GETFL));
        char byte;
        CHECK(recv(fresh[0], &byte, 1, MSG_DONTWAIT) < 0 && errno == ENOTCONN);
    }
    sum = option(sum, fresh[2], SOL_SOCKET, SO_PASSCRED);
    sum = option(option(sum, fresh[0], IPPROTO_TCP, TCP_NODELAY), fresh[0], IPPROTO_TCP, TCP_KEEPIDLE);
    sum = option(option(sum, fresh[0], IPPROTO_IP, IP_TOS), fresh[0], IPPROTO_TCP, TCP_CONGESTION);
    sum = option(option(sum, fresh[1], IPPROTO_IPV6, IPV6_V6ONLY), fresh[1], IPPROTO_IPV6, IPV6_MULTICAST_HOPS);
    return sum;
}

static void begin(void)
{
    make_fresh();
    CHECK((watcher = epoll_create1(0)) >= 0);
    /* By a relative name, by one in another directory than the one it is in now, abstract ones. */
    listeners[UNIX_STREAM] = unix_bound(SOCK_STREAM, "./stream");
    CHECK(chmod("stream", 0622) == 0 && mkdir("below", 0755) == 0 && chdir("below") == 0);
    listeners[UNIX_BELOW] = unix_bound(SOCK_STREAM, "socket");
    CHECK(chdir("..") == 0);
    char abstract[60], absolute[256];
    /* Another run may have that of this one's directory. */
    CHECK(getcwd(absolute, 200) && snprintf(abstract, sizeof abstract, "@endpoints-%d", getpid()) > 0);
    listeners[UNIX_PACKETS] = unix_bound(SOCK_SEQPACKET, abstract);
    strcat(absolute, "/datagram");
    datagrams[0] = unix_bound(SOCK_DGRAM, absolute);
    CHECK(fchmod(datagrams[0], 0700) == 0);
    datagrams[1] = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(datagrams[1] >= 0);
    listeners[TCP4] = tcp(AF_INET, 0, 0), listeners[TCP6] = tcp(AF_INET6, 0, 0);
    listeners[TWIN_A] = tcp(AF_INET, 0, 1);
    lengths[TWIN_A] = sizeof names[TWIN_A];
    CHECK(getsockname(listeners[TWIN_A], (struct sockaddr *)&names[TWIN_A], &lengths[TWIN_A]) == 0);
    listeners[TWIN_B] = tcp(AF_INET, ((struct sockaddr_in *)&names[TWIN_A])->sin_port, 1);
    set(listeners[TCP4], IPPROTO_TCP, TCP_NODELAY, 1);
    bound_only = tcp(AF_INET, 0, 0);
    for (int i = 0; i < LISTENERS; i++) {
        struct epoll_event event = {EPOLLIN, {.u32 = i}};
        CHECK(listen(listeners[i], 5 + i) == 0 && epoll_ctl(watcher, EPOLL_CTL_ADD, listeners[i], &event) == 0);
        lengths[i] = sizeof names[i];
        CHECK(getsockname(listeners[i], (struct sockaddr *)&names[i], &lengths[i]) == 0);
    }
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof udp_name;
    CHECK((udp = socket(AF_INET, SOCK_DGRAM, 0)) >= 0 && bind(udp, (struct sockaddr *)&any, sizeof any) == 0);
    CHECK(getsockname(udp, (struct sockaddr *)&udp_name, &length) == 0);
    CHECK((connected = socket(AF_INET, SOCK_DGRAM, 0)) >= 0);
    CHECK(connect(connected, (struct sockaddr *)&udp_name, length) == 0);
}

/* What it is bound to, and its queue. */
static uint64_t look_at(uint64_t sum, int i)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    CHECK(getsockname(listeners[i], (struct sockaddr *)&name, &length) == 0);
    CHECK(length == lengths[i] && memcmp(&name, &names[i], length) == 0);
    sum = option(option(sum, listeners[i], SOL_SOCKET, SO_ACCEPTCONN), listeners[i], SOL_SOCKET, SO_REUSEPORT);
    sum = option(sum, listeners[i], SOL_SOCKET, SO_REUSEADDR);
    if (i >= TCP4) {
        struct tcp_info info;
        length = sizeof info;
        CHECK(getsockopt(listeners[i], IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
        CHECK(info.tcpi_sacked == (unsigned)(5 + i) && info.tcpi_unacked == 0);
    }
    return sum;
}

/* Comes in through a listener, is let in, and is gone again. */
static uint64_t visit(uint64_t sum, int i, long n)
{
    struct sockaddr_storage to = names[i];
    if (i == TCP6)
        ((struct sockaddr_in6 *)&to)->sin6_addr = in6addr_loopback;
    struct epoll_event event;
    char byte = n, back;
    CHECK(epoll_wait(watcher, &event, 1, 0) == 0);
    int kind = i == UNIX_PACKETS ? SOCK_SEQPACKET : SOCK_STREAM;
    int client = socket(to.ss_family, kind, 0);
    if (i == UNIX_BELOW)
        CHECK(chdir("below") == 0);
    CHECK(client >= 0 && connect(client, (struct sockaddr *)&to, lengths[i]) == 0);
    if (i == UNIX_BELOW)
        CHECK(chdir("..") == 0);
    CHECK(epoll_wait(watcher, &event, 1, 10000) == 1);
    /* Of twins, either. */
    int at = event.data.u32;
    CHECK(at == i || (i >= TWIN_A && at >= TWIN_A));
    int server = accept(listeners[at], NULL, NULL);
    CHECK(server >= 0 && write(client, &byte, 1) == 1 && read(server, &back, 1) == 1 && back == byte);
    if (i < TCP4) {
        struct ucred who;
        socklen_t length = sizeof who;
        CHECK(getsockopt(client, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0 && who.pid == getpid());
        sum = mix(sum, who.uid);
    } else
        sum = option(option(sum, server, IPPROTO_TCP, TCP_NODELAY), server, SOL_SOCKET, SO_RCVBUF);
    close(server), close(client);
    return sum;
}

static uint64_t look_at_file(uint64_t sum, const char *name)
{
    struct stat file;
    CHECK(lstat(name, &file) == 0 && S_ISSOCK(file.st_mode));
    return mix(mix(mix(sum, file.st_mode), file.st_uid), file.st_gid);
}

static uint64_t round_of(long n)
{
    uint64_t sum = look_at_fresh(n);
    for (int i = 0; i < LISTENERS; i++) {
        sum = look_at(sum, i);
        if (n % 8 == i)
            sum = visit(sum, i, n);
    }
    sum = look_at_file(look_at_file(look_at_file(sum, "stream"), "below/socket"), "datagram");
    struct stat own;
    CHECK(fstat(datagrams[0], &own) == 0);
    sum = mix(mix(sum, own.st_mode), own.st_uid);
    /* To its own name, and back. */
    struct sockaddr_un name;
    socklen_t length = unix_name(&name, "datagram");
    long got;
    CHECK(sendto(datagrams[1], &n, sizeof n, 0, (struct sockaddr *)&name, length) == sizeof n);
    CHECK(read(datagrams[0], &got, sizeof got) == sizeof got && got == n);
    CHECK(sendto(udp, &n, sizeof n, 0, (struct sockaddr *)&udp_name, sizeof udp_name) == sizeof n);
    CHECK(read(udp, &got, sizeof got) == sizeof got && got == n);
    CHECK(send(connected, &n, sizeof n, 0) == sizeof n && read(udp, &got, sizeof got) == sizeof got && got == n);
    return option(sum, bound_only, SOL_SOCKET, SO_ACCEPTCONN);
}

int main(int argc, char **argv)
{
    long rounds = number(argc, argv, 1, 400), period = number(argc, argv, 2, 2000);
    begin();
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        say(1, "%ld %016lx\n", round, round_of(round));
        sleep_us(period);
    }
    CHECK(listen(bound_only, 1) == 0);
    say(1, "all as it should be\n");
    return 0;
}
