/* Loads for the floors and for what is compared with them.
 *
 *   load sink tcp|udp PORT PEERS                     connects, reads and discards
 *   load churn PORT CONNECTIONS AT_ONCE              opens connections one after another, so many at
 *                                                    once; closes each when a message is answered
 *   load peers PORT PEERS ROUNDS                     one datagram from each of many addresses in
 *                                                    turn; waits for a line after the first round
 *   load datagrams PORT PEERS WINDOW SIZE SECONDS    keeps a window of datagrams on their way, each
 *                                                    sent and received as one: no offload merges them
 *   load pace PORT CONNECTIONS RATE SECONDS          begins so many messages a second, whether the
 *                                                    others are answered or not; writes how long each
 *                                                    took since it was due, as nanoseconds of 4 bytes
 *
 * Each but the last prints how many answers there were; `peers` after every round.
 */
#include "common.h"
#include <stdint.h>

enum { TICK = 40, BUFFER = 1 << 17 };

static void sink(int udp, int port, int peers) {
    static unsigned char input[BUFFER];
    struct epoll_event event = {.events = EPOLLIN}, events[1024];
    struct sockaddr_in address = loopback(port);
    int epoll = epoll_create1(0);
    for (int n = 0; n < peers; n++) {
        int fd = socket(AF_INET, udp ? SOCK_DGRAM : SOCK_STREAM, 0);
        check(fd >= 0, "socket");
        check(connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect");
        if (udp)
            check(send(fd, "h", 1, 0) == 1, "send");
        event.data.fd = fd;
        check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
        /* The server's backlog and buffers are finite. */
        if (n % 64 == 63)
            usleep(2000);
    }
    for (;;) {
        int ready = epoll_wait(epoll, events, 1024, -1);
        for (int n = 0; n < ready; n++) {
            ssize_t len = recv(events[n].data.fd, input, BUFFER, MSG_DONTWAIT);
            if (len == 0 || (len < 0 && errno != EAGAIN && errno != EINTR))
                return;
        }
    }
}

static void begin(int epoll, int port) {
    struct sockaddr_in address = loopback(port);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    check(fd >= 0, "socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    check(connect(fd, (struct sockaddr *)&address, sizeof address) == 0 || errno == EINPROGRESS,
          "connect");
    struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

static void churn(int port, int connections, int at_once) {
    int epoll = epoll_create1(0), begun = 0, ended = 0;
    unsigned char bytes[2 + TICK];
    struct epoll_event events[1024];
    for (; begun < at_once && begun < connections; begun++)
        begin(epoll, port);
    while (ended < connections) {
        int ready = epoll_wait(epoll, events, 1024, -1);
        for (int n = 0; n < ready; n++) {
            int fd = events[n].data.fd;
            if (events[n].events & EPOLLOUT) {
                ssize_t len = (ssize_t)frames(bytes, 1, TICK);
                check(send(fd, bytes, len, 0) == len, "send");
                struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
                check(epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) == 0, "epoll_ctl");
                continue;
            }
            check(recv(fd, bytes, sizeof bytes, 0) == sizeof bytes, "recv");
            close(fd);
            ended++;
            if (begun < connections) {
                begin(epoll, port);
                begun++;
            }
        }
    }
    printf("%d\n", ended);
}

/* Each peer is an address of its own, 127.x.y.z, of one socket. */
static void peers(int port, int peers, int rounds) {
    static unsigned char bytes[BATCH][64], answers[BATCH][64];
    static union {
        char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
        struct cmsghdr align;
    } controls[BATCH];
    struct sockaddr_in server = loopback(port), any = {.sin_family = AF_INET};
    struct mmsghdr out[BATCH], in[BATCH];
    struct iovec out_pieces[BATCH], in_pieces[BATCH];
    struct timeval patience = {.tv_sec = 1};
    int bytes_of_buffer = 4 << 20, fd = socket(AF_INET, SOCK_DGRAM, 0);
    long long answered = 0;
    check(fd >= 0, "socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes_of_buffer, sizeof bytes_of_buffer);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    check(bind(fd, (struct sockaddr *)&any, sizeof any) == 0, "bind");
    memset(out, 0, sizeof out);
    memset(in, 0, sizeof in);
    memset(bytes, 'm', sizeof bytes);
    for (int m = 0; m < BATCH; m++) {
        struct msghdr *header = &out[m].msg_hdr;
        out_pieces[m] = (struct iovec){bytes[m], sizeof bytes[m]};
        in_pieces[m] = (struct iovec){answers[m], sizeof answers[m]};
        *header = (struct msghdr){.msg_name = &server,
                                  .msg_namelen = sizeof server,
                                  .msg_iov = &out_pieces[m],
                                  .msg_iovlen = 1,
                                  .msg_control = controls[m].bytes,
                                  .msg_controllen = sizeof controls[m].bytes};
        struct cmsghdr *control = CMSG_FIRSTHDR(header);
        control->cmsg_level = IPPROTO_IP;
        control->cmsg_type = IP_PKTINFO;
        control->cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo));
        in[m].msg_hdr = (struct msghdr){.msg_iov = &in_pieces[m], .msg_iovlen = 1};
    }
    for (int round = 0; round < rounds; round++) {
        for (int n = 0; n < peers; n += BATCH) {
            int some = peers - n < BATCH ? peers - n : BATCH;
            for (int m = 0; m < some; m++) {
                struct in_pktinfo info = {0};
                info.ipi_spec_dst.s_addr = htonl(INADDR_LOOPBACK + 1 + n + m);
                memcpy(CMSG_DATA(CMSG_FIRSTHDR(&out[m].msg_hdr)), &info, sizeof info);
            }
            for (int sent = 0; sent < some;) {
                int more = sendmmsg(fd, out + sent, some - sent, 0);
                check(more > 0, "sendmmsg");
                sent += more;
            }
            for (int received = 0; received < some;) {
                int more = recvmmsg(fd, in, some - received, MSG_WAITFORONE, NULL);
                if (more <= 0)
                    break;
                received += more;
                answered += more;
            }
        }
        /* The first round makes the connections. */
        printf("%lld\n", answered);
        fflush(stdout);
        answered = 0;
        if (round == 0)
            getchar();
    }
}

