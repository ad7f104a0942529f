//! Which peers are admitted: the admission hook, limits per address and per listener, and what a flood of
//! datagrams from unknown addresses does to the connections there are.

use cubenet_mio::{
    AddressLimits, Admission, CloseReason, Connection, Error, Handler, Limits, Link, ListenOptions,
    Listener, Message, Network, Timeout, Transport,
};
use cubenet_tests::{PATIENCE, RawClient, Reports, echo, eventually, framed, one_worker};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

struct Echo;
impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

/// Listens with these options. Returns how often `accepted` was called, too.
fn listen(
    network: &Network,
    options: ListenOptions,
    transport: Transport,
) -> (Listener, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let accepted = move |_: &Connection| {
        count.fetch_add(1, Relaxed);
        Some(Echo)
    };
    let listener = network.listen_with(options, transport, "127.0.0.1:0", accepted);
    (listener.unwrap(), asked)
}

fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn answers(socket: &UdpSocket, message: &[u8]) {
    socket.send(message).unwrap();
    let mut buffer = [0; 100];
    let len = socket.recv(&mut buffer).expect("it is answered");
    assert_eq!(&buffer[..len], message);
}

fn hook(_peer: SocketAddr, datagram: &[u8]) -> Admission {
    match datagram {
        b"panic" => panic!("on purpose"),
        [b'k', ..] => Admission::Recognise,
        [b'a', ..] => Admission::Admit,
        _ => Admission::Refuse,
    }
}

#[test]
fn a_hook_sees_the_first_datagram_before_anything_is_built() {
    let network = one_worker(Limits::default());
    let options = ListenOptions::new().admit(|peer, datagram| {
        assert!(peer.ip().is_loopback() && peer.port() != 0);
        hook(peer, datagram)
    });
    let (listener, asked) = listen(&network, options, Transport::Udp);
    let socket = client(listener.local_addr());
    for refused in [&b"what"[..], b"panic", b"x", b""] {
        socket.send(refused).unwrap();
    }
    eventually("all are dropped", || network.metrics().dropped_total() == 4);
    assert_eq!(asked.load(Relaxed), 0);
    assert_eq!(network.metrics().open, 0);
    assert_eq!(network.metrics().panics, 1);
    answers(&socket, b"admit me");
    // Later datagrams of a peer that is there are not shown to it.
    answers(&socket, b"what");
    assert_eq!(asked.load(Relaxed), 1);
}

#[test]
fn places_are_kept_for_peers_that_are_recognised() {
    let limits = Limits::new().with_max_peers(6).with_reserved_peers(2);
    let network = one_worker(Limits::default());
    let options = ListenOptions::new().limits(limits).admit(hook);
    let (listener, _) = listen(&network, options, Transport::Udp);
    let admitted: Vec<_> = (0..4).map(|_| client(listener.local_addr())).collect();
    for socket in &admitted {
        answers(socket, b"admit me");
    }
    client(listener.local_addr())
        .send(b"admit me, too")
        .unwrap();
    eventually("it is dropped", || {
        network.metrics().dropped_table_full == 1
    });
    for _ in 0..2 {
        answers(&client(listener.local_addr()), b"known");
    }
    client(listener.local_addr())
        .send(b"known, too late")
        .unwrap();
    eventually("it is dropped", || {
        network.metrics().dropped_table_full == 2
    });
    for socket in &admitted {
        answers(socket, b"still here");
    }
}

#[test]
fn a_hook_is_not_asked_once_its_listener_is_closed() {
    let network = one_worker(Limits::default());
    let hooked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&hooked);
    let options = ListenOptions::new().admit(move |_, _| {
        seen.fetch_add(1, Relaxed);
        Admission::Admit
    });
    let (listener, _) = listen(&network, options, Transport::Udp);
    let server = listener.local_addr();
    let socket = client(server);
    answers(&socket, b"hello");
    listener.close();
    for _ in 0..5 {
        client(server).send(b"too late").unwrap();
    }
    eventually("they are dropped", || {
        network.metrics().dropped_not_admitted == 5
    });
    // The connection stays, and keeps the socket.
    answers(&socket, b"still here");
    assert_eq!(hooked.load(Relaxed), 1);
}

