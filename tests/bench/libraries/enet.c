/* ENet, as an echo server and as its load: it has a protocol of its own over UDP.
 *
 *   enet server PORT PEERS
 *   enet load PORT PEERS AT_ONCE SIZE SECONDS    messages go round the peers, so many on their way;
 *                                                prints how many were answered
 *
 * Packets are unreliable, as datagrams are.
 */
#include <enet/enet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void stop(const char *what) {
    fprintf(stderr, "%s failed\n", what);
    exit(1);
}

static void serve(int port, int peers) {
    ENetAddress address = {.port = port};
    ENetEvent event;
    enet_address_set_host_ip(&address, "127.0.0.1");
    ENetHost *host = enet_host_create(&address, peers, 1, 0, 0);
    if (host == NULL)
        stop("enet_host_create");
    for (;;) {
        if (enet_host_service(host, &event, 1000) <= 0)
            continue;
        if (event.type == ENET_EVENT_TYPE_RECEIVE) {
            /* The packet goes back as it is, without a copy. */
            event.packet->flags = 0;
            if (enet_peer_send(event.peer, 0, event.packet) < 0)
                enet_packet_destroy(event.packet);
        }
    }
}

static void say(ENetPeer *peer, const char *bytes, int size) {
    ENetPacket *packet = enet_packet_create(bytes, size, 0);
    if (enet_peer_send(peer, 0, packet) < 0)
        enet_packet_destroy(packet);
}

static void load(int port, int peers, int at_once, int size, double seconds) {
    static char bytes[1024];
    ENetAddress address = {.port = port};
    ENetEvent event;
    ENetPeer **connected = calloc(peers, sizeof *connected);
    int some = 0, begun = 0, next = 0;
    long long answered = 0;
    enet_address_set_host_ip(&address, "127.0.0.1");
    ENetHost *host = enet_host_create(NULL, peers, 1, 0, 0);
    if (host == NULL || connected == NULL || size > (int)sizeof bytes)
        stop("enet_host_create");
    while (some < peers) {
        for (; begun < peers && begun < some + 64; begun++)
            if (enet_host_connect(host, &address, 1, 0) == NULL)
                stop("enet_host_connect");
        if (enet_host_service(host, &event, 10000) <= 0 || event.type != ENET_EVENT_TYPE_CONNECT)
            stop("a connect");
        connected[some++] = event.peer;
    }
    printf("connected\n");
    fflush(stdout);
    getchar();
    enet_uint32 end = enet_time_get() + (enet_uint32)(seconds * 1000);
    for (; next < at_once; next++)
        say(connected[next % peers], bytes, size);
    while (enet_time_get() < end) {
        int ready = enet_host_service(host, &event, 100);
        if (ready < 0)
            stop("enet_host_service");
        if (ready == 0)
            /* All that was on its way was lost. */
            for (int n = 0; n < at_once; n++)
                say(connected[next++ % peers], bytes, size);
        else if (event.type == ENET_EVENT_TYPE_RECEIVE) {
            answered++;
            enet_packet_destroy(event.packet);
            say(connected[next++ % peers], bytes, size);
        } else if (event.type == ENET_EVENT_TYPE_DISCONNECT)
            stop("a connection");
    }
    printf("%lld\n", answered);
    for (int n = 0; n < peers; n++)
        enet_peer_disconnect_now(connected[n], 0);
    enet_host_flush(host);
}

int main(int argc, char **argv) {
    if (enet_initialize() != 0)
        stop("enet_initialize");
    if (argc == 4 && strcmp(argv[1], "server") == 0)
        serve(atoi(argv[2]), atoi(argv[3]));
    else if (argc == 7 && strcmp(argv[1], "load") == 0)
        load(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), atof(argv[6]));
    else {
        fprintf(stderr, "usage: see enet.c\n");
        return 2;
    }
    return 0;
}
