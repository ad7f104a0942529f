//! What loopback does not show of the mio driver: link-local and multicast addresses, paths that
//! carry less than others, links that are slow. Each test has a network namespace of its own.

#![cfg(target_os = "linux")]

use cubenet_mio::{Connection, Handler, Limits, Link, Message, Network, Transport};
use cubenet_tests::system::{in_namespace, ip, skipped, tc};
use cubenet_tests::{Event, PATIENCE, RawClient, Reports, echo, eventually, ignore, one_worker};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One test at a time: one of them counts what the whole process allocates.
static ALONE: Mutex<()> = Mutex::new(());

fn alone_in_namespace(test: impl FnOnce() + Send + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    in_namespace(test);
}

/// Two ends of a wire, both in this namespace.
fn wire() {
    ip("link add v0 type veth peer name v1");
    for end in ["v0", "v1"] {
        ip(&format!("link set {end} up"));
    }
    ip("addr add fe80::a/64 dev v0 nodad");
    ip("addr add fe80::b/64 dev v1 nodad");
    ip("addr add 10.9.0.1/24 dev v0");
}

fn index(interface: &str) -> u32 {
    if_nametoindex(interface).expect("it is there")
}

fn link_local(ip: &str, port: u16, interface: &str) -> SocketAddr {
    SocketAddrV6::new(ip.parse().unwrap(), port, 0, index(interface)).into()
}

fn bound(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("the address is ours");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Lets loopback carry no more than this. Returns whether the kernel can; says so if not.
fn slow_loopback(rate: &str) -> bool {
    let shaped = tc(&format!(
        "qdisc add dev lo root tbf rate {rate} burst 3k latency 600s"
    ));
    if !shaped {
        skipped("the kernel has no token bucket filter");
    }
    shaped
}

/// A network whose datagram sockets take few datagrams that have not left.
fn small_buffers(limits: Limits) -> Network {
    let builder = Network::builder().workers(1).limits(limits);
    builder.datagram_buffer(4_608).start().unwrap()
}

#[test]
fn a_link_local_address_keeps_its_scope() {
    alone_in_namespace(|| {
        wire();
        let network = one_worker(Limits::default());
        let server = Reports::default();
        for transport in [Transport::Tcp, Transport::Udp] {
            for address in [link_local("fe80::a", 0, "v0"), "[::]:0".parse().unwrap()] {
                let events = server.opener();
                let accepted = move |connection: &Connection| {
                    events(connection);
                    Some(Echo)
                };
                let listener = network.listen(transport, address, accepted).unwrap();
                if !address.ip().is_unspecified() {
                    let local = link_local("fe80::a", listener.local_addr().port(), "v0");
                    assert_eq!(listener.local_addr(), local);
                }
                let to = link_local("fe80::a", listener.local_addr().port(), "v0");
                let client = Reports::default();
                let out = client.connect(&network, transport, to, ignore);
                out.send(b"hello").unwrap();
                assert_eq!(out.peer_addr(), to);
                let accepted = server.opened();
                assert_eq!(accepted.local_addr(), to, "{transport} on {address}");
                client.opened();
                assert_eq!(client.received(), b"hello");
                // The client's own address shows once it is connected.
                let SocketAddr::V6(peer) = accepted.peer_addr() else {
                    panic!("it is an IPv6 address");
                };
                assert_eq!(peer.scope_id(), index("v0"));
            }
        }
    });
}

struct Echo;
impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        link.send(&message).unwrap();
    }
}

#[test]
fn a_datagram_to_a_multicast_address_is_answered_from_an_address_that_can_send() {
    alone_in_namespace(|| {
        wire();
        let network = one_worker(Limits::default());
        let [v6, v4] = ["[::]:0", "0.0.0.0:0"].map(|address| {
            let listener = network.listen(Transport::Udp, address, |_: &Connection| Some(Echo));
            listener.unwrap().local_addr().port()
        });
        let socket = bound(link_local("fe80::a", 0, "v0"));
        let group = link_local("ff02::1", v6, "v0");
        is_answered(&socket, group);
        let socket = bound("10.9.0.1:0".parse().unwrap());
        SockRef::from(&socket)
            .set_multicast_if_v4(&Ipv4Addr::new(10, 9, 0, 1))
            .unwrap();
        let group = SocketAddr::from(([224, 0, 0, 1], v4));
        is_answered(&socket, group);
        assert_eq!(network.metrics().dropped_total(), 0);
    });
}