#[test]
fn datagrams_in_a_hosts_name_do_not_use_up_its_streams_nor_those_that_are_recognised() {
    let limits = AddressLimits::new()
        .with_max_connections(5)
        .with_connections_per_second(5);
    let network = Network::builder()
        .workers(1)
        .address_limits(limits)
        .start()
        .unwrap();
    let (datagrams, _) = listen(&network, ListenOptions::new().admit(hook), Transport::Udp);
    let (streams, _) = listen(&network, ListenOptions::new(), Transport::Tcp);
    let forged: Vec<_> = (0..6).map(|_| client(datagrams.local_addr())).collect();
    for socket in &forged {
        socket.send(b"admit me").unwrap();
    }
    eventually("one is refused", || {
        network.metrics().refused_by_address == 1
    });
    let mut honest = RawClient::connect(streams.local_addr());
    honest.send(b"hello");
    assert_eq!(honest.receive(), b"hello");
    answers(&client(datagrams.local_addr()), b"known");
}

#[test]
fn an_address_has_no_more_connections_than_it_may_and_opens_them_no_faster() {
    let start = |addresses| {
        let network = Network::builder().workers(2).address_limits(addresses);
        network.start().unwrap()
    };
    let few = AddressLimits::new().with_max_connections(3);
    let network = start(few.clone());
    let address = Reports::default().listen(&network, Transport::Tcp, echo);
    let datagrams = Reports::default().listen(&network, Transport::Udp, echo);
    let mut clients: Vec<_> = (0..3).map(|_| RawClient::connect(address)).collect();
    for client in &mut clients {
        client.send(b"in");
        assert_eq!(client.receive(), b"in");
    }
    let peers = [(); 3].map(|()| client(datagrams));
    for peer in &peers {
        answers(peer, b"in");
    }
    assert_eq!(RawClient::connect(address).rest().0, b"");
    client(datagrams).send(b"one too many").unwrap();
    eventually("both are counted", || {
        network.metrics().refused_by_address == 2
    });
    // What this side opens does not count.
    let reports = Reports::default();
    let other = one_worker(Limits::default());
    let away = Reports::default().listen(&other, Transport::Tcp, echo);
    for _ in 0..5 {
        reports.connect(&network, Transport::Tcp, away, |_, _| {});
        reports.opened();
    }
    peers[0].send(b"").unwrap();
    drop(clients.pop());
    eventually("there is room again", || network.metrics().open == 9);
    answers(&client(datagrams), b"next");
    let mut next = RawClient::connect(address);
    next.send(b"next");
    assert_eq!(next.receive(), b"next");

    let exempt = few.with_exempt("127.0.0.0/8".parse().unwrap());
    let network = start(exempt);
    let address = Reports::default().listen(&network, Transport::Tcp, echo);
    let mut clients: Vec<_> = (0..10).map(|_| RawClient::connect(address)).collect();
    for client in &mut clients {
        client.send(b"in");
        assert_eq!(client.receive(), b"in");
    }

    let slow = AddressLimits::new().with_connections_per_second(5);
    let network = start(slow);
    let address = Reports::default().listen(&network, Transport::Tcp, echo);
    let begin = Instant::now();
    let mut served = 0;
    while begin.elapsed() < Duration::from_secs(1) {
        let mut client = RawClient::connect(address);
        // It may be closed already.
        if std::io::Write::write_all(&mut client.stream, &framed(b"in")).is_ok() {
            served += usize::from(!client.some().is_empty());
        }
    }
    assert!((5..=11).contains(&served), "{served} in a second and a bit");
}

#[test]
fn listeners_of_one_network_have_limits_of_their_own() {
    let network = one_worker(Limits::default());
    let chat = Limits::new().with_max_message(100);
    let (chat, _) = listen(&network, ListenOptions::new().limits(chat), Transport::Tcp);
    let admin = Limits::new().with_stream_idle_timeout(Duration::from_millis(200));
    let (admin, _) = listen(&network, ListenOptions::new().limits(admin), Transport::Tcp);
    let (plain, _) = listen(&network, ListenOptions::new(), Transport::Tcp);
    let mut clients = [&chat, &admin, &plain].map(|one| RawClient::connect(one.local_addr()));
    for client in &mut clients {
        client.send(&[1; 100]);
        assert_eq!(client.receive(), [1; 100]);
    }
    for client in &mut clients[1..] {
        client.send(&[1; 101]);
        assert_eq!(client.receive(), [1; 101]);
    }
    clients[0].send(&[1; 101]);
    assert_eq!(clients[0].rest().0, b"");
    assert_eq!(clients[1].rest(), (vec![], true));
    let idle = CloseReason::Timeout(Timeout::Idle);
    eventually("it was idle", || network.metrics().closed(idle) == 1);
    clients[2].send(b"still here");
    assert_eq!(clients[2].receive(), b"still here");
    let short = Limits::new().with_max_datagram(10);
    let (datagrams, _) = listen(&network, ListenOptions::new().limits(short), Transport::Udp);
    let socket = client(datagrams.local_addr());
    answers(&socket, &[1; 10]);
    socket.send(&[1; 11]).unwrap();
    eventually("it is dropped", || network.metrics().dropped_too_long == 1);
    let wrong = Limits::new().with_low_watermark(1 << 30);
    let options = ListenOptions::new().limits(wrong);
    let listened = network.listen_with(options, Transport::Tcp, "127.0.0.1:0", |_| Some(Echo));
    assert!(matches!(listened, Err(Error::Limits(_))));
}

