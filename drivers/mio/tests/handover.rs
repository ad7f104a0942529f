//! Listeners on sockets that are there already, and sockets that go from one process to the next while clients
//! come and go.

#![cfg(unix)]

use cubenet_mio::handover::{Offer, take};
use cubenet_mio::{
    Connection, Error, FullPolicy, Handler, Limits, Link, ListenOptions, ListenSockets, Listener,
    Message, Network, Transport,
};
use cubenet_tests::process::{Server, example};
use cubenet_tests::system::open_descriptors;
use cubenet_tests::{PATIENCE, RawClient, Reports, eventually, have, ignore, network, unused_port};
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::Duration;

/// One test at a time: one of them counts the descriptors of the process.
static ALONE: Mutex<()> = Mutex::new(());

struct Echo;

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

// As listeners want it.
#[allow(clippy::unnecessary_wraps)]
fn accepted(_: &Connection) -> Option<Echo> {
    Some(Echo)
}

fn on(network: &Network, sockets: impl Into<ListenSockets>) -> Result<Listener, Error> {
    network.listen_on(ListenOptions::new(), sockets, accepted)
}

fn both(network: &Network) -> [Listener; 2] {
    let tcp = network.listen(Transport::Tcp, "127.0.0.1:0", accepted);
    let tcp = tcp.unwrap();
    let udp = network.listen(Transport::Udp, tcp.local_addr(), accepted);
    [tcp, udp.expect("no other test has the port")]
}

/// Sends a message and waits for it to come back.
fn ping(client: &Network, transport: Transport, address: SocketAddr) {
    let reports = Reports::default();
    let connection = reports.connect(client, transport, address, ignore);
    connection.send(b"there and back").unwrap();
    reports.opened();
    assert_eq!(reports.received(), b"there and back");
    connection.close();
}

/// Clients that come, say something and go, one after another, until they are to stop.
struct Clients<'s> {
    stops: &'s AtomicBool,
    served: &'s [AtomicU64; 2],
    address: SocketAddr,
}

impl Clients<'_> {
    /// Each has a connection of its own, and is answered.
    fn streams(&self) {
        while !self.stops.load(Relaxed) {
            let mut client = RawClient::connect(self.address);
            client.send(b"hello");
            assert_eq!(client.receive(), b"hello");
            self.served[0].fetch_add(1, Relaxed);
        }
    }

    /// One peer, whose every datagram is answered: whichever process has it.
    fn datagrams(&self) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 16];
        while !self.stops.load(Relaxed) {
            let number = self.served[1].load(Relaxed).to_be_bytes();
            socket.send(&number).unwrap();
            let len = socket.recv(&mut answer).expect("it is answered");
            assert_eq!(answer[..len], number);
            self.served[1].fetch_add(1, Relaxed);
        }
    }
}

/// Runs `replace` while clients come and go. Returns how many of each transport were served.
fn under_clients(address: SocketAddr, replace: impl FnOnce()) -> [u64; 2] {
    let (stops, served) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 2]);
    let clients = Clients {
        stops: &stops,
        served: &served,
        address,
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| clients.streams());
            scope.spawn(|| clients.datagrams());
        }
        replace();
        stops.store(true, Relaxed);
    });
    served.map(|served| served.load(Relaxed))
}

#[test]
fn a_listener_can_have_a_socket_of_the_standard_library() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (server, client) = (network(), network());
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    // It comes before anything accepts.
    let mut early = RawClient::connect(address);
    early.send(b"early");
    let udp = UdpSocket::bind(address).unwrap();
    let listeners = [on(&server, tcp).unwrap(), on(&server, udp).unwrap()];
    assert_eq!(early.receive(), b"early");
    for listener in listeners {
        assert_eq!(listener.local_addr(), address);
        ping(&client, listener.transport(), address);
        assert!(listener.metrics().accepted > 0);
        listener.close();
    }
    eventually("the address is free", || UdpSocket::bind(address).is_ok());
    TcpListener::bind(address).expect("it is free as well");
}

#[test]
fn a_socket_of_another_kind_is_refused_with_what_is_wrong() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = network();
    let udp = || UdpSocket::bind("127.0.0.1:0").unwrap();
    let disguised = TcpListener::from(OwnedFd::from(udp()));
    let local = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let local = UdpSocket::from(OwnedFd::from(local));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let connected = udp();
    connected.connect("127.0.0.1:9").unwrap();
    let wrong: [(ListenSockets, &str); 6] = [
        (
            TcpListener::from(OwnedFd::from(connection)).into(),
            "does not listen",
        ),
        (connected.into(), "connected to one peer"),
        (disguised.into(), "none of tcp"),
        (ListenSockets::datagrams([]), "there is none"),
        (ListenSockets::datagrams([udp(), udp()]), "one address"),
        (local.into(), "Unix socket"),
    ];
    for (sockets, problem) in wrong {
        match on(&server, sockets) {
            Err(Error::Listen { source, .. }) => {
                assert_eq!(source.kind(), ErrorKind::InvalidInput);
                assert!(source.to_string().contains(problem), "{source}");
            }
            other => panic!("instead of an error: {other:?}"),
        }
    }
}

