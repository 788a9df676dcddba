/* channels CASE DIR ROUNDS PERIOD_US: what waits in pipes and sockets, always some of it unread. */
#include "victim.h"
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { BEHIND = 5, LARGEST = 4096 };

static unsigned char bytes[1 << 16], got[1 << 16];

/* Of message number n: its length, and its content in `bytes`. */
static size_t message(long n, size_t most)
{
    size_t length = n % 7 == 3 ? 1 : n % 5 == 4 ? most : 1 + (n * 761) % most;
    for (size_t i = 0; i < length; i++)
        bytes[i] = n * 31 + i * 7 + i / 256;
    return length;
}

/* Writes message `n` to `in` and takes message `n` − BEHIND from `out`, whole; the lengths must agree. */
static uint64_t exchange(int in, int out, long n, size_t most)
{
    size_t length = message(n, most);
    CHECK(write(in, bytes, length) == (ssize_t)length);
    if (n <= BEHIND)
        return 0;
    length = message(n - BEHIND, most);
    CHECK(read(out, got, sizeof got) == (ssize_t)length && memcmp(got, bytes, length) == 0);
    return mix(length, got[length - 1]);
}

static int packet[2], late[2];

static void packets_begin(void)
{
    CHECK(pipe2(packet, O_DIRECT) == 0 && fcntl(packet[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17);
    /* Its mode has come later, and it holds one byte. */
    CHECK(pipe(late) == 0 && fcntl(late[1], F_SETFL, O_DIRECT | O_NONBLOCK) == 0);
    CHECK(write(late[1], "a", 1) == 1);
}

static uint64_t packets_round(long n)
{
    int flags = fcntl(packet[0], F_GETFL) | fcntl(packet[1], F_GETFL) << 1;
    CHECK(fcntl(packet[1], F_GETPIPE_SZ) == 1 << 17);
    return mix(exchange(packet[1], packet[0], n, LARGEST), flags);
}

static void packets_end(void)
{
    CHECK(write(late[1], "bcd", 3) == 3 && read(late[0], got, 9) == 1 && got[0] == 'a');
    /* The rest of a packet that is not taken is lost. */
    CHECK(read(late[0], got, 1) == 1 && got[0] == 'b');
    CHECK(write(late[1], "e", 1) == 1 && read(late[0], got, 9) == 1 && got[0] == 'e');
    CHECK(fcntl(late[1], F_GETFL) == (O_WRONLY | O_DIRECT | O_NONBLOCK));
}

static int stream[2], datagram[2], sequence[2], halved[2], left, child_end[2];
static pid_t child;

static int option(int fd, int name)
{
    int value;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0);
    return value;
}

static void pairs_begin(void)
{
    int one = 1, size = 30000, gone[2];
    struct timeval soon = {0, 30000};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, datagram) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, sequence) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, halved) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, gone) == 0);
    CHECK(setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    CHECK(setsockopt(stream[1], SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon) == 0);
    CHECK(setsockopt(datagram[1], SOL_SOCKET, SO_RCVBUF, &size, sizeof size) == 0);
    /* One half is shut, with bytes before it; of one the other end is gone. */
    write_all(halved[0], "before the end", 14);
    CHECK(shutdown(halved[0], SHUT_WR) == 0);
    write_all(halved[1], "the other way", 13);
    write_all(gone[1], "last words", 10);
    close(gone[1]), left = gone[0];
    CHECK(setsockopt(left, SOL_SOCKET, SO_PASSCRED, &(int){0}, sizeof one) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, child_end) == 0 && (child = fork()) >= 0);
    if (child)
        close(child_end[1]);
    else {
        close(child_end[0]);
        ssize_t n;
        /* Upside down, until the other end is closed. */
        while ((n = read(child_end[1], got, sizeof got)) > 0) {
            for (ssize_t i = 0; i < n; i++)
                got[i] = ~got[i];
            write_all(child_end[1], got, n);
        }
        _exit(7);
    }
}

