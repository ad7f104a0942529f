/* The floor: the barest correct echo server with cubenet's wire format.
 *
 *   floor tcp|udp PORT [THREADS]
 *
 * One thread, or several with a socket each. TCP: epoll, one read into a shared buffer, each frame
 * decoded and copied to a shared output buffer, one write. Only a partial frame and what the kernel
 * refuses are kept by a connection. UDP: recvmmsg, sendmmsg. No limits, no timeouts, no counters: it
 * is what the measured server's work is compared with, and nothing to run otherwise.
 */
#include "common.h"
#include <pthread.h>

enum { INPUT = 1 << 16, FRAME = 2 + 65535, DATAGRAM = 65536 };

struct connection {
    int fd;
    unsigned char *part; /* of a frame, of FRAME bytes; allocated while there is one */
    size_t part_len;
    unsigned char *queue; /* what the kernel refused */
    size_t queue_len;
};

static __thread unsigned char input[INPUT];
static __thread unsigned char output[FRAME + INPUT];

static void destroy(struct connection *c) {
    close(c->fd);
    free(c->part);
    free(c->queue);
    free(c);
}

/* Sends, and keeps what the kernel does not take. Returns 0 if the connection is lost. */
static int transmit(struct connection *c, const unsigned char *bytes, size_t len) {
    while (len > 0 && c->queue_len == 0) {
        ssize_t sent = write(c->fd, bytes, len);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno != EAGAIN)
            return 0;
        if (sent < 0)
            break;
        bytes += sent;
        len -= sent;
    }
    if (len > 0) {
        c->queue = realloc(c->queue, c->queue_len + len);
        check(c->queue != NULL, "realloc");
        memcpy(c->queue + c->queue_len, bytes, len);
        c->queue_len += len;
    }
    return 1;
}

static int flush(struct connection *c) {
    unsigned char *queue = c->queue;
    size_t len = c->queue_len;
    c->queue = NULL;
    c->queue_len = 0;
    int alive = transmit(c, queue, len);
    free(queue);
    return alive;
}

/* Decodes `len` bytes of input and echoes each message. */
static int deliver(struct connection *c, const unsigned char *at, size_t len) {
    size_t out = 0;
    while (len > 0) {
        if (c->part_len == 0 && len >= 2) {
            size_t frame = 2 + ((size_t)at[0] << 8 | at[1]);
            if (len >= frame) {
                memcpy(output + out, at, frame);
                out += frame;
                at += frame;
                len -= frame;
                continue;
            }
        }
        if (c->part == NULL) {
            c->part = malloc(FRAME);
            check(c->part != NULL, "malloc");
        }
        size_t need = c->part_len < 2 ? 2 : 2 + ((size_t)c->part[0] << 8 | c->part[1]);
        size_t take = need - c->part_len < len ? need - c->part_len : len;
        memcpy(c->part + c->part_len, at, take);
        c->part_len += take;
        at += take;
        len -= take;
        if (c->part_len >= 2 && c->part_len == 2 + ((size_t)c->part[0] << 8 | c->part[1])) {
            memcpy(output + out, c->part, c->part_len);
            out += c->part_len;
            free(c->part);
            c->part = NULL;
            c->part_len = 0;
        }
    }
    return transmit(c, output, out);
}

/* Returns 0 if the connection is lost. */
static int ready(struct connection *c) {
    if (c->queue_len > 0 && !flush(c))
        return 0;
    for (;;) {
        ssize_t len = read(c->fd, input, INPUT);
        if (len < 0 && errno == EINTR)
            continue;
        if (len < 0)
            return errno == EAGAIN;
        if (len == 0)
            return 0;
        if (!deliver(c, input, len))
            return 0;
        if (len < INPUT)
            return 1;
    }
}

static void serve_tcp(int port, int shares) {
    int listener = bound(SOCK_STREAM | SOCK_NONBLOCK, port, shares), epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[1024];
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == 0, "epoll_ctl");
    for (;;) {
        int count = epoll_wait(epoll, events, 1024, -1);
        for (int n = 0; n < count; n++) {
            struct connection *c = events[n].data.ptr;
            if (c != NULL) {
                if (!ready(c))
                    destroy(c);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                c = calloc(1, sizeof *c);
                check(c != NULL, "calloc");
                c->fd = fd;
                event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
                event.data.ptr = c;
                check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
            }
        }
    }
}

static void serve_udp(int port, int shares) {
    /* Not a power of two apart, or all buffers begin in one cache set. */
    static __thread unsigned char buffers[BATCH][DATAGRAM + 4096 + 64];
    struct sockaddr_storage names[BATCH];
    struct iovec pieces[BATCH];
    struct mmsghdr headers[BATCH];
    int fd = bound(SOCK_DGRAM | SOCK_NONBLOCK, port, shares), epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
    for (;;) {
        epoll_wait(epoll, &event, 1, -1);
        int count = BATCH;
        while (count == BATCH) {
            for (int n = 0; n < BATCH; n++) {
                pieces[n] = (struct iovec){buffers[n], DATAGRAM};
                headers[n].msg_hdr = (struct msghdr){.msg_name = &names[n],
                                                     .msg_namelen = sizeof names[n],
                                                     .msg_iov = &pieces[n],
                                                     .msg_iovlen = 1};
            }
            count = recvmmsg(fd, headers, BATCH, MSG_DONTWAIT, NULL);
            for (int n = 0; n < count; n++)
                pieces[n].iov_len = headers[n].msg_len;
            for (int sent = 0; sent < count;) {
                int more = sendmmsg(fd, headers + sent, count - sent, 0);
                sent += more > 0 ? more : 1;
            }
        }
    }
}

static int port, threads = 1;
static void (*serve)(int port, int shares);

static void *serve_thread(void *unused) {
    (void)unused;
    serve(port, threads > 1);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc >= 3 && strcmp(argv[1], "tcp") == 0)
        serve = serve_tcp;
    if (argc >= 3 && strcmp(argv[1], "udp") == 0)
        serve = serve_udp;
    if (serve == NULL || argc > 4) {
        fprintf(stderr, "usage: floor tcp|udp PORT [THREADS]\n");
        return 2;
    }
    allow_descriptors();
    port = atoi(argv[2]);
    if (argc == 4)
        threads = atoi(argv[3]);
    for (int n = 1; n < threads; n++) {
        pthread_t thread;
        check(pthread_create(&thread, NULL, serve_thread, NULL) == 0, "pthread_create");
    }
    serve_thread(NULL);
}