/// That what is sent to a group is answered. The wire may not be up yet.
fn is_answered(socket: &UdpSocket, group: SocketAddr) {
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    eventually("it is answered", || {
        socket.send_to(b"anybody", group).unwrap();
        let answer = socket.recv_from(&mut [0; 100]);
        answer.is_ok_and(|(len, from)| len == 7 && from.port() == group.port())
    });
}

/// A socket that receives runs in one piece, as they were sent.
fn merging(address: &str) -> UdpSocket {
    let socket = bound(address.parse().unwrap());
    setsockopt(&socket, sockopt::UdpGroSegment, &true).unwrap();
    socket
}

/// The lengths of what arrives of 40 answers of 1,000 bytes.
fn lengths(socket: &UdpSocket) -> Vec<usize> {
    let mut lengths: Vec<usize> = Vec::new();
    while lengths.iter().sum::<usize>() < 40_000 {
        lengths.push(socket.recv(&mut vec![0; 65_536]).expect("all arrive"));
    }
    lengths
}

/// Answers with 40 datagrams.
struct Forty;
impl Handler for Forty {
    fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
        for _ in 0..40 {
            link.send(&[7; 1_000]).unwrap();
        }
    }
}

#[test]
fn a_peer_behind_a_small_mtu_is_sent_single_datagrams_and_others_runs() {
    alone_in_namespace(|| {
        ip("route add local 127.9.0.0/16 dev lo table local mtu 600");
        let network = one_worker(Limits::default());
        let listener = network.listen(Transport::Udp, "127.0.0.1:0", |_| Some(Forty));
        let server = listener.unwrap().local_addr();
        let (small, large) = (merging("127.9.0.1:0"), merging("127.0.0.1:0"));
        for _ in 0..3 {
            for (socket, runs) in [(&small, false), (&large, true)] {
                socket.send_to(b"go", server).unwrap();
                let lengths = lengths(socket);
                assert_eq!(lengths.len() < 40, runs, "{lengths:?}");
            }
        }
        assert_eq!(network.metrics().dropped_not_sent, 0);
    });
}

/// On request, sends datagrams until there is no room.
struct Fills;
impl Handler for Fills {
    fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
        // Where nothing waits for a peer, what is over the bound of all is accepted and lost.
        (0..20_000).all(|_| link.send(b"small").is_ok());
    }
}

#[test]
fn datagrams_that_wait_are_counted_with_what_they_cost_and_hold_no_peer_up() {
    alone_in_namespace(|| {
        // So slow that what is sent waits: 5 kB a second.
        if !slow_loopback("40kbit") {
            return;
        }
        let limits = Limits::new()
            .with_max_queued(65_600)
            .with_low_watermark(1_000)
            .with_max_queued_total(200_000);
        let network = small_buffers(limits);
        let listener = network.listen(Transport::Udp, "127.0.0.1:0", |_| Some(Fills));
        let sockets: Vec<_> = (0..5)
            .map(|_| bound("127.0.0.1:0".parse().unwrap()))
            .collect();
        let server = listener.unwrap().local_addr();
        // What the worker receives datagrams into is there once for all.
        let other = Reports::default().listen(&network, Transport::Udp, echo);
        sockets[0].send_to(b"hello", other).unwrap();
        sockets[0].recv(&mut [0; 100]).unwrap();
        let before = cubenet_tests::allocation::live_bytes();
        // One at a time, so that nothing of a batch has to be kept for another iteration.
        for (nth, socket) in (2..).zip(&sockets) {
            socket.send_to(b"go", server).unwrap();
            eventually("it is received", || network.metrics().messages_in == nth);
        }
        eventually("as much waits as may", || {
            network.metrics().queued_bytes > 190_000
        });
        let queued = network.metrics().queued_bytes;
        assert!(queued <= 200_000, "{queued} bytes");
        // Room for what a queue that grew by doubling does not use.
        let taken = cubenet_tests::allocation::live_bytes() - before;
        assert!(taken < 3 * 200_000, "{taken} bytes of memory");
        network.stop(Duration::ZERO);
        assert_eq!(network.metrics().queued_bytes, 0);
    });
}