static uint64_t pairs_round(long n)
{
    uint64_t sum = mix(exchange(datagram[0], datagram[1], n, 3000), exchange(sequence[1], sequence[0], n, 5000));
    int waiting;
    /* A stream has no messages: bytes are counted. */
    size_t length = message(n, 3000);
    write_all(stream[0], bytes, length);
    if (n > BEHIND) {
        length = message(n - BEHIND, 3000);
        CHECK(recv(stream[1], got, length, MSG_WAITALL) == (ssize_t)length && memcmp(got, bytes, length) == 0);
    }
    CHECK(ioctl(stream[1], FIONREAD, &waiting) == 0);
    sum = mix(mix(sum, waiting), option(stream[0], SO_SNDBUF));
    sum = mix(mix(sum, option(datagram[1], SO_RCVBUF)), option(sequence[0], SO_PASSCRED));
    sum = mix(sum, fcntl(sequence[0], F_GETFL) << 16 | fcntl(stream[0], F_GETFL));
    unsigned char back;
    write_all(child_end[0], &(unsigned char){n}, 1);
    CHECK(read(child_end[0], &back, 1) == 1 && back == (unsigned char)~n);
    return sum;
}

static void pairs_end(void)
{
    CHECK(read(halved[1], got, 99) == 14 && memcmp(got, "before the end", 14) == 0 && read(halved[1], got, 9) == 0);
    CHECK(read(halved[0], got, 99) == 13 && send(halved[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    write_all(halved[1], "still", 5);
    CHECK(read(halved[0], got, 99) == 5);
    CHECK(read(left, got, 99) == 10 && memcmp(got, "last words", 10) == 0 && read(left, got, 9) == 0);
    CHECK(send(left, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    int waiting;
    CHECK(ioctl(stream[1], FIONREAD, &waiting) == 0 && recv(stream[1], got, waiting, MSG_WAITALL) == waiting);
    /* It gives up after its own timeout. */
    CHECK(recv(stream[1], got, 1, 0) < 0 && errno == EAGAIN);
    int status;
    close(child_end[0]);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static int carrier[2], names[2], slow[2], known, far_end, near_end;

/* Sends bytes with a descriptor, or without one. */
static void send_with(int in, const void *what, size_t length, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec part = {(void *)what, length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = &control, message.msg_controllen = sizeof control;
        *CMSG_FIRSTHDR(&message) = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &fd, sizeof fd);
    }
    CHECK(sendmsg(in, &message, 0) == (ssize_t)length);
}

/* Receives at most that many bytes, with the one descriptor that comes with them, and the process and user that has
 * sent them. */
static ssize_t receive_with(int out, void *what, size_t length, int *fd, struct ucred *from)
{
    char control[512] __attribute__((aligned(8)));
    struct iovec part = {what, length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(out, &message, MSG_DONTWAIT);
    *fd = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); n >= 0 && c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_type == SCM_RIGHTS)
            memcpy(fd, CMSG_DATA(c), sizeof *fd);
        if (c->cmsg_type == SCM_CREDENTIALS && from)
            memcpy(from, CMSG_DATA(c), sizeof *from);
    }
    return n;
}

static void carried_begin(void)
{
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, carrier) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, names) == 0);
    CHECK(setsockopt(names[1], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, slow) == 0 && (known = eventfd(5, EFD_NONBLOCK)) >= 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, child_end) == 0 && (child = fork()) >= 0);
    if (!child) {
        char c;
        close(child_end[1]);
        while (read(child_end[0], &c, 1) == 1) {
            write_all(names[0], &c, 1);
            write_all(child_end[0], &c, 1);
        }
        _exit(7);
    }
    close(child_end[0]);
    /* A socket that is nowhere but in the queue of another one, with words of its own. */
    int pair[2], fd;
    char byte;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    write_all(pair[1], "inside", 6);
    send_with(slow[0], "s", 1, pair[0]);
    close(pair[0]), near_end = pair[1];
    CHECK(receive_with(slow[1], &byte, 1, &fd, NULL) == 1 && fd >= 0);
    send_with(slow[0], "-", 1, fd);
    close(fd);
    far_end = -1;
}

