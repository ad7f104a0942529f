//! What goes wrong on the network and on its hosts, one thing at a time.

use super::*;
use cubenet_sim::RawStream;

/// The handler of a connect that fails, and with what.
struct Fails(Arc<Mutex<Vec<CloseReason>>>);

impl Handler for Fails {
    fn connected(&mut self, _link: &mut dyn Link) {
        panic!("it is to fail");
    }

    fn connect_failed(&mut self, error: ConnectError) {
        self.0.lock().unwrap().push(error.reason());
    }

    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

#[test]
fn no_host_another_host_and_a_port_without_a_listener() {
    let simulation = Simulation::new(3);
    let (_server, network) = server_and_client(&simulation);
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    for address in ["10.0.0.1:1", "10.9.9.9:7000"] {
        let outcomes = Arc::clone(&outcomes);
        let handler = |_: &Connection| Fails(outcomes);
        network.connect(Transport::Tcp, address, handler).unwrap();
    }
    simulation.run_for(Duration::from_secs(11));
    let timeout = CloseReason::Timeout(Timeout::Connect);
    assert_eq!(*outcomes.lock().unwrap(), [CloseReason::Refused, timeout]);
}

/// A connect whose first SYN-ACK is lost, and the one connection that it leads to.
#[test]
fn a_syn_that_is_sent_again_is_answered_by_the_same_connection() {
    let conditions = Conditions::new().with_latency(Duration::from_millis(100));
    let simulation = Simulation::builder()
        .conditions(conditions)
        .build()
        .unwrap();
    let server = simulation.network(SERVER).start().unwrap();
    let greets = |connection: &Connection| {
        connection.send(connection.id().to_string()).unwrap();
        Some(Echo)
    };
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", greets)
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_millis(50));
    simulation.partition(SERVER, CLIENT);
    simulation.run_for(Duration::from_millis(70));
    simulation.heal(SERVER, CLIENT);
    simulation.run_for(Duration::from_secs(3));
    connection.send(b"ping").unwrap();
    simulation.run_for(Duration::from_secs(3));
    assert_eq!(server.metrics().accepted, 1);
    assert_eq!(client.messages().len(), 2);
    assert_eq!(client.messages()[1], b"ping");
}