#[test]
fn several_datagram_sockets_cannot_evict() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = network();
    let several = server.listen(Transport::Udp, "127.0.0.1:0", accepted);
    let sockets = several.unwrap().sockets().unwrap();
    let evicts = FullPolicy::EvictIdleFor(Duration::from_secs(1));
    let limits = Limits::new().with_full_policy(evicts);
    let options = ListenOptions::new().limits(limits);
    match server.listen_on(options, sockets, accepted) {
        Err(Error::Listen { source, .. }) => {
            assert!(source.to_string().contains("evicts"), "{source}");
        }
        other => panic!("instead of an error: {other:?}"),
    }
}

#[test]
fn a_listener_that_was_closed_can_be_left() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (server, client) = (network(), network());
    for listener in both(&server) {
        let reports = Reports::default();
        let (transport, address) = (listener.transport(), listener.local_addr());
        let connection = reports.connect(&client, transport, address, ignore);
        connection.send(b"hello").unwrap();
        reports.opened();
        assert_eq!(reports.received(), b"hello");
        listener.clone().close();
        let began = std::time::Instant::now();
        listener.clone().leave();
        listener.leave();
        assert!(began.elapsed() < PATIENCE, "it does not wait for its peers");
        if transport == Transport::Udp {
            eventually("they end", || server.metrics().open == 0);
        } else {
            // Streams stay.
            connection.send(b"still there").unwrap();
            assert_eq!(reports.received(), b"still there");
            connection.close();
            eventually("it closes", || server.metrics().open == 0);
        }
    }
}

#[test]
fn a_listener_is_left_while_its_network_stops() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let client = network();
    for _ in 0..20 {
        let server = network();
        let listeners = both(&server);
        for listener in &listeners {
            ping(&client, listener.transport(), listener.local_addr());
        }
        thread::scope(|scope| {
            scope.spawn(|| server.stop(Duration::from_millis(5)));
            for listener in listeners {
                scope.spawn(|| listener.leave());
            }
        });
    }
}

#[test]
fn sockets_go_from_one_network_to_the_next_and_no_client_notices() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handover");
    assert!(take(&path).unwrap().is_none(), "there is none to replace");
    let first = network();
    let mut listeners = both(&first);
    let address = listeners[0].local_addr();
    let mut serving = first;
    let mut open = None;
    let served = under_clients(address, || {
        for round in 0..10 {
            let offer = Offer::new(&path).unwrap();
            let next = network();
            let taken = thread::scope(|scope| {
                let offered = [&listeners[0], &listeners[1]];
                let wait = scope.spawn(move || offer.wait(&offered));
                let mut taken = take(&path).unwrap().expect("one waits");
                let sockets = taken.sockets();
                let taken_over: Vec<Listener> = sockets
                    .into_iter()
                    .map(|one| on(&next, one).unwrap())
                    .collect();
                // Both serve for a while.
                sleep(Duration::from_millis(20));
                taken.ready().unwrap();
                wait.join().unwrap().unwrap();
                taken_over
            });
            for listener in listeners.clone() {
                listener.leave();
            }
            let left = listeners.each_ref().map(|one| one.metrics().accepted);
            sleep(Duration::from_millis(20));
            // Nothing of the next one's reaches it any more, nor wakes it up.
            eventually("its clients go", || serving.metrics().open == 0);
            let loops = |network: &Network| network.metrics().loop_delay.unwrap().count();
            let before = loops(&serving);
            sleep(Duration::from_millis(30));
            assert_eq!(loops(&serving), before, "round {round}");
            assert_eq!(listeners.each_ref().map(|one| one.metrics().accepted), left);
            serving.stop(Duration::ZERO);
            listeners = taken.try_into().expect("there were two");
            assert_eq!(listeners.each_ref().map(Listener::local_addr), [address; 2]);
            serving = next;
            // Those of clients come and go.
            if round == 0 {
                open = open_descriptors();
            }
        }
    });
    assert!(served[0] > 100 && served[1] > 100, "{served:?}");
    println!("{served:?} served meanwhile");
    if let (Some(before), Some(after)) = (open, open_descriptors()) {
        assert!(after <= before + 2, "{before} descriptors, then {after}");
    }
}

#[test]
fn a_process_that_takes_the_sockets_and_fails_changes_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handover");
    let (server, client) = (network(), network());
    let listeners = both(&server);
    let address = listeners[0].local_addr();
    let offer = Offer::new(&path).unwrap();
    thread::scope(|scope| {
        let offered = [&listeners[0], &listeners[1]];
        let wait = scope.spawn(move || offer.wait(&offered));
        for _ in 0..3 {
            drop(take(&path).unwrap().expect("one waits"));
            ping(&client, Transport::Tcp, address);
            ping(&client, Transport::Udp, address);
        }
        // Another that says something else.
        let mut other = std::os::unix::net::UnixStream::connect(&path).unwrap();
        other.write_all(b"?").unwrap();
        let taken = take(&path).unwrap().expect("it waits on");
        taken.ready().unwrap();
        wait.join().unwrap().unwrap();
    });
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = Offer::new(folder.path().join("file")).unwrap_err();
    assert!(error.to_string().contains("is no socket"), "{error}");
}