static uint64_t carried_round(long n)
{
    int line[2], fd;
    struct ucred from = {0};
    unsigned char byte = n, many[9];
    CHECK(pipe(line) == 0);
    write_all(line[1], &n, sizeof n);
    send_with(carrier[0], &n, sizeof n, n % 3 ? line[0] : known);
    close(line[0]), close(line[1]);
    /* By the child and by itself in turn. */
    write_all(n % 2 ? child_end[1] : names[0], &byte, 1);
    CHECK(n % 2 == 0 || read(child_end[1], &byte, 1) == 1);
    long sent, inside = 0;
    uint64_t sum = 0;
    if (n > BEHIND) {
        CHECK(receive_with(carrier[1], &sent, sizeof sent, &fd, NULL) == sizeof sent && sent == n - BEHIND && fd >= 0);
        if (sent % 3)
            CHECK(read(fd, &inside, sizeof inside) == sizeof inside && inside == sent && read(fd, &inside, 1) == 0);
        else
            CHECK(write(fd, &(uint64_t){n}, 8) == 8 && read(known, &sum, 8) == 8);
        close(fd);
        while (receive_with(names[1], &byte, 1, &fd, &from) < 0)
            CHECK(errno == EAGAIN);
        CHECK(byte == (unsigned char)sent && from.pid == (sent % 2 ? child : getpid()));
        sum = mix(mix(sum, from.uid), from.gid);
    }
    /* Bytes that bring nothing, and one that does, taken one by one. */
    if (n % 20 == 7) {
        write_all(slow[0], "ab", 2);
        send_with(slow[0], "cd", 2, known);
        write_all(slow[0], "ef", 2);
    }
    if (n > 20 && n % 2 == 0) {
        ssize_t length = receive_with(slow[1], many, n % 3 ? 1 : 2, &fd, NULL);
        sum = mix(mix(sum, length), fd >= 0);
        for (ssize_t i = 0; i < length; i++)
            sum = mix(sum, many[i]);
        /* The one that was sent at the beginning. */
        if (fd >= 0 && far_end < 0)
            far_end = fd;
        else
            close(fd);
    }
    return sum;
}

static void carried_end(void)
{
    int status;
    CHECK(read(far_end, got, 99) == 6 && memcmp(got, "inside", 6) == 0);
    write_all(far_end, "answer", 6);
    CHECK(read(near_end, got, 99) == 6 && memcmp(got, "answer", 6) == 0);
    close(child_end[1]);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static int accepted, client, packet_ends[2], ended, kept;
static uint64_t abstract_names;
static const char *const kept_name = "kept";

static socklen_t unix_name(struct sockaddr_un *name, const char *path)
{
    *name = (struct sockaddr_un){.sun_family = AF_UNIX};
    strcpy(name->sun_path, path);
    if (*path == '@')
        *name->sun_path = 0;
    return offsetof(struct sockaddr_un, sun_path) + strlen(path) + (*path != '@');
}

static int named_listener(int kind, const char *path)
{
    struct sockaddr_un name;
    socklen_t length = unix_name(&name, path);
    int fd = socket(AF_UNIX, kind, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&name, length) == 0 && listen(fd, 3) == 0);
    return fd;
}

/* Connects; by a name of its own where there is one. */
static int named_client(int kind, const char *own, const char *path)
{
    struct sockaddr_un name;
    socklen_t length = unix_name(&name, own ? own : "");
    int fd = socket(AF_UNIX, kind, 0);
    CHECK(fd >= 0 && (!own || bind(fd, (struct sockaddr *)&name, length) == 0));
    length = unix_name(&name, path);
    CHECK(connect(fd, (struct sockaddr *)&name, length) == 0);
    return fd;
}

/* Of both ends: abstract ones, which differ from run to run. */
static uint64_t packet_names(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        struct sockaddr_un name = {0};
        socklen_t length = sizeof name;
        CHECK((i < 2 ? getpeername : getsockname)(packet_ends[i % 2], (struct sockaddr *)&name, &length) == 0);
        for (size_t b = 0; b < sizeof name.sun_path; b++)
            sum = mix(sum, name.sun_path[b]);
    }
    return sum;
}

static void named_begin(void)
{
    /* One that listens no more, and whose name is gone. */
    int listener = named_listener(SOCK_STREAM, "./gone");
    client = named_client(SOCK_STREAM, NULL, "./gone");
    CHECK((accepted = accept(listener, NULL, NULL)) >= 0 && unlink("gone") == 0);
    close(listener);
    /* Both ends have names; of processes of this name there may be several. */
    char here[40], there[80];
    snprintf(here, sizeof here, "@channels-%d", getpid()), snprintf(there, sizeof there, "%s-client", here);
    listener = named_listener(SOCK_SEQPACKET, here);
    packet_ends[0] = named_client(SOCK_SEQPACKET, there, here);
    CHECK((packet_ends[1] = accept(listener, NULL, NULL)) >= 0);
    close(listener);
    abstract_names = packet_names();
    kept = named_listener(SOCK_STREAM, kept_name);
    /* The last words of one that is closed. */
    int last = named_client(SOCK_STREAM, NULL, kept_name);
    CHECK((ended = accept(kept, NULL, NULL)) >= 0);
    write_all(last, "last words", 10);
    close(last);
    CHECK((child = fork()) >= 0);
    if (!child) {
        ssize_t n;
        int fd = named_client(SOCK_STREAM, NULL, kept_name);
        close(kept), close(ended), close(client), close(accepted), close(packet_ends[0]), close(packet_ends[1]);
        while ((n = read(fd, got, sizeof got)) > 0) {
            for (ssize_t i = 0; i < n; i++)
                got[i] = ~got[i];
            write_all(fd, got, n);
        }
        _exit(7);
    }
    CHECK((child_end[0] = accept(kept, NULL, NULL)) >= 0);
}

