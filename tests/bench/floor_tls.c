/* The floor of TLS: the barest correct echo server with cubenet's wire format, over OpenSSL.
 *
 *   floor_tls fd|bio PORT CERTIFICATE KEY
 *
 * One thread, epoll. `fd`: OpenSSL reads and writes the descriptor, reading ahead. `bio`: one recv
 * into a shared buffer and one send of a shared buffer per wake, and OpenSSL between the two. What has
 * come of a frame, and what the kernel refuses, is kept by a connection. No limits, no timeouts: it is
 * what the measured server's work is compared with, and nothing to run otherwise.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { INPUT = 1 << 16, FRAME = 2 + 65535 };

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        ERR_print_errors_fp(stderr);
        exit(1);
    }
}

struct bytes {
    unsigned char *at;
    size_t len, room;
};

static void append(struct bytes *to, const void *from, size_t len) {
    if (to->len + len > to->room) {
        to->room = to->len + len;
        to->at = realloc(to->at, to->room);
        check(to->at != NULL, "realloc");
    }
    memcpy(to->at + to->len, from, len);
    to->len += len;
}

static void drop(struct bytes *all) {
    free(all->at);
    *all = (struct bytes){0};
}

struct connection {
    int fd;
    SSL *ssl;
    struct bytes part;   /* of a frame */
    struct bytes plain;  /* what OpenSSL has not taken yet (fd) */
    struct bytes queue;  /* what the kernel has not taken yet (bio) */
};

static int uses_bio;
static unsigned char scratch[INPUT], clear[INPUT];
static size_t scratch_at, scratch_len;
static struct bytes output, wire;

