//! What networks and listeners count.

use cubenet_mio::{
    AddressLimits, CloseReason, Connection, Handler, Limits, Link, Listener, Message, MetricValue,
    Metrics, Network, Transport,
};
use cubenet_tests::{PATIENCE, Reports, eventually, ignore, network};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::Duration;

/// Sends messages back, after this time, which it also takes to close.
struct Echo(Duration);

impl Handler for Echo {
    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        sleep(self.0);
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        sleep(self.0);
        let _ = link.send(&message);
    }
}

fn listen(network: &Network, transport: Transport) -> Listener {
    let accepted = |_: &Connection| Some(Echo(Duration::ZERO));
    network.listen(transport, "127.0.0.1:0", accepted).unwrap()
}

/// Has this many messages of ten bytes sent back.
fn talk(client: &Network, listener: &Listener, messages: usize) -> (Reports, Connection) {
    let reports = Reports::default();
    let (transport, address) = (listener.transport(), listener.local_addr());
    let connection = reports.connect(client, transport, address, ignore);
    reports.opened();
    for _ in 0..messages {
        connection.send(b"ten bytes.").unwrap();
        assert_eq!(reports.received(), b"ten bytes.");
    }
    (reports, connection)
}

fn messages(metrics: &Metrics) -> (u64, u64, u64, u64) {
    let Metrics {
        messages_in,
        messages_out,
        bytes_in,
        bytes_out,
        ..
    } = metrics;
    (*messages_in, *messages_out, *bytes_in, *bytes_out)
}

#[test]
fn each_listener_counts_its_own_and_the_network_counts_all() {
    let (server, client) = (network(), network());
    for transport in [Transport::Tcp, Transport::Udp] {
        let [first, second] = [(); 2].map(|()| listen(&server, transport));
        let before = server.metrics();
        let kept = talk(&client, &first, 7);
        let (_, closed) = talk(&client, &second, 11);
        closed.close();
        eventually("it closes", || second.metrics().open == 0);
        // A time for each read of the socket, and one for each callback besides. What is sent is counted
        // once it has left.
        eventually("all is counted", || {
            let (one, two) = (first.metrics(), second.metrics());
            one.handler_time.count() >= 7 && two.handler_time.count() >= 11
        });
        let (one, two) = (first.metrics(), second.metrics());
        assert_eq!(messages(&one), (7, 7, 70, 70));
        assert_eq!(messages(&two), (11, 11, 110, 110));
        assert_eq!((one.open, one.accepted, one.closed_total()), (1, 1, 0));
        assert_eq!((two.open, two.accepted, two.closed_total()), (0, 1, 1));
        assert_eq!(one.loop_delay, None);
        // Those of a listener that is closed are not forgotten, whether there are connections or not.
        first.close();
        second.close();
        let network = server.metrics();
        assert_eq!(network.accepted, before.accepted + 2);
        let (of_both, earlier) = (messages(&network), messages(&before));
        assert_eq!(of_both.0 - earlier.0, 18);
        assert!(network.loop_delay.is_some_and(|delay| delay.count() > 0));
        let (_reports, kept) = kept;
        kept.close();
        eventually("all close", || server.metrics().open == 0);
        assert_eq!(server.metrics().closed_total(), before.closed_total() + 2);
    }
    assert_eq!(client.metrics().connected, 4);
    eventually("all is counted", || {
        messages(&client.metrics()) == (36, 36, 360, 360)
    });
}

#[test]
fn a_refusal_has_its_reason() {
    let limits = Limits::new().with_max_connections(2);
    let addresses = AddressLimits::new().with_max_connections(1);
    let builder = || Network::builder().workers(1);
    let client = network();
    let refusals = |listener: &Listener| {
        let metrics = listener.metrics();
        [
            metrics.refused_by_application(),
            metrics.refused_by_limit,
            metrics.refused_by_address,
        ]
    };

    let server = builder().limits(limits.clone()).start().unwrap();
    let listener = listen(&server, Transport::Tcp);
    assert_eq!(listener.metrics().open_limit, 2);
    let others = [(); 2].map(|()| talk(&client, &listener, 1));
    let reports = Reports::default();
    reports.connect(&client, Transport::Tcp, listener.local_addr(), ignore);
    eventually("it is refused", || refusals(&listener) == [0, 1, 0]);
    drop(others);

    let server = builder().address_limits(addresses).start().unwrap();
    let listener = listen(&server, Transport::Tcp);
    let _other = talk(&client, &listener, 1);
    let reports = Reports::default();
    reports.connect(&client, Transport::Tcp, listener.local_addr(), ignore);
    eventually("it is refused", || refusals(&listener) == [0, 0, 1]);

    let server = builder().start().unwrap();
    for transport in [Transport::Tcp, Transport::Udp] {
        let none = |_: &Connection| None::<Echo>;
        let listener = server.listen(transport, "127.0.0.1:0", none).unwrap();
        let reports = Reports::default();
        let connection = reports.connect(&client, transport, listener.local_addr(), ignore);
        let _ = connection.send(b"hello");
        eventually("it is refused", || refusals(&listener) == [1, 0, 0]);
    }
    assert_eq!(server.metrics().refused, 2);
}