/* Both its names. */
static uint64_t names_of(uint64_t sum, int fd)
{
    for (int i = 0; i < 2; i++) {
        struct sockaddr_un name = {0};
        socklen_t length = sizeof name;
        CHECK((i ? getpeername : getsockname)(fd, (struct sockaddr *)&name, &length) == 0);
        sum = mix(sum, length);
        for (int b = 0; *name.sun_path && b < (int)sizeof name.sun_path; b++)
            sum = mix(sum, name.sun_path[b]);
    }
    return sum;
}

static uint64_t named_round(long n)
{
    CHECK(packet_names() == abstract_names);
    uint64_t sum = exchange(packet_ends[0], packet_ends[1], n, 4000);
    size_t length = message(n, 3000);
    write_all(accepted, bytes, length);
    if (n > BEHIND) {
        length = message(n - BEHIND, 3000);
        CHECK(recv(client, got, length, MSG_WAITALL) == (ssize_t)length && memcmp(got, bytes, length) == 0);
    }
    unsigned char back;
    write_all(child_end[0], &(unsigned char){n}, 1);
    CHECK(read(child_end[0], &back, 1) == 1 && back == (unsigned char)~n);
    sum = names_of(names_of(sum, accepted), client);
    sum = names_of(names_of(sum, child_end[0]), ended);
    return sum;
}

static void named_end(void)
{
    int status;
    CHECK(read(ended, got, 99) == 10 && memcmp(got, "last words", 10) == 0 && read(ended, got, 9) == 0);
    CHECK(send(ended, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    close(child_end[0]);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    /* The listener is still the one to come to. */
    int fd = named_client(SOCK_STREAM, NULL, kept_name), server = accept(kept, NULL, NULL);
    CHECK(server >= 0);
    write_all(fd, "again", 5);
    CHECK(read(server, got, 9) == 5);
}

static int signals, watcher;

static void signalfd_begin(void)
{
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR2), sigaddset(&set, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    CHECK((signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC)) >= 0 && (watcher = epoll_create1(0)) >= 0);
    CHECK(epoll_ctl(watcher, EPOLL_CTL_ADD, signals, &(struct epoll_event){EPOLLIN, {.u32 = 5}}) == 0);
}

static uint64_t signalfd_round(long n)
{
    struct signalfd_siginfo info[BEHIND + 2];
    struct epoll_event event;
    CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = n}) == 0);
    CHECK(epoll_wait(watcher, &event, 1, 0) == 1 && event.data.u32 == 5);
    if (n <= BEHIND)
        return n;
    /* The oldest one. */
    CHECK(read(signals, info, sizeof *info) == sizeof *info && info->ssi_signo == (unsigned)SIGRTMIN + 3);
    return mix(info->ssi_int, fcntl(signals, F_GETFL) << 4 | fcntl(signals, F_GETFD));
}

static void signalfd_end(void)
{
    struct signalfd_siginfo info[99];
    CHECK(read(signals, info, sizeof info) == BEHIND * sizeof *info && read(signals, info, sizeof info) < 0);
    kill(getpid(), SIGUSR2);
    CHECK(read(signals, info, sizeof info) == sizeof *info && info->ssi_signo == SIGUSR2);
}

static const struct thing things[] = {
    {"packets", packets_begin, packets_round, packets_end},
    {"pairs", pairs_begin, pairs_round, pairs_end},
    {"named", named_begin, named_round, named_end},
    {"carried", carried_begin, carried_round, carried_end},
    {"signalfd", signalfd_begin, signalfd_round, signalfd_end},
};

int main(int argc, char **argv) { return rounds_of(things, sizeof things / sizeof *things, argc, argv); }