#[test]
fn a_partition_holds_everything_up_and_healing_lets_it_go_on() {
    let simulation = Simulation::new(4);
    let (_server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    simulation.partition(SERVER, CLIENT);
    connection.send(b"held up").unwrap();
    simulation.run_for(Duration::from_secs(10));
    assert!(client.messages().is_empty());
    simulation.heal(SERVER, CLIENT);
    simulation.run_for(Duration::from_secs(20));
    assert_eq!(client.messages(), [b"held up"]);
}

#[test]
fn a_peer_that_vanishes_is_noticed_by_its_silence_and_one_that_came_back_by_a_reset() {
    let limits = Limits::new().with_stream_idle_timeout(Duration::from_secs(30));
    for comes_back in [false, true] {
        let simulation = Simulation::new(5);
        let (_server, _network) = server_and_client(&simulation);
        let third: IpAddr = "10.0.0.3".parse().unwrap();
        let network = simulation
            .network(third)
            .limits(limits.clone())
            .start()
            .unwrap();
        let client = Client::default();
        let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
        simulation.run_for(Duration::from_secs(1));
        simulation.crash(SERVER);
        if comes_back {
            let _again = simulation.network(SERVER).start().unwrap();
            simulation.run_for(Duration::from_secs(1));
            assert!(client.closed().is_empty(), "it is not closed yet");
            connection.send(b"are you there").unwrap();
            simulation.run_for(Duration::from_secs(1));
            assert_eq!(client.closed(), [CloseReason::Reset]);
        } else {
            simulation.run_for(Duration::from_secs(28));
            assert!(client.closed().is_empty());
            simulation.run_for(Duration::from_secs(2));
            assert_eq!(client.closed(), [CloseReason::Timeout(Timeout::Idle)]);
        }
    }
}

#[test]
fn a_reader_that_stops_holds_its_peer_up_until_that_gives_up() {
    let simulation = Simulation::new(6);
    let (_server, network) = server_and_client(&simulation);
    let raw = simulation.raw_listen("10.0.0.9:1").unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.9:1");
    simulation.run_for(Duration::from_secs(1));
    let peer = raw.accepted().pop().unwrap();
    peer.stop_reading();
    let mut sent = 0;
    while connection.send([0; 10_000]).is_ok() {
        sent += 1;
        simulation.run_for(Duration::from_millis(10));
    }
    assert_eq!(connection.send([0; 10_000]), Err(SendError::Full));
    assert!(
        (129..=131).contains(&sent),
        "1 MiB queued, 128 KiB unsent, and 128 KiB that the peer has received: {sent}"
    );
    peer.read_on();
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(peer.received().len(), sent * 10_002);
    assert_eq!(client.0.lock().unwrap().writable, 1);
    peer.stop_reading();
    while connection.send([0; 10_000]).is_ok() {}
    simulation.run_for(Duration::from_secs(29));
    assert!(client.closed().is_empty());
    simulation.run_for(Duration::from_secs(2));
    assert_eq!(client.closed(), [CloseReason::Timeout(Timeout::WriteStall)]);
    peer.read_on();
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(peer.end(), Some(RawEnd::Failed(CloseReason::Reset)));
}

#[test]
fn without_descriptors_clients_wait_until_there_is_one() {
    let simulation = Simulation::new(7);
    let server = simulation.network(SERVER).descriptors(3).start().unwrap();
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", |_| Some(Echo))
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let clients: Vec<_> = (0..4).map(|_| Client::default()).collect();
    let connections: Vec<_> = clients
        .iter()
        .map(|client| client.connect(&network, Transport::Tcp, "10.0.0.1:7000"))
        .collect();
    for connection in &connections {
        connection.send(b"hello").unwrap();
    }
    let answered = || {
        clients
            .iter()
            .filter(|client| !client.messages().is_empty())
            .count()
    };
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(answered(), 2);
    assert!(server.metrics().accept_failed > 10);
    simulation.set_descriptors(SERVER, 5);
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(answered(), 4);
}

#[test]
fn a_listener_without_descriptors_tries_again_at_its_pace_for_any_number_of_connects() {
    let simulation = Simulation::new(13);
    let server = simulation.network(SERVER).descriptors(1).start().unwrap();
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", |_| Some(Echo))
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    for _ in 0..500 {
        Client::default().connect(&network, Transport::Tcp, "10.0.0.1:7000");
    }
    simulation.run_for(Duration::from_secs(1));
    let failed = server.metrics().accept_failed;
    assert!((40..=51).contains(&failed), "{failed}");
}

#[test]
fn a_raw_connect_that_was_refused_stays_refused() {
    let simulation = Simulation::new(14);
    let _host = simulation.network(SERVER).start().unwrap();
    let raw = simulation.raw_connect(CLIENT, "10.0.0.1:9").unwrap();
    simulation.run_for(Duration::from_millis(500));
    assert_eq!(raw.end(), Some(RawEnd::Failed(CloseReason::Refused)));
    let listener = simulation.raw_listen("10.0.0.1:9").unwrap();
    simulation.run_for(Duration::from_secs(5));
    assert!(listener.accepted().is_empty());
}

#[test]
fn a_frozen_host_goes_on_where_it_stood() {
    let simulation = Simulation::new(8);
    let (_server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    simulation.freeze(SERVER, Duration::from_secs(3));
    connection.send(b"wait").unwrap();
    simulation.run_for(Duration::from_millis(2_900));
    assert!(client.messages().is_empty());
    simulation.run_for(Duration::from_millis(200));
    assert_eq!(client.messages(), [b"wait"]);
}

#[test]
fn time_never_goes_back_when_a_frozen_host_thaws() {
    let simulation = Simulation::new(12);
    let (_server, _network) = server_and_client(&simulation);
    let raw = simulation.raw_datagrams("10.0.0.9:9").unwrap();
    raw.send_to("10.0.0.1:7000".parse().unwrap(), b"x");
    simulation.run_for(Duration::from_millis(500));
    simulation.freeze(SERVER, Duration::from_secs(500));
    let mut last = simulation.now();
    while simulation.step() {
        assert!(simulation.now() >= last);
        last = simulation.now();
        if last > Instant::from_micros(1_000_000_000) {
            break;
        }
    }
}

#[test]
fn nothing_goes_on_for_ever_about_a_host_that_crashed() {
    let simulation = Simulation::new(18);
    let (_server, network) = server_and_client(&simulation);
    let listener = simulation.raw_listen("10.0.0.9:1").unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.9:1");
    simulation.run_for(Duration::from_millis(10));
    connection.send([0; 50_000]).unwrap();
    simulation.step();
    simulation.crash(CLIENT);
    simulation.run_until_idle();
    drop(listener);
}

#[test]
fn datagrams_that_find_no_room_wait_and_a_refused_send_is_followed_by_writable() {
    let simulation = Simulation::new(21);
    let (server, _network) = server_and_client(&simulation);
    let third: IpAddr = "10.0.0.3".parse().unwrap();
    let limits = Limits::new()
        .with_max_message(500)
        .with_max_datagram(500)
        .with_max_queued(2_000)
        .with_low_watermark(500);
    let network = simulation.network(third).limits(limits).start().unwrap();
    let faults = Faults::new().with_full_buffer(0.9);
    simulation.set_host_faults(third, faults).unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Udp, "10.0.0.1:7000");
    let mut sent = 0;
    while connection.send([sent; 100]) == Ok(()) {
        sent += 1;
    }
    assert_eq!(connection.send([sent; 100]), Err(SendError::Full));
    // Each counts 64 bytes beside its own.
    assert_eq!((sent, connection.queued()), (12, 12 * 164));
    simulation.audit().unwrap();
    simulation.run_for(Duration::from_secs(5));
    assert_eq!(client.0.lock().unwrap().writable, 1);
    assert_eq!(connection.queued(), 0);
    let expected: Vec<_> = (0..sent).map(|number| vec![number; 100]).collect();
    assert_eq!(client.messages(), expected, "in order, as they waited");
    connection.send(b"last").unwrap();
    connection.close();
    simulation.run_for(Duration::from_secs(5));
    assert_eq!(client.closed(), [CloseReason::Local]);
    assert_eq!(
        server.metrics().closed(CloseReason::Peer),
        1,
        "the close datagram waited in the queue"
    );
    simulation.audit().unwrap();
}

/// Closes at the first message, or sends ten.
struct ClosesOrSends;

impl Handler for ClosesOrSends {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if &*message == b"close" {
            return link.close();
        }
        for number in 0..10 {
            link.send(&[number; 100]).unwrap();
        }
    }
}