static void datagrams(int port, int peers, int window, int size, double seconds) {
    static unsigned char bytes[BATCH][2048];
    struct mmsghdr headers[BATCH];
    struct iovec pieces[BATCH];
    struct sockaddr_in address = loopback(port);
    struct epoll_event event = {.events = EPOLLIN}, events[1024];
    int epoll = epoll_create1(0), *fds = calloc(peers, sizeof *fds);
    long long answered = 0, until = nanoseconds(CLOCK_MONOTONIC) + (long long)(seconds * 1e9);
    check(fds != NULL && size <= 2048 && window <= BATCH, "sizes");
    memset(headers, 0, sizeof headers);
    for (int m = 0; m < BATCH; m++) {
        memset(bytes[m], 'm', size);
        headers[m].msg_hdr = (struct msghdr){.msg_iov = &pieces[m], .msg_iovlen = 1};
    }
    for (int n = 0; n < peers; n++) {
        int some = 0, bytes_of_buffer = 1 << 20;
        event.data.fd = fds[n] = socket(AF_INET, SOCK_DGRAM, 0);
        check(fds[n] >= 0, "socket");
        setsockopt(fds[n], SOL_SOCKET, SO_RCVBUF, &bytes_of_buffer, sizeof bytes_of_buffer);
        check(connect(fds[n], (struct sockaddr *)&address, sizeof address) == 0, "connect");
        check(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[n], &event) == 0, "epoll_ctl");
        while (some < window) {
            for (int m = some; m < window; m++)
                pieces[m] = (struct iovec){bytes[m], size};
            int sent = sendmmsg(fds[n], headers + some, window - some, 0);
            check(sent > 0, "sendmmsg");
            some += sent;
        }
    }
    while (nanoseconds(CLOCK_MONOTONIC) < until) {
        int ready = epoll_wait(epoll, events, 1024, 100);
        for (int n = 0; n < ready; n++) {
            for (int m = 0; m < BATCH; m++)
                pieces[m] = (struct iovec){bytes[m], 2048};
            int some = recvmmsg(events[n].data.fd, headers, BATCH, MSG_DONTWAIT, NULL);
            if (some <= 0)
                continue;
            answered += some;
            for (int m = 0; m < some; m++)
                pieces[m].iov_len = headers[m].msg_len;
            for (int sent = 0; sent < some;) {
                int more = sendmmsg(events[n].data.fd, headers + sent, some - sent, 0);
                check(more > 0, "sendmmsg");
                sent += more;
            }
        }
    }
    printf("%lld\n", answered);
}

