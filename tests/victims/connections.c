/* connections ROUNDS PERIOD_US: TCP connections whose two ends the program has, with what is on its way in them. */
#include "sockets.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

enum { CHAT, FULL, HALF, GONE, SIX, MAPPED, BOTH_FULL, DEAF, FORKED, LINKS };
enum { CLIENT, SERVER };
enum { CHUNK = 10007, LAST_WORDS = 100000 };

static int links[LINKS][2], listeners[2], watcher;
static struct sockaddr_storage names[LINKS][2][2], listening[2];
static socklen_t lengths[2];
/* Where the writer and the reader of a stream are; what is sent are the numbers of the bytes, mixed. */
static uint64_t written[LINKS][2], taken[LINKS][2];

/* With SO_REUSEADDR, or connections of the killed program keep the port for a minute. */
static void begin_to_listen(int i)
{
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    int fd = listeners[i] = socket(i ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    CHECK((i ? bind(fd, (struct sockaddr *)&six, sizeof six) : bind(fd, (struct sockaddr *)&four, sizeof four)) == 0);
    lengths[i] = sizeof listening[i];
    CHECK(listen(fd, 16) == 0 && getsockname(fd, (struct sockaddr *)&listening[i], &lengths[i]) == 0);
}

static int client(int family, int to)
{
    int fd = socket(family, SOCK_STREAM, 0);
    struct sockaddr_storage name = listening[to];
    if (to && family == AF_INET) {
        struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        four.sin_port = ((struct sockaddr_in6 *)&name)->sin6_port;
        memcpy(&name, &four, sizeof four);
    } else if (to)
        ((struct sockaddr_in6 *)&name)->sin6_addr = in6addr_loopback;
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&name, family == AF_INET ? sizeof(struct sockaddr_in) : lengths[to]) == 0);
    return fd;
}

static unsigned char byte_at(int link, int from, uint64_t at)
{
    return mix(mix(link, from), at) >> 20;
}