static int bio_read(BIO *bio, char *to, int len) {
    size_t there = scratch_len - scratch_at;
    BIO_clear_retry_flags(bio);
    if (there == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    size_t take = there < (size_t)len ? there : (size_t)len;
    memcpy(to, scratch + scratch_at, take);
    scratch_at += take;
    return (int)take;
}

static int bio_write(BIO *bio, const char *from, int len) {
    BIO_clear_retry_flags(bio);
    append(&wire, from, len);
    return len;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

static void destroy(struct connection *c) {
    SSL_free(c->ssl);
    close(c->fd);
    drop(&c->part);
    drop(&c->plain);
    drop(&c->queue);
    free(c);
}

/* Sends what is in `wire`. Returns 0 if the connection is lost. */
static int send_wire(struct connection *c) {
    size_t done = 0;
    while (done < wire.len && c->queue.len == 0) {
        ssize_t sent = write(c->fd, wire.at + done, wire.len - done);
        if (sent < 0 && errno != EINTR) {
            if (errno != EAGAIN)
                return 0;
            break;
        }
        done += sent > 0 ? sent : 0;
    }
    if (done < wire.len)
        append(&c->queue, wire.at + done, wire.len - done);
    wire.len = 0;
    return 1;
}

/* Encrypts `len` bytes. Returns 0 if the connection is lost. */
static int encrypt(struct connection *c, const unsigned char *at, size_t len) {
    while (len > 0 && c->plain.len == 0) {
        int taken = SSL_write(c->ssl, at, len > 1 << 30 ? 1 << 30 : (int)len);
        if (taken <= 0) {
            if (SSL_get_error(c->ssl, taken) != SSL_ERROR_WANT_WRITE)
                return 0;
            break;
        }
        at += taken;
        len -= taken;
    }
    if (len > 0)
        append(&c->plain, at, len);
    return 1;
}

/* Decodes `len` bytes of input and gathers each message. */
static void deliver(struct connection *c, const unsigned char *at, size_t len) {
    while (len > 0) {
        if (c->part.len == 0 && len >= 2) {
            size_t frame = 2 + ((size_t)at[0] << 8 | at[1]);
            if (len >= frame) {
                append(&output, at, frame);
                at += frame;
                len -= frame;
                continue;
            }
        }
        size_t have = c->part.len;
        size_t need = have < 2 ? 2 : 2 + ((size_t)c->part.at[0] << 8 | c->part.at[1]);
        size_t take = need - have < len ? need - have : len;
        append(&c->part, at, take);
        at += take;
        len -= take;
        have = c->part.len;
        if (have >= 2 && have == 2 + ((size_t)c->part.at[0] << 8 | c->part.at[1])) {
            append(&output, c->part.at, have);
            drop(&c->part);
        }
    }
}

/* Returns 0 if the connection is lost. */
static int read_all(struct connection *c) {
    for (;;) {
        int len = SSL_read(c->ssl, clear, INPUT);
        if (len <= 0)
            return SSL_get_error(c->ssl, len) == SSL_ERROR_WANT_READ;
        deliver(c, clear, len);
    }
}

static int ready(struct connection *c) {
    if (!uses_bio) {
        struct bytes before = c->plain;
        c->plain = (struct bytes){0};
        int lives = encrypt(c, before.at, before.len) && read_all(c);
        lives = encrypt(c, output.at, output.len) && lives;
        drop(&before);
        output.len = 0;
        return lives;
    }
    if (c->queue.len > 0) {
        struct bytes before = c->queue;
        c->queue = (struct bytes){0};
        append(&wire, before.at, before.len);
        drop(&before);
        if (!send_wire(c))
            return 0;
    }
    for (;;) {
        ssize_t len = recv(c->fd, scratch, INPUT, 0);
        if (len < 0 && errno == EINTR)
            continue;
        if (len < 0)
            return errno == EAGAIN;
        if (len == 0)
            return 0;
        scratch_at = 0;
        scratch_len = len;
        int lives = read_all(c);
        lives = encrypt(c, output.at, output.len) && lives;
        output.len = 0;
        if (!send_wire(c) || !lives)
            return 0;
        if (len < INPUT)
            return 1;
    }
}

int main(int argc, char **argv) {
    if (argc != 5 || (strcmp(argv[1], "fd") != 0 && strcmp(argv[1], "bio") != 0)) {
        fprintf(stderr, "usage: floor_tls fd|bio PORT CERTIFICATE KEY\n");
        return 2;
    }
    uses_bio = strcmp(argv[1], "bio") == 0;
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    check(context != NULL, "SSL_CTX_new");
    check(SSL_CTX_use_certificate_chain_file(context, argv[3]) == 1, "certificate");
    check(SSL_CTX_use_PrivateKey_file(context, argv[4], SSL_FILETYPE_PEM) == 1, "key");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    if (!uses_bio)
        SSL_CTX_set_read_ahead(context, 1);
    BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "scratch");
    check(method != NULL, "BIO_meth_new");
    BIO_meth_set_read(method, bio_read);
    BIO_meth_set_write(method, bio_write);
    BIO_meth_set_ctrl(method, bio_ctrl);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int epoll = epoll_create1(0);
    check(listener >= 0 && epoll >= 0, "socket");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    check(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    check(listen(listener, 4096) == 0, "listen");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[1024];
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == 0, "epoll_ctl");
    for (;;) {
        int count = epoll_wait(epoll, events, 1024, -1);
        for (int n = 0; n < count; n++) {
            struct connection *c = events[n].data.ptr;
            if (c != NULL) {
                ERR_clear_error();
                if (!ready(c))
                    destroy(c);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                c = calloc(1, sizeof *c);
                check(c != NULL, "calloc");
                c->fd = fd;
                c->ssl = SSL_new(context);
                check(c->ssl != NULL, "SSL_new");
                if (uses_bio) {
                    BIO *bio = BIO_new(method);
                    check(bio != NULL, "BIO_new");
                    BIO_set_init(bio, 1);
                    SSL_set_bio(c->ssl, bio, bio);
                } else {
                    SSL_set_fd(c->ssl, fd);
                }
                SSL_set_accept_state(c->ssl);
                event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
                event.data.ptr = c;
                check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
            }
        }
    }
}
