/* Floors for what the threads of an application send, and the clients they send to.
 *
 *   floor_ticks tcp-single|tcp-gathered|udp-single|udp-gathered|broadcast PORT PEERS TICKS PERIOD
 *   floor_ticks answers PORT
 *   floor_ticks sink tcp|udp PORT PEERS
 *   floor_ticks churn PORT CONNECTIONS AT_ONCE
 *
 * The first waits for that many peers, then sends to each of them TICKS times, once in PERIOD
 * milliseconds, and prints how many messages it has sent, how many it could not send, and how many
 * nanoseconds of processor that took. In a tick each peer gets: over TCP five messages of 40 bytes,
 * each by a write of its own or all by one; over UDP one of 40 bytes, by sendto or 64 at once by
 * sendmmsg; in a broadcast one of 200 bytes. `answers` is an echo server whose answers come from
 * another thread, each by a write of its own. `sink` makes the peers, which read and discard. `churn` opens connections one
 * after another, so many at once, and closes each when one message has been answered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, MESSAGES = 5, TICK = 40, FRAME = 200, BUFFER = 1 << 17, QUEUE = 1 << 16 };

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int bound(int type, int port) {
    int one = 1, bytes = 4 << 20;
    int fd = socket(AF_INET, type, 0);
    check(fd >= 0, "socket");
    struct sockaddr_in address = loopback(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (type == SOCK_DGRAM) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    } else {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    check(bind(fd, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    if (type == SOCK_STREAM)
        check(listen(fd, 4096) == 0, "listen");
    return fd;
}

static long long nanoseconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Framed messages, one behind another. */
static size_t frames(unsigned char *out, int messages, int size) {
    size_t len = 0;
    for (int n = 0; n < messages; n++) {
        out[len] = (unsigned char)(size >> 8);
        out[len + 1] = (unsigned char)size;
        memset(out + len + 2, 'm', size);
        len += 2 + size;
    }
    return len;
}

static long long sent, failed;

static void count(int good, long long messages) {
    if (good)
        sent += messages;
    else
        failed += messages;
}

static void tick_tcp(const int *fds, int peers, int messages, int size, int gathered) {
    unsigned char bytes[MESSAGES * (2 + FRAME)];
    for (int n = 0; n < peers; n++) {
        if (gathered) {
            size_t len = frames(bytes, messages, size);
            count(send(fds[n], bytes, len, MSG_DONTWAIT) == (ssize_t)len, messages);
            continue;
        }
        for (int m = 0; m < messages; m++) {
            size_t len = frames(bytes, 1, size);
            count(send(fds[n], bytes, len, MSG_DONTWAIT) == (ssize_t)len, 1);
        }
    }
}

static void tick_udp(int fd, struct sockaddr_in *names, int peers, int gathered) {
    static unsigned char bytes[BATCH][TICK];
    if (!gathered) {
        for (int n = 0; n < peers; n++) {
            memset(bytes[0], 'm', TICK);
            ssize_t len = sendto(fd, bytes[0], TICK, MSG_DONTWAIT, (struct sockaddr *)&names[n],
                                 sizeof names[n]);
            count(len == TICK, 1);
        }
        return;
    }
    struct mmsghdr headers[BATCH];
    struct iovec pieces[BATCH];
    memset(headers, 0, sizeof headers);
    for (int n = 0; n < peers; n += BATCH) {
        int some = peers - n < BATCH ? peers - n : BATCH;
        for (int m = 0; m < some; m++) {
            memset(bytes[m], 'm', TICK);
            pieces[m] = (struct iovec){bytes[m], TICK};
            headers[m].msg_hdr = (struct msghdr){.msg_name = &names[n + m],
                                                 .msg_namelen = sizeof names[n + m],
                                                 .msg_iov = &pieces[m],
                                                 .msg_iovlen = 1};
        }
        int left = sendmmsg(fd, headers, some, MSG_DONTWAIT);
        left = left < 0 ? 0 : left;
        sent += left;
        failed += some - left;
    }
}