#[test]
fn a_close_datagram_that_waits_behind_those_of_others_holds_up_the_close() {
    let simulation = Simulation::new(22);
    let network = simulation.network(SERVER).start().unwrap();
    let listener = network.listen(Transport::Udp, (SERVER, 7000), |_| Some(ClosesOrSends));
    let there = listener.unwrap().local_addr();
    let peers = ["10.0.0.8:9", "10.0.0.9:9"];
    let [first, second] = peers.map(|peer| simulation.raw_datagrams(peer).unwrap());
    let full = Faults::new().with_full_buffer(0.999_999_999);
    simulation.set_host_faults(SERVER, full).unwrap();
    first.send_to(there, b"send");
    simulation.run_for(Duration::from_millis(100));
    second.send_to(there, b"close");
    simulation.run_for(Duration::from_millis(100));
    assert_eq!(network.metrics().closed(CloseReason::Local), 0);
    let none = Faults::new();
    simulation.set_host_faults(SERVER, none).unwrap();
    simulation.run_for(Duration::from_secs(5));
    assert_eq!(network.metrics().closed(CloseReason::Local), 1);
    let last: Vec<_> = second
        .received()
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    assert_eq!(last, [b""]);
    assert_eq!(first.received().len(), 10);
    simulation.audit().unwrap();
}

/// A path on which everything is lost.
fn lossy() -> Conditions {
    Conditions::new().with_loss(1.0)
}