/// A process of the example `echo`, which hands over what it has.
struct Generation {
    server: Server,
    address: SocketAddr,
}

impl Generation {
    fn start(path: &PathBuf, port: u16, metrics: u16) -> Self {
        let mut server = Server::start(
            example("echo")
                .args(["--listen", &format!("127.0.0.1:{port}")])
                .args(["--metrics", &format!("127.0.0.1:{metrics}")])
                .arg("--handover")
                .arg(path),
        );
        let address = server.address();
        assert_eq!(server.address(), address, "UDP listens, too");
        Generation { server, address }
    }

    fn descriptors(&self) -> Option<usize> {
        let folder = format!("/proc/{}/fd", self.server.id());
        Some(std::fs::read_dir(folder).ok()?.count())
    }
}

#[test]
fn five_processes_follow_each_other_and_no_client_notices() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handover");
    let metrics = unused_port();
    let mut serving = Generation::start(&path, unused_port(), metrics);
    let address = serving.address;
    let mut counts = Vec::new();
    let served = under_clients(address, || {
        for _ in 0..5 {
            eventually("the next can come", || path.exists());
            // Its port is of no effect.
            let next = Generation::start(&path, 0, metrics);
            assert_eq!(next.address, address);
            // It ends by itself, once its clients have gone.
            let before = std::mem::replace(&mut serving, next);
            before.server.end();
            sleep(Duration::from_millis(100));
        }
    });
    assert!(served[0] > 100 && served[1] > 100, "{served:?}");
    println!("{served:?} served meanwhile");
    // Without clients, the last one has as many descriptors as the one before it had.
    for _ in 0..2 {
        sleep(Duration::from_millis(200));
        counts.extend(serving.descriptors());
        let next = Generation::start(&path, 0, metrics);
        let before = std::mem::replace(&mut serving, next);
        before.server.end();
    }
    assert!(
        counts.windows(2).all(|pair| pair[0] == pair[1]),
        "{counts:?}"
    );
    serving.server.interrupt();
}

#[test]
fn sockets_that_systemd_has_opened_are_used() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut probe = Command::new("systemd-socket-activate");
    if !have("systemd-socket-activate", probe.arg("--version")) {
        return;
    }
    let address = format!("127.0.0.1:{}", unused_port());
    let echo = example("echo");
    let mut server = Server::start(
        Command::new("systemd-socket-activate")
            .args(["--listen", &address])
            .arg(echo.get_program())
            // Another, which it must not use.
            .args(["--listen", "127.0.0.1:0", "--transport", "tcp"]),
    );
    let address: SocketAddr = address.parse().unwrap();
    eventually("it listens", || {
        std::net::TcpStream::connect(address).is_ok()
    });
    assert_eq!(server.address(), address);
    let client = network();
    ping(&client, Transport::Tcp, address);
    server.interrupt();
}

#[test]
fn systemd_hears_when_a_server_listens_and_when_it_stops() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let notified = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut echo = example("echo");
    let server = Server::start(
        echo.args(["--listen", "127.0.0.1:0"])
            .env("NOTIFY_SOCKET", &path),
    );
    let mut heard = [0; 100];
    let mut hear = || {
        let len = notified.recv(&mut heard).expect("it says so");
        String::from_utf8_lossy(&heard[..len]).trim().to_owned()
    };
    assert_eq!(hear(), "READY=1");
    server.signal("TERM");
    assert_eq!(hear(), "STOPPING=1");
    server.end();
}

/// With the example in the place of the program.
#[test]
fn the_units_of_the_book_are_well_formed_and_hardened() {
    if !have(
        "systemd-analyze",
        Command::new("systemd-analyze").arg("--version"),
    ) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = example("lobby").get_program().to_owned();
    let units = ["lobby.service", "lobby.socket"].map(|name| {
        let unit = [env!("CARGO_MANIFEST_DIR"), "../../docs/systemd", name];
        let unit = std::fs::read_to_string(unit.iter().collect::<PathBuf>()).unwrap();
        let unit = unit.replace("/usr/local/bin/lobby", program.to_str().unwrap());
        let path = folder.path().join(name);
        std::fs::write(&path, unit).unwrap();
        path
    });
    let analyze = |arguments: &[&str], units: &[PathBuf]| {
        let mut analyze = Command::new("systemd-analyze");
        let said = analyze.args(arguments).args(units).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        assert!(said.stderr.is_empty(), "{said:?}");
    };
    analyze(&["verify"], &units);
    // From 0, which is best, to 100.
    analyze(
        &["security", "--offline=true", "--threshold=20", "--no-pager"],
        &units[..1],
    );
}