/* As much as there is room for, or `most`. */
static void put(int link, int from, uint64_t most)
{
    unsigned char bytes[4096];
    for (;;) {
        uint64_t left = most - (written[link][from] < most ? written[link][from] : most);
        size_t n = left < sizeof bytes ? left : sizeof bytes;
        if (n == 0)
            return;
        for (size_t i = 0; i < n; i++)
            bytes[i] = byte_at(link, from, written[link][from] + i);
        ssize_t done = send(links[link][from], bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        CHECK(done > 0 || errno == EAGAIN);
        if (done < 0)
            return;
        written[link][from] += done;
    }
}

/* The next bytes from the other end, which must be there sooner or later. */
static void take(int link, int from, size_t n)
{
    unsigned char bytes[4096];
    while (n > 0) {
        ssize_t done = recv(links[link][!from], bytes, n < sizeof bytes ? n : sizeof bytes, 0);
        CHECK(done > 0);
        for (ssize_t i = 0; i < done; i++)
            if (bytes[i] != byte_at(link, from, taken[link][from] + i))
                fail("link %d from %d: wrong byte at %lu", link, from, taken[link][from] + i);
        taken[link][from] += done;
        n -= done;
    }
}

/* A process that answers. */
static void echo(void)
{
    char bytes[64];
    ssize_t n;
    /* Ends of others would never be closed. */
    CHECK(close_range(3, ~0u, 0) == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    int fd = client(AF_INET, 0);
    while ((n = read(fd, bytes, sizeof bytes)) > 0)
        write_all(fd, bytes, n);
    _exit(n == 0 ? 0 : 3);
}

static void begin(void)
{
    static const int family[LINKS] = {[SIX] = AF_INET6}, to[LINKS] = {[SIX] = 1, [MAPPED] = 1};
    begin_to_listen(0), begin_to_listen(1);
    CHECK((watcher = epoll_create1(0)) >= 0);
    for (int i = 0; i < LINKS; i++) {
        if (i == FORKED && fork() == 0)
            echo();
        links[i][CLIENT] = i == FORKED ? -1 : client(family[i] ? family[i] : AF_INET, to[i]);
        CHECK((links[i][SERVER] = accept(listeners[to[i]], NULL, NULL)) >= 0);
        for (int end = 0; end < 2 && i != FORKED; end++) {
            struct epoll_event event = {EPOLLIN | EPOLLRDHUP, {.u32 = i * 2 + end}};
            if (i == CHAT || i == HALF)
                CHECK(epoll_ctl(watcher, EPOLL_CTL_ADD, links[i][end], &event) == 0);
            for (int whose = 0; whose < 2; whose++) {
                socklen_t length = sizeof(struct sockaddr_storage);
                struct sockaddr *name = (struct sockaddr *)&names[i][end][whose];
                CHECK((whose ? getpeername : getsockname)(links[i][end], name, &length) == 0);
            }
        }
    }
    int one = links[SIX][CLIENT], other = links[SIX][SERVER];
    set(one, IPPROTO_TCP, TCP_NODELAY, 1), set(one, SOL_SOCKET, SO_KEEPALIVE, 1), set(one, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    set(other, SOL_SOCKET, SO_RCVBUF, 30000), set(other, SOL_SOCKET, SO_PRIORITY, 3), set(other, SOL_SOCKET, SO_REUSEADDR, 1);
    set(links[BOTH_FULL][SERVER], SOL_SOCKET, SO_RCVBUF, 4096), set(links[BOTH_FULL][CLIENT], SOL_SOCKET, SO_SNDBUF, 9000);
    CHECK(fcntl(links[FULL][CLIENT], F_SETFL, O_NONBLOCK) == 0);
    put(HALF, CLIENT, LAST_WORDS), put(GONE, CLIENT, LAST_WORDS);
    CHECK(written[HALF][CLIENT] == LAST_WORDS && written[GONE][CLIENT] == LAST_WORDS);
    CHECK(shutdown(links[HALF][CLIENT], SHUT_WR) == 0 && close(links[GONE][CLIENT]) == 0);
    CHECK(shutdown(links[DEAF][SERVER], SHUT_RD) == 0);
}

static uint64_t look_at(uint64_t sum, int i, int end)
{
    static const int options[] = {SO_REUSEADDR, SO_REUSEPORT, SO_KEEPALIVE, SO_PRIORITY, SO_PROTOCOL, SO_TYPE, SO_ERROR};
    int fd = links[i][end];
    for (int whose = 0; whose < 2; whose++) {
        struct sockaddr_storage name = {0};
        socklen_t length = sizeof name;
        CHECK((whose ? getpeername : getsockname)(fd, (struct sockaddr *)&name, &length) == 0);
        CHECK(memcmp(&name, &names[i][end][whose], length) == 0);
    }
    for (size_t o = 0; o < sizeof options / sizeof *options; o++)
        sum = option(sum, fd, SOL_SOCKET, options[o]);
    sum = option(option(sum, fd, IPPROTO_TCP, TCP_NODELAY), fd, IPPROTO_TCP, TCP_KEEPIDLE);
    return mix(option(sum, fd, IPPROTO_TCP, TCP_CONGESTION), fcntl(fd, F_GETFL));
}

static uint64_t polled(uint64_t sum, int fd)
{
    struct pollfd one = {fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0};
    CHECK(poll(&one, 1, 0) >= 0);
    return mix(sum, one.revents);
}

static void chat(int link, uint64_t n)
{
    for (int from = 0; from < 2; from++) {
        put(link, from, n);
        take(link, from, 1);
    }
}

static uint64_t round_of(uint64_t n)
{
    uint64_t sum = n;
    for (int i = 0; i < FORKED; i++)
        for (int end = i == GONE ? SERVER : CLIENT; end < 2; end++)
            sum = look_at(sum, i, end);
    sum = option(option(sum, links[SIX][SERVER], SOL_SOCKET, SO_RCVBUF), links[BOTH_FULL][CLIENT], SOL_SOCKET, SO_SNDBUF);
    chat(CHAT, n), chat(SIX, n), chat(MAPPED, n);
    put(FULL, CLIENT, -1ull), take(FULL, CLIENT, CHUNK);
    for (int from = 0; from < 2; from++)
        put(BOTH_FULL, from, -1ull), take(BOTH_FULL, from, CHUNK / 10);
    /* Last words are read to their end, and answered: who sends no more still listens. */
    take(HALF, CLIENT, 100), put(HALF, SERVER, n), take(HALF, SERVER, 1);
    take(GONE, CLIENT, 100);
    for (int end = 0; end < 2; end++)
        sum = polled(sum, links[HALF][end]);
    sum = polled(sum, links[GONE][SERVER]);
    put(DEAF, SERVER, n), take(DEAF, SERVER, 1);
    char byte;
    CHECK(recv(links[DEAF][SERVER], &byte, 1, MSG_DONTWAIT) == 0);
    CHECK(recv(links[CHAT][SERVER], &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    struct epoll_event events[4];
    int found = epoll_wait(watcher, events, 4, 0);
    CHECK(found == 1 && events[0].data.u32 == HALF * 2 + SERVER);
    sum = mix(sum, events[0].events);
    long back;
    write_all(links[FORKED][SERVER], &n, sizeof n);
    CHECK(recv(links[FORKED][SERVER], &back, sizeof back, MSG_WAITALL) == sizeof back && back == (long)n);
    /* Somebody new, at the ports that connections share. */
    int i = n % 2, new = client(i ? AF_INET6 : AF_INET, i), let_in = accept(listeners[i], NULL, NULL);
    CHECK(let_in >= 0 && write(new, "a", 1) == 1 && read(let_in, &byte, 1) == 1);
    sum = option(option(sum, let_in, SOL_SOCKET, SO_REUSEADDR), listeners[i], SOL_SOCKET, SO_REUSEADDR);
    close(new), close(let_in);
    return sum;
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
    take(HALF, CLIENT, LAST_WORDS - taken[HALF][CLIENT]), take(GONE, CLIENT, LAST_WORDS - taken[GONE][CLIENT]);
    char byte;
    CHECK(read(links[HALF][SERVER], &byte, 1) == 0 && read(links[GONE][SERVER], &byte, 1) == 0);
    close(links[FULL][CLIENT]);
    take(FULL, CLIENT, written[FULL][CLIENT] - taken[FULL][CLIENT]);
    CHECK(read(links[FULL][SERVER], &byte, 1) == 0);
    say(1, "all as it should be\n");
    return 0;
}
