/* Floors for what the threads of an application send.
 *
 *   floor_ticks tcp-single|tcp-gathered|udp-single|udp-gathered|broadcast PORT PEERS TICKS PERIOD
 *
 * Waits for that many peers, then sends to each of them TICKS times, once in PERIOD milliseconds, and
 * prints how many messages it has sent, how many it could not send, and how many nanoseconds of
 * processor that took. In a tick each peer gets: over TCP five messages of 40 bytes, each by a write of
 * its own or all by one; over UDP one of 40 bytes, by sendto or 64 at once by sendmmsg; in a
 * broadcast one of 200 bytes.
 */
#include "common.h"

enum { MESSAGES = 5, TICK = 40, FRAME = 200 };

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
    int fd = bound(udp ? SOCK_DGRAM : SOCK_STREAM, port, 0);
    int *fds = calloc(peers, sizeof *fds);
    struct sockaddr_in *names = calloc(peers, sizeof *names);
    check(fds != NULL && names != NULL, "calloc");
    for (int n = 0; n < peers; n++) {
        socklen_t len = sizeof names[n];
        char hello;
        if (udp) {
            check(recvfrom(fd, &hello, 1, 0, (struct sockaddr *)&names[n], &len) > 0, "recvfrom");
        } else {
            fds[n] = accept(fd, NULL, NULL);
            check(fds[n] >= 0, "accept");
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

int main(int argc, char **argv) {
    allow_descriptors();
    if (argc != 6) {
        fprintf(stderr, "usage: see floor_ticks.c\n");
        return 2;
    }
    ticks(argv[1], atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
    return 0;
}
