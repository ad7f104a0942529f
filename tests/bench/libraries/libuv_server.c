/* The echo server over libuv.
 *
 * libuv_server PORT
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { SCRATCH = 1 << 18 };

/* What a connection keeps between reads: the bytes of a message that has not arrived whole. */
struct connection {
    uv_tcp_t tcp;
    size_t len;
    unsigned char *begun;
};

struct pending {
    uv_write_t request;
    char bytes[];
};

static unsigned char input[SCRATCH], joined[2 * SCRATCH], output[2 * SCRATCH];

static void check(int status, const char *what) {
    if (status < 0) {
        fprintf(stderr, "%s: %s\n", what, uv_strerror(status));
        exit(1);
    }
}

static void closed(uv_handle_t *handle) {
    struct connection *connection = (struct connection *)handle;
    free(connection->begun);
    free(connection);
}

static void written(uv_write_t *request, int status) {
    (void)status;
    free(request);
}

static void answer(uv_stream_t *stream, size_t len) {
    uv_buf_t buffer = uv_buf_init((char *)output, len);
    int sent = uv_try_write(stream, &buffer, 1);
    size_t gone = sent > 0 ? sent : 0;
    if (gone == len)
        return;
    struct pending *pending = malloc(sizeof *pending + len - gone);
    memcpy(pending->bytes, output + gone, len - gone);
    buffer = uv_buf_init(pending->bytes, len - gone);
    if (uv_write(&pending->request, stream, &buffer, 1, written) < 0)
        free(pending);
}

static void lend(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
    (void)handle;
    (void)suggested;
    *buffer = uv_buf_init((char *)input, sizeof input);
}

static void received(uv_stream_t *stream, ssize_t read, const uv_buf_t *buffer) {
    struct connection *connection = (struct connection *)stream;
    const unsigned char *bytes = (const unsigned char *)buffer->base;
    size_t len = read, at = 0, out = 0;
    if (read < 0) {
        uv_close((uv_handle_t *)stream, closed);
        return;
    }
    if (connection->len > 0) {
        memcpy(joined, connection->begun, connection->len);
        memcpy(joined + connection->len, bytes, len);
        len += connection->len;
        bytes = joined;
    }
    while (len - at >= 2) {
        size_t size = (size_t)bytes[at] << 8 | bytes[at + 1];
        if (len - at < 2 + size)
            break;
        memcpy(output + out, bytes + at, 2);
        memcpy(output + out + 2, bytes + at + 2, size);
        out += 2 + size;
        at += 2 + size;
    }
    if (len != at || connection->len > 0) {
        connection->len = len - at;
        connection->begun = realloc(connection->begun, connection->len + 1);
        memcpy(connection->begun, bytes + at, connection->len);
    }
    if (out > 0)
        answer(stream, out);
}

static void arrived(uv_stream_t *listener, int status) {
    struct connection *connection = calloc(1, sizeof *connection);
    check(status, "listen");
    uv_tcp_init(listener->loop, &connection->tcp);
    if (uv_accept(listener, (uv_stream_t *)&connection->tcp) < 0) {
        uv_close((uv_handle_t *)&connection->tcp, closed);
        return;
    }
    uv_tcp_nodelay(&connection->tcp, 1);
    uv_read_start((uv_stream_t *)&connection->tcp, lend, received);
}

int main(int argc, char **argv) {
    uv_loop_t *loop = uv_default_loop();
    struct sockaddr_in address;
    uv_tcp_t listener;
    if (argc != 2)
        return 2;
    check(uv_ip4_addr("127.0.0.1", atoi(argv[1]), &address), "address");
    check(uv_tcp_init(loop, &listener), "tcp");
    check(uv_tcp_bind(&listener, (struct sockaddr *)&address, 0), "bind");
    check(uv_listen((uv_stream_t *)&listener, 4096, arrived), "listen");
    return uv_run(loop, UV_RUN_DEFAULT);
}