static void ticks(const char *mode, int port, int peers, int count_of_ticks, int period) {
    int udp = strncmp(mode, "udp", 3) == 0, gathered = strstr(mode, "gathered") != NULL;
    int fd = bound(udp ? SOCK_DGRAM : SOCK_STREAM, port);
    int *fds = calloc(peers, sizeof *fds);
    struct sockaddr_in *names = calloc(peers, sizeof *names);
    check(fds != NULL && names != NULL, "calloc");
    for (int n = 0; n < peers; n++) {
        socklen_t len = sizeof names[n];
        char hello;
        if (udp) {
            check(recvfrom(fd, &hello, 1, 0, (struct sockaddr *)&names[n], &len) > 0, "recvfrom");
        } else {
            int one = 1;
            fds[n] = accept(fd, NULL, NULL);
            check(fds[n] >= 0, "accept");
            setsockopt(fds[n], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        }
    }
    usleep(100000);
    long long begun = nanoseconds(CLOCK_PROCESS_CPUTIME_ID), next = nanoseconds(CLOCK_MONOTONIC);
    for (int n = 0; n < count_of_ticks; n++) {
        if (udp)
            tick_udp(fd, names, peers, gathered);
        else if (strcmp(mode, "broadcast") == 0)
            tick_tcp(fds, peers, 1, FRAME, 0);
        else
            tick_tcp(fds, peers, MESSAGES, TICK, gathered);
        next += period * 1000000LL;
        struct timespec until = {next / 1000000000LL, next % 1000000000LL};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    printf("%lld %lld %lld\n", sent, failed, nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - begun);
}

/* An answer on its way to the thread that sends it. */
struct answer {
    int fd, len;
    unsigned char *bytes;
};

static struct answer queue[QUEUE];
static size_t head, tail;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t filled = PTHREAD_COND_INITIALIZER, emptied = PTHREAD_COND_INITIALIZER;

static void *answer_all(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (head == tail)
            pthread_cond_wait(&filled, &lock);
        struct answer answer = queue[head++ % QUEUE];
        pthread_cond_signal(&emptied);
        pthread_mutex_unlock(&lock);
        check(send(answer.fd, answer.bytes, answer.len, 0) == answer.len, "send");
        free(answer.bytes);
    }
    return NULL;
}

/* What a connection has read of a frame that is not whole. */
struct connection {
    int fd, part_len;
    unsigned char part[2 + 65535];
};

static void answers(int port) {
    static unsigned char input[BUFFER];
    int listener = bound(SOCK_STREAM, port), epoll = epoll_create1(0), one = 1;
    pthread_t thread;
    check(pthread_create(&thread, NULL, answer_all, NULL) == 0, "pthread_create");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[1024];
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == 0, "epoll_ctl");
    for (;;) {
        int ready = epoll_wait(epoll, events, 1024, -1);
        for (int n = 0; n < ready; n++) {
            struct connection *c = events[n].data.ptr;
            if (c == NULL) {
                check((c = malloc(sizeof *c)) != NULL, "malloc");
                c->fd = accept(listener, NULL, NULL);
                c->part_len = 0;
                setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event.data.ptr = c;
                check(epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) == 0, "epoll_ctl");
                continue;
            }
            memcpy(input, c->part, c->part_len);
            ssize_t len = recv(c->fd, input + c->part_len, BUFFER - c->part_len, MSG_DONTWAIT);
            if (len <= 0) {
                if (len == 0 || (errno != EAGAIN && errno != EINTR)) {
                    close(c->fd);
                    free(c);
                }
                continue;
            }
            ssize_t at = 0;
            len += c->part_len;
            pthread_mutex_lock(&lock);
            while (len - at >= 2) {
                int frame = 2 + (input[at] << 8 | input[at + 1]);
                if (len - at < frame)
                    break;
                unsigned char *bytes = malloc(frame);
                check(bytes != NULL, "malloc");
                memcpy(bytes, input + at, frame);
                while (tail - head == QUEUE)
                    pthread_cond_wait(&emptied, &lock);
                queue[tail++ % QUEUE] = (struct answer){c->fd, frame, bytes};
                at += frame;
            }
            pthread_cond_signal(&filled);
            pthread_mutex_unlock(&lock);
            c->part_len = len - at;
            memcpy(c->part, input + at, c->part_len);
        }
    }
}

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
                ssize_t len = frames(bytes, 1, TICK);
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

int main(int argc, char **argv) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (argc == 6)
        ticks(argv[1], atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
    else if (argc == 3 && strcmp(argv[1], "answers") == 0)
        answers(atoi(argv[2]));
    else if (argc == 5 && strcmp(argv[1], "churn") == 0)
        churn(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
    else if (argc == 5 && strcmp(argv[1], "sink") == 0)
        sink(strcmp(argv[2], "udp") == 0, atoi(argv[3]), atoi(argv[4]));
    else {
        fprintf(stderr, "usage: see floor_ticks.c\n");
        return 2;
    }
    return 0;
}