#[test]
fn a_connect_whose_answers_are_lost_times_out() {
    let simulation = Simulation::new(31);
    let (server, network) = server_and_client(&simulation);
    simulation.set_path(SERVER, CLIENT, lossy()).unwrap();
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    // One is listened on, and one refuses.
    for address in ["10.0.0.1:7000", "10.0.0.1:1"] {
        let outcomes = Arc::clone(&outcomes);
        let handler = |_: &Connection| Fails(outcomes);
        network.connect(Transport::Tcp, address, handler).unwrap();
    }
    simulation.run_for(Duration::from_secs(90));
    let timeout = CloseReason::Timeout(Timeout::Connect);
    assert_eq!(*outcomes.lock().unwrap(), [timeout, timeout]);
    assert_eq!(server.metrics().accepted, 0, "no handshake was completed");
    assert!(simulation.traffic().control_lost >= 4);
}

#[test]
fn without_acknowledgements_no_more_is_sent_than_a_window() {
    let simulation = Simulation::new(32);
    let (server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(server.metrics().accepted, 1);
    simulation.set_path(SERVER, CLIENT, lossy()).unwrap();
    for _ in 0..1_000 {
        connection.send([7; 1_000]).unwrap();
    }
    simulation.run_for(Duration::from_secs(20));
    let arrived = server.metrics().messages_in;
    assert!((10..200).contains(&arrived), "{arrived} messages");
    assert!(
        connection.queued() > 800_000,
        "{} bytes",
        connection.queued()
    );
    // They come once the way is free.
    let clear = Conditions::default();
    simulation.set_path(SERVER, CLIENT, clear).unwrap();
    simulation.run_for(Duration::from_secs(200));
    assert_eq!(server.metrics().messages_in, 1_000);
}

#[test]
fn a_reset_that_is_lost_is_noticed_at_the_next_message() {
    let simulation = Simulation::new(33);
    let (server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    simulation.partition_one_way(SERVER, CLIENT);
    server.stop(Duration::ZERO);
    simulation.run_for(Duration::from_secs(5));
    assert!(!connection.is_closed(), "it has not seen it");
    simulation.heal(SERVER, CLIENT);
    simulation.run_for(Duration::from_secs(5));
    assert!(!connection.is_closed());
    connection.send(b"are you there?").unwrap();
    simulation.run_for(Duration::from_secs(5));
    assert!(connection.is_closed());
}

#[test]
fn a_listener_accepts_once_the_client_has_acknowledged_the_answer() {
    let conditions = Conditions::new().with_latency(Duration::from_millis(100));
    let builder = Simulation::builder().conditions(conditions);
    let simulation = builder.build().unwrap();
    let (server, network) = server_and_client(&simulation);
    let client = Client::default();
    client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_millis(290));
    assert_eq!(network.metrics().connected, 1);
    assert_eq!(server.metrics().accepted, 0);
    simulation.run_for(Duration::from_millis(20));
    assert_eq!(server.metrics().accepted, 1);
}

#[test]
fn losses_come_in_bursts() {
    // One packet in ten is lost either way.
    let single = Conditions::new().with_loss(0.1);
    let bursts = Conditions::new().with_bursts(Some(
        Bursts::new()
            .with_begin(0.1 / 9.0)
            .with_end(0.1)
            .with_loss(1.0),
    ));
    let [(lost, runs), (lost_in_bursts, bursts)] = [single, bursts].map(|conditions| {
        let builder = Simulation::builder().seed(34).conditions(conditions);
        let simulation = builder.build().unwrap();
        let sender = simulation.raw_datagrams((CLIENT, 0)).unwrap();
        let receiver = simulation.raw_datagrams((SERVER, 9)).unwrap();
        let (mut lost, mut runs, mut before) = (0, 0, true);
        for _ in 0..20_000 {
            sender.send_to(receiver.local_addr(), b"x");
            simulation.run_for(Duration::from_millis(1));
            let arrived = !receiver.received().is_empty();
            lost += usize::from(!arrived);
            runs += usize::from(before && !arrived);
            before = arrived;
        }
        (lost, runs)
    });
    for lost in [lost, lost_in_bursts] {
        assert!((1_600..2_400).contains(&lost), "{lost} of 20,000");
    }
    assert!(runs > 1_400, "{lost} lost in {runs} runs");
    assert!(bursts < 350, "{lost_in_bursts} lost in {bursts} runs");
}

#[test]
fn a_peer_that_completes_its_messages_is_not_closed_for_one_that_does_not() {
    let simulation = Simulation::new(31);
    let limits = Limits::new().with_max_held_total(120_000);
    let server = simulation.network(SERVER).limits(limits).start().unwrap();
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", |_| Some(Echo))
        .unwrap();
    let begin_frame = |stream: &RawStream, len: u16, part: usize| {
        stream.write(&len.to_be_bytes());
        stream.write(&vec![1; part]);
        simulation.run_for(Duration::from_millis(100));
    };
    let connect = || simulation.raw_connect(CLIENT, "10.0.0.1:7000").unwrap();
    let (completes, first, second) = (connect(), connect(), connect());
    begin_frame(&completes, 31_000, 30_000);
    begin_frame(&first, 61_000, 60_000);
    // The rest of a message, and the greater part of the next with it.
    let mut rest_and_more = vec![1; 1_000];
    rest_and_more.extend(31_000_u16.to_be_bytes());
    rest_and_more.extend(vec![1; 30_000]);
    completes.write(&rest_and_more);
    simulation.run_for(Duration::from_millis(100));
    assert_eq!(completes.received().len(), 2 + 31_000);
    begin_frame(&second, 61_000, 60_000);
    let reset = Some(RawEnd::Failed(CloseReason::Reset));
    assert_eq!(
        [completes.end(), first.end(), second.end()],
        [None, reset, None]
    );
}

/// Pauses at its first message; keeps the handle of its connection.
struct Pauses;

impl Handler for Pauses {
    fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
        link.pause();
    }
}

