/* The floor of an echo server whose answers come from another thread, each by a write of its own.
 *
 *   floor_answers PORT
 *
 * The thread that reads puts messages into a queue under a lock, a second takes them out and sends.
 */
#include "common.h"
#include <pthread.h>

enum { BUFFER = 1 << 17, QUEUE = 1 << 16 };

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
    int listener = bound(SOCK_STREAM, port, 0), epoll = epoll_create1(0);
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

int main(int argc, char **argv) {
    allow_descriptors();
    if (argc != 2) {
        fprintf(stderr, "usage: floor_answers PORT\n");
        return 2;
    }
    answers(atoi(argv[1]));
}
