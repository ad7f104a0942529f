/* What the floors and the loads share. */
#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64 };

static inline void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* A socket on the port; `type` may have SOCK_NONBLOCK. Those that share the address do so with
 * others of this program. */
static inline int bound(int type, int port, int shares) {
    int one = 1, bytes = 4 << 20;
    int fd = socket(AF_INET, type, 0);
    check(fd >= 0, "socket");
    struct sockaddr_in address = loopback(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (shares)
        check(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0, "setsockopt");
    if ((type & SOCK_DGRAM) == SOCK_DGRAM) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    } else {
        /* Those that are accepted have it from here. */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    check(bind(fd, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    if ((type & SOCK_DGRAM) != SOCK_DGRAM)
        check(listen(fd, 4096) == 0, "listen");
    return fd;
}

/* As many descriptors as the system allows. */
static inline void allow_descriptors(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static inline long long nanoseconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Framed messages, one behind another. Returns their length. */
static inline size_t frames(unsigned char *out, int messages, int size) {
    size_t len = 0;
    for (int n = 0; n < messages; n++) {
        out[len] = (unsigned char)(size >> 8);
        out[len + 1] = (unsigned char)size;
        memset(out + len + 2, 'm', size);
        len += 2 + size;
    }
    return len;
}

#endif
