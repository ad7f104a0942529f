//! What peers can make the mio driver hold, in its own memory and in the kernel's.

use cubenet_mio::{CloseReason, Connection, Handler, Limits, Link, Message, Transport};
use cubenet_tests::{
    Event, RawClient, Reports, echo, eventually, framed, network_with, one_worker, pattern,
};
use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

fn held_at_most(max_held_total: usize) -> Limits {
    Limits::new().with_max_held_total(max_held_total)
}

#[test]
fn all_partial_frames_together_are_bounded_and_the_oldest_give_way() {
    let network = network_with(held_at_most(1 << 20));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, echo);
    // Each one byte short of the longest frame: 100 of them are six times what may be held.
    let frame = framed(&pattern(65_535));
    let mut greedy = Vec::new();
    for nth in 1..=100 {
        let mut client = RawClient::connect(address);
        client.write(&frame[..frame.len() - 1]);
        greedy.push(client);
        // Each may have another worker, which reads it before the next comes.
        eventually("its part is held", || {
            let metrics = network.metrics();
            let closed = metrics.closed(CloseReason::Overflow);
            metrics.held_bytes + 65_600 * closed >= 65_534 * nth
        });
        // The worker that reads is not always the one that gives up connections.
        let held = network.metrics().held_bytes;
        assert!(held <= 2 << 20, "{held} bytes are held");
        let at_rest = || network.metrics().held_bytes <= (1 << 20) + 2 * (128 << 10);
        eventually("enough are given up", at_rest);
    }
    let overflow = || network.metrics().closed(CloseReason::Overflow);
    eventually("enough are given up", || {
        network.metrics().held_bytes <= 1 << 20 && overflow() >= 80
    });
    // A peer that sends whole frames is served all the while.
    let mut honest = RawClient::connect(address);
    for _ in 0..20 {
        honest.write(&frame[..30_000]);
        honest.write(&frame[30_000..]);
        assert_eq!(honest.receive(), pattern(65_535));
    }
    // The last of the greedy is among those that stayed.
    let last = greedy.last_mut().unwrap();
    last.write(&frame[frame.len() - 1..]);
    assert_eq!(last.receive(), pattern(65_535));
    drop((greedy, honest));
    eventually("nothing is held", || network.metrics().held_bytes == 0);
}

#[test]
fn partial_frames_on_one_worker_do_not_cost_the_connections_of_another() {
    let network = network_with(held_at_most(1 << 20));
    let server = Reports::default();
    let (sender, workers) = channel();
    let reporter = server.reporter(echo);
    let accept = move |connection: &Connection| {
        let worker = thread::current().id();
        sender.send((connection.peer_addr(), worker)).unwrap();
        Some(reporter.another())
    };
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accept)
        .unwrap();
    let frame = framed(&pattern(65_535));
    let clients: Vec<_> = (0..34)
        .map(|_| RawClient::connect(listener.local_addr()))
        .collect();
    let workers: HashMap<_, _> = workers.iter().take(clients.len()).collect();
    // Those that hold input are all on one.
    let of_first = |client: &RawClient| {
        let worker = |client: &RawClient| workers[&client.stream.local_addr().unwrap()];
        worker(client) == worker(&clients[0])
    };
    let on_first: Vec<_> = clients.iter().map(of_first).collect();
    let (mut greedy, mut honest) = (Vec::new(), Vec::new());
    for (client, on_first) in clients.into_iter().zip(on_first) {
        let group = if on_first { &mut greedy } else { &mut honest };
        group.push(client);
    }
    assert!(greedy.len() >= 16 && honest.len() >= 16, "on two workers");
    for greedy in &mut greedy {
        greedy.write(&frame[..frame.len() - 1]);
    }
    let overflow = || network.metrics().closed(CloseReason::Overflow);
    eventually("the first is given up", || overflow() > 0);
    let (given_up, honest) = (overflow(), &mut honest[0]);
    honest.write(&frame[..60_000]);
    eventually("it is over the bound", || overflow() > given_up);
    honest.write(&frame[60_000..]);
    assert_eq!(honest.receive(), pattern(65_535));
}

#[test]
fn a_busy_stream_is_not_the_one_that_has_held_input_longest() {
    let network = one_worker(held_at_most(1 << 20));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, echo);
    let frame = framed(&pattern(65_535));
    let mut busy = RawClient::connect(address);
    // Always in the middle of a frame.
    let begun = &framed(&pattern(10_000))[..5_000];
    let rest = &framed(&pattern(10_000))[5_000..];
    busy.write(begun);
    let mut greedy = Vec::new();
    for nth in 1..=30 {
        busy.write(&[rest, begun].concat());
        assert_eq!(busy.receive(), pattern(10_000));
        let mut client = RawClient::connect(address);
        client.write(&frame[..65_000]);
        greedy.push(client);
        // So that it has held its part when the busy one completes its next message.
        eventually("its part is held", || {
            let metrics = network.metrics();
            let closed = metrics.closed(CloseReason::Overflow);
            metrics.held_bytes + 65_000 * closed >= 65_000 * nth
        });
    }
    eventually("some are given up", || {
        network.metrics().closed(CloseReason::Overflow) >= 10
    });
    busy.write(rest);
    assert_eq!(busy.receive(), pattern(10_000));
}

#[test]
fn input_of_paused_connections_is_counted_and_bounded() {
    let limits = Limits::new().with_max_held_total(256 << 10);
    let network = network_with(limits);
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, |link, _| link.pause());
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = RawClient::connect(address);
        client.stream.set_nonblocking(true).unwrap();
        let bytes = [framed(b"pause"), framed(&[1; 1_000]).repeat(60)].concat();
        let _ = client.stream.write(&bytes);
        clients.push(client);
    }
    eventually("all have paused, or been given up", || {
        let metrics = network.metrics();
        let paused = metrics.messages_in;
        paused == 40 && metrics.held_bytes <= 256 << 10
    });
    let held = network.metrics().held_bytes;
    assert!(held > 0, "what was read is counted");
    for _ in 0..200 {
        if let Some(Event::Opened(connection)) = server.next_within(Duration::from_millis(1)) {
            connection.abort();
        }
    }
    eventually("nothing is held", || network.metrics().held_bytes == 0);
}

/// On request, sends until `send` refuses.
struct Floods(usize);
impl Handler for Floods {
    fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
        while self.0 > 0 && link.send(&pattern(10_000)).is_ok() {
            self.0 -= 1;
        }
    }
}

#[test]
fn a_peer_that_reads_nothing_holds_little_of_the_kernels_memory() {
    let limits = Limits::new().with_max_queued(16 << 20);
    // Buffers of the system's own choice, which grow.
    let network = one_worker(limits);
    let accepted = |_: &Connection| Some(Floods(800));
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    let mut client = RawClient::connect(listener.local_addr());
    client.send(b"go");
    eventually("all is accepted", || network.metrics().messages_out == 800);
    std::thread::sleep(Duration::from_millis(200));
    let queued = network.metrics().queued_bytes as usize;
    let of_the_kernel = 800 * 10_002 - queued;
    // The client's own buffer, what is under way, and the 128 KiB that are not; the rest is room
    // for how the kernel counts.
    assert!(
        of_the_kernel < 1 << 20,
        "the kernel holds {of_the_kernel} bytes"
    );
    for _ in 0..800 {
        assert_eq!(client.receive(), pattern(10_000));
    }
}