/// Loopback has as many addresses as a flood needs only on Linux.
#[cfg(target_os = "linux")]
mod floods {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    /// Datagrams from thousands of unknown addresses, as fast as this machine makes
    /// them, up to 100,000 a second.
    fn flood(server: SocketAddr, stop: &AtomicBool) -> usize {
        let sockets: Vec<UdpSocket> = (0..1_000_u32)
            .map(|nth| {
                let [_, _, high, low] = nth.to_be_bytes();
                let address = SocketAddr::from(([127, 1, high, low], 0));
                let socket = UdpSocket::bind(address).unwrap();
                socket.connect(server).unwrap();
                socket
            })
            .collect();
        let start = Instant::now();
        let mut sent = 0;
        while !stop.load(Relaxed) {
            for socket in &sockets {
                let _ = socket.send(b"forged");
                sent += 1;
            }
            // No faster than that: a machine with two cores has to serve it, too.
            let due = Duration::from_micros(10 * sent as u64);
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        sent
    }

    #[test]
    fn a_flood_from_unknown_addresses_costs_other_connections_nothing() {
        cubenet_tests::system::raise_descriptors();
        let limits = Limits::new().with_max_peers(500).with_reserved_peers(100);
        let network = one_worker(Limits::default());
        let options = ListenOptions::new()
            .limits(limits)
            .admit(|_, datagram| match datagram {
                [b'k', ..] => Admission::Recognise,
                _ => Admission::Admit,
            });
        let (listener, _) = listen(&network, options, Transport::Udp);
        let server = listener.local_addr();
        let there: Vec<_> = (0..20).map(|_| client(server)).collect();
        for socket in &there {
            answers(socket, b"known");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let flooding = thread::spawn({
            let stop = Arc::clone(&stop);
            move || flood(server, &stop)
        });
        eventually("the table is full", || {
            network.metrics().dropped_table_full > 1_000
        });
        let begin = Instant::now();
        let (mut asked, mut lost) = (0, 0);
        // Longer where the machine is slow.
        while begin.elapsed() < Duration::from_secs(2) || asked <= 100 {
            assert!(begin.elapsed() < 2 * PATIENCE, "{asked} questions");
            for socket in &there {
                socket
                    .set_read_timeout(Some(Duration::from_millis(500)))
                    .unwrap();
                socket.send(b"are you there").unwrap();
                asked += 1;
                // A datagram can be lost before it reaches the server: the kernel's buffer is full.
                lost += usize::from(socket.recv(&mut [0; 100]).is_err());
            }
            // A newcomer that is recognised gets in at once.
            let newcomer = client(server);
            newcomer
                .set_read_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            newcomer.send(b"known").unwrap();
            asked += 1;
            lost += usize::from(newcomer.recv(&mut [0; 100]).is_err());
            newcomer.send(b"").unwrap();
        }
        stop.store(true, Relaxed);
        let sent = flooding.join().unwrap();
        let dropped = network.metrics().dropped_total();
        let kernels = cubenet_tests::system::datagrams_lost(server.port());
        println!("{sent} sent, {dropped} dropped by the network, {kernels} by the kernel");
        println!("{lost} of {asked} questions lost");
        assert!(sent > 20_000, "no flood: {sent} datagrams");
        // What the kernel delivered was answered. How much that is depends on the machine.
        assert!(
            lost <= kernels,
            "{lost} of {asked} lost, {kernels} by the kernel"
        );
        let few = if kernels == 0 { 50 } else { 2 };
        assert!(lost * few < asked, "{lost} of {asked} lost");
        assert_eq!(network.metrics().closed(CloseReason::Overflow), 0);
        for socket in &there {
            answers(socket, b"still here");
        }
    }
}