/// Many short messages.
fn short_messages(count: usize) -> Vec<u8> {
    [&[0, 50][..], &[7; 50]].concat().repeat(count)
}

#[test]
fn input_that_a_paused_connection_held_is_let_go_when_it_closes() {
    let simulation = Simulation::new(32);
    let server = simulation.network(SERVER).start().unwrap();
    let kept = Arc::<Mutex<Vec<Connection>>>::default();
    let keep = Arc::clone(&kept);
    let accepted = move |connection: &Connection| {
        keep.lock().unwrap().push(connection.clone());
        Some(Pauses)
    };
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", accepted)
        .unwrap();
    let peer = simulation.raw_connect(CLIENT, "10.0.0.1:7000").unwrap();
    peer.write(&short_messages(20));
    simulation.run_for(Duration::from_secs(1));
    assert!(server.metrics().held_bytes > 0);
    let connection = kept.lock().unwrap().pop().unwrap();
    connection.close();
    simulation.run_for(Duration::from_secs(1));
    assert_eq!((server.metrics().held_bytes, server.metrics().open), (0, 1));
    simulation.audit().unwrap();
}

/// Closes at its first message.
struct Closes;

impl Handler for Closes {
    fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
        link.close();
    }
}

#[test]
fn input_of_connections_that_closed_closes_no_other() {
    let simulation = Simulation::new(33);
    let limits = Limits::new().with_max_held_total(200_000);
    let server = simulation.network(SERVER).limits(limits).start().unwrap();
    let listen = |port, accepted: fn(&Connection) -> Option<Closes>| {
        server.listen(Transport::Tcp, ([10, 0, 0, 1], port), accepted)
    };
    listen(7000, |_| Some(Closes)).unwrap();
    let slow = simulation.raw_connect(CLIENT, "10.0.0.1:7000").unwrap();
    slow.write(&[&[0xff, 0xf0][..], &vec![1; 60_000]].concat());
    simulation.run_for(Duration::from_secs(1));
    let mut others = Vec::new();
    for _ in 0..130 {
        let other = simulation.raw_connect(CLIENT, "10.0.0.1:7000").unwrap();
        other.write(&short_messages(1_000));
        other.stop_reading();
        others.push(other);
        simulation.run_for(Duration::from_millis(10));
        simulation.audit().unwrap();
    }
    assert_eq!(slow.end(), None);
}