#[test]
fn datagrams_that_waited_arrive_once_there_is_room_and_the_worker_serves_others() {
    alone_in_namespace(|| {
        if !slow_loopback("2mbit") {
            return;
        }
        let network = small_buffers(Limits::default());
        let server = Reports::default();
        let address = server.listen(&network, Transport::Udp, ignore);
        let streams = Reports::default().listen(&network, Transport::Tcp, echo);
        let socket = bound("127.0.0.1:0".parse().unwrap());
        SockRef::from(&socket)
            .set_recv_buffer_size(4 << 20)
            .unwrap();
        socket.send_to(b"hello", address).unwrap();
        let connection = server.opened();
        let mut sent = 0_u32;
        while sent < 2_000 && connection.send(sent.to_be_bytes()).is_ok() {
            sent += 1;
        }
        assert!(connection.queued() > 0, "something waits");
        let mut other = RawClient::connect(streams);
        let start = Instant::now();
        other.send(b"ping");
        assert_eq!(other.receive(), b"ping");
        assert!(start.elapsed() < Duration::from_secs(2));
        for number in 0..sent {
            let mut buffer = [0; 100];
            assert_eq!(socket.recv(&mut buffer).expect("all arrive"), 4);
            assert_eq!(buffer[..4], number.to_be_bytes());
        }
        eventually("nothing waits", || connection.queued() == 0);
    });
}

#[test]
fn what_waits_of_an_aborted_connection_is_neither_sent_nor_counted() {
    alone_in_namespace(|| {
        if !slow_loopback("100kbit") {
            return;
        }
        let network = small_buffers(Limits::default());
        let server = Reports::default();
        let address = server.listen(&network, Transport::Udp, ignore);
        let sockets = [(); 2].map(|()| bound("127.0.0.1:0".parse().unwrap()));
        let connections = sockets.each_ref().map(|socket| {
            socket.send_to(b"hello", address).unwrap();
            let connection = server.opened();
            assert!(matches!(server.next(), Event::Received(_)));
            connection
        });
        let [aborted, kept] = &connections;
        // Alternately, so that one's lie between the other's.
        for number in 0..200_u32 {
            for connection in [aborted, kept] {
                connection.send(number.to_be_bytes()).unwrap();
            }
        }
        let others = kept.queued();
        assert!(others > 0, "something waits");
        aborted.abort();
        eventually("it is counted no more", || {
            network.metrics().queued_bytes <= others as u64
        });
        assert_eq!(aborted.queued(), 0);
        for number in 0..200_u32 {
            let mut buffer = [0; 100];
            assert_eq!(sockets[1].recv(&mut buffer).expect("all arrive"), 4);
            assert_eq!(buffer[..4], number.to_be_bytes());
        }
        sockets[0].set_nonblocking(true).unwrap();
        let arrived = std::iter::repeat_with(|| sockets[0].recv(&mut [0; 100]));
        let arrived = arrived.take_while(Result::is_ok).count();
        assert!(arrived < 100, "{arrived} were sent");
        assert_eq!(network.metrics().queued_bytes, 0);
    });
}

#[global_allocator]
static ALLOCATOR: cubenet_tests::allocation::Counting = cubenet_tests::allocation::Counting;

/// What the kernel says of a stream over loopback that is fast, and over one that is slow and drops what does not fit
/// its queue.
#[test]
fn the_way_to_a_peer_is_measured() {
    alone_in_namespace(|| {
        let server = one_worker(Limits::new());
        let reports = Reports::default();
        let address = reports.listen(&server, Transport::Tcp, echo);
        let client = one_worker(Limits::new());
        let replies = Reports::default();
        let connection = replies.connect(&client, Transport::Tcp, address, ignore);
        connection.send(b"over and back").unwrap();
        replies.opened();
        assert_eq!(replies.received(), b"over and back");
        let fast = connection.tcp_info().expect("Linux tells");
        assert!(
            fast.round_trip > Duration::ZERO && fast.sent >= Some(1),
            "{fast:?}"
        );
        // Frames of an Ethernet, 20 of which may wait, at 100 in a second.
        ip("link set lo mtu 1500");
        if !tc("qdisc add dev lo root tbf rate 1200kbit burst 3k limit 30k") {
            return skipped("the kernel has no token bucket filter");
        }
        for _ in 0..20 {
            connection.send([0; 30_000]).unwrap();
        }
        eventually("something is lost", || {
            let slow = connection.tcp_info().expect("it is open");
            slow.retransmitted > 0 && slow.loss() > Some(0.0)
        });
        eventually("it takes longer", || {
            let slow = connection.tcp_info().expect("it is open");
            slow.round_trip > Duration::from_millis(20) && slow.round_trip > fast.round_trip
        });
        let udp = replies.connect(&client, Transport::Udp, address, ignore);
        assert_eq!(udp.tcp_info(), None);
        connection.abort();
        eventually("it has ended", || connection.tcp_info().is_none());
    });
}