#[test]
fn a_slow_handler_shows_in_the_times() {
    let slow = Duration::from_millis(30);
    let (server, client) = (network(), network());
    for transport in [Transport::Tcp, Transport::Udp] {
        let accepted = move |_: &Connection| Some(Echo(slow));
        let listener = server.listen(transport, "127.0.0.1:0", accepted);
        let listener = listener.unwrap();
        let (_reports, connection) = talk(&client, &listener, 3);
        eventually("all are counted", || {
            listener.metrics().handler_time.sum() >= 3 * slow
        });
        let handler = listener.metrics().handler_time;
        let is_slow = |(most, count): &(Option<Duration>, u64)| {
            most.is_none_or(|most| most >= slow) && *count > 0
        };
        assert!(handler.steps().any(|step| is_slow(&step)), "{handler:?}");
        let loops = || server.metrics().loop_delay.unwrap().sum();
        eventually("the loop was as slow", || loops() >= 3 * slow);
        // Asked for by another thread.
        let (handlers, before) = (handler.sum(), loops());
        connection.close();
        eventually("so is the close", || {
            listener.metrics().handler_time.sum() >= handlers + slow
        });
        eventually("and the loop", || loops() >= before + slow);
    }
}

#[test]
fn what_waits_and_what_is_held_is_counted_by_listener() {
    let server = Network::builder()
        .workers(1)
        .stream_buffer(4_096)
        .start()
        .unwrap();
    let (opened, connections) = channel();
    let accepted = move |connection: &Connection| {
        opened.send(connection.clone()).unwrap();
        Some(Echo(Duration::ZERO))
    };
    let listener = server.listen(Transport::Tcp, "127.0.0.1:0", accepted);
    let listener = listener.unwrap();
    let other = listen(&server, Transport::Tcp);
    let mut raw = std::net::TcpStream::connect(listener.local_addr()).unwrap();
    let connection = connections.recv_timeout(PATIENCE).unwrap();
    // A part of a frame arrives, and the client reads nothing.
    std::io::Write::write_all(&mut raw, &[0, 100, 1, 2, 3]).unwrap();
    eventually("a part is held", || listener.metrics().held_bytes > 0);
    let message = [0; 10_000];
    while connection.queued() < 100_000 {
        connection.send(message).unwrap();
    }
    eventually("it waits", || listener.metrics().queued_bytes >= 100_000);
    let (of_listener, of_network) = (listener.metrics(), server.metrics());
    assert_eq!(of_listener.queued_bytes, of_network.queued_bytes);
    assert_eq!(of_listener.held_bytes, of_network.held_bytes);
    let of_other = other.metrics();
    assert_eq!(
        (of_other.queued_bytes, of_other.held_bytes, of_other.open),
        (0, 0, 0)
    );
    drop(raw);
    eventually("nothing waits any more", || {
        let metrics = listener.metrics();
        (metrics.queued_bytes, metrics.held_bytes, metrics.open) == (0, 0, 0)
    });
}

#[test]
fn metrics_can_be_collected_without_knowing_their_names() {
    let (server, client) = (network(), network());
    let listener = listen(&server, Transport::Tcp);
    let _client = talk(&client, &listener, 5);
    let metrics = server.metrics();
    let number = |name: &str| {
        let found = metrics.iter().find(|metric| metric.name == name).unwrap();
        match found.value {
            MetricValue::Number(number) => number,
            MetricValue::Histogram(histogram) => histogram.count(),
            _ => unreachable!("there is no other"),
        }
    };
    assert_eq!(number("messages_received"), 5, "{metrics}");
    assert_eq!(number("received"), 50);
    assert_eq!(number("connections_open"), 1);
    assert_eq!(
        number("connections_limit"),
        Limits::new().max_connections() as u64
    );
    assert!(number("handler") >= 5);
}