static void pace(int port, int connections, int rate, double seconds) {
    static unsigned char input[BUFFER], message[2 + TICK];
    struct sockaddr_in address = loopback(port);
    struct epoll_event event = {.events = EPOLLIN}, events[1024];
    long long messages = (long long)(rate * seconds), sent = 0, answered = 0, interval = 1000000000 / rate;
    long long *bytes_of = calloc(connections, sizeof *bytes_of);
    unsigned *took = calloc(messages, sizeof *took);
    int epoll = epoll_create1(0), *fds = calloc(connections, sizeof *fds), one = 1;
    check(bytes_of != NULL && took != NULL && fds != NULL, "calloc");
    frames(message, 1, TICK);
    for (int n = 0; n < connections; n++) {
        event.data.u32 = n;
        fds[n] = socket(AF_INET, SOCK_STREAM, 0);
        check(fds[n] >= 0, "socket");
        setsockopt(fds[n], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        check(connect(fds[n], (struct sockaddr *)&address, sizeof address) == 0, "connect");
        check(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[n], &event) == 0, "epoll_ctl");
    }
    /* Connection n sends the messages n, n + connections, ...: an answer's number says when it was due. */
    long long start = nanoseconds(CLOCK_MONOTONIC) + 10000000, end = start + messages * interval + 5000000000LL;
    while (answered < messages) {
        long long now = nanoseconds(CLOCK_MONOTONIC);
        check(now < end, "an answer did not come");
        for (; sent < messages && start + sent * interval <= now; sent++)
            check(send(fds[sent % connections], message, sizeof message, 0) == sizeof message, "send");
        int ready = epoll_wait(epoll, events, 1024, 0);
        for (int n = 0; n < ready; n++) {
            int of = events[n].data.u32;
            ssize_t len = recv(fds[of], input, BUFFER, MSG_DONTWAIT);
            check(len > 0, "recv");
            now = nanoseconds(CLOCK_MONOTONIC);
            long long before = bytes_of[of] / (ssize_t)sizeof message;
            bytes_of[of] += len;
            for (; before < bytes_of[of] / (ssize_t)sizeof message; before++) {
                long long number = of + before * connections, late = now - (start + number * interval);
                took[answered++] = late < UINT32_MAX ? late : UINT32_MAX;
            }
        }
    }
    check(fwrite(took, sizeof *took, answered, stdout) == (size_t)answered, "fwrite");
}

int main(int argc, char **argv) {
    allow_descriptors();
    if (argc == 5 && strcmp(argv[1], "sink") == 0)
        sink(strcmp(argv[2], "udp") == 0, atoi(argv[3]), atoi(argv[4]));
    else if (argc == 5 && strcmp(argv[1], "churn") == 0)
        churn(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
    else if (argc == 5 && strcmp(argv[1], "peers") == 0)
        peers(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
    else if (argc == 7 && strcmp(argv[1], "datagrams") == 0)
        datagrams(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), atof(argv[6]));
    else if (argc == 6 && strcmp(argv[1], "pace") == 0)
        pace(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atof(argv[5]));
    else {
        fprintf(stderr, "usage: see load.c\n");
        return 2;
    }
    return 0;
}
