//! What must hold when a run is over.

use crate::world::{World, lock};
use cubenet_mio::{CloseReason, Connection, Handler, Link, Message, Network, Transport};
use cubenet_tests::allocation;
use cubenet_tests::system::{open_descriptors, own_processor_time};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

struct Echo;
impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

/// That all threads of a network work: a listener of its own accepts, and every worker answers.
pub(crate) fn is_alive(world: &World, network: &Network) {
    let accepted = |_: &Connection| Some(Echo);
    let listener = match network.listen(Transport::Tcp, "127.0.0.1:0", accepted) {
        Ok(listener) => listener,
        Err(error) => return world.violated(format!("it no longer listens: {error}")),
    };
    // There may be as many connections as there may be, and some are paused for ever: if need
    // be, they make room.
    let start = Instant::now();
    let mut answered = 0;
    while answered < 6 {
        if start.elapsed() > Duration::from_secs(20) {
            let metrics = network.metrics();
            return world.violated(format!("a worker is dead: {metrics}"));
        }
        if echoes(listener.local_addr()) {
            answered += 1;
        } else {
            for connection in lock(&world.every).iter() {
                connection.abort();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
    listener.close();
}

fn echoes(address: std::net::SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut answer = [0; 4];
    stream.write_all(b"\0\x02ok").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"\0\x02ok"
}

/// That nothing spins while nothing happens.
pub(crate) fn is_quiet(world: &World) {
    // Within this time everything has timed out, at the latest.
    let quiet = || {
        let before = own_processor_time()?;
        thread::sleep(Duration::from_millis(40));
        Some(own_processor_time()?.saturating_sub(before))
    };
    let start = Instant::now();
    let mut used = quiet();
    while used.is_some_and(|used| used > Duration::from_millis(8)) {
        if start.elapsed() > Duration::from_secs(10) {
            return world.violated(format!("something spins: {used:?} of 40 ms"));
        }
        used = quiet();
    }
}

/// That every connection ended once, that every connect was answered once, and that a handler that was
/// saw an orderly end had everything.
pub(crate) fn ends(world: &World) {
    for (nth, connect) in lock(&world.connects).iter().enumerate() {
        // A connect whose closure was dropped uncalled has returned an error.
        if connect.answered != u32::from(connect.began) {
            let (began, answered) = (connect.began, connect.answered);
            world.violated(format!(
                "connect {nth} (begun: {began}) was answered {answered} times"
            ));
        }
    }
    let ends = lock(&world.ends);
    let mut violations = Vec::new();
    for (number, end) in ends.iter() {
        let end = lock(end);
        if end.opened && (end.closed.len(), end.dropped) != (1, 1) {
            let (closed, dropped) = (&end.closed, end.dropped);
            violations.push(format!(
                "end {number} (stream: {}) was closed {closed:?} and dropped {dropped} times",
                end.is_stream
            ));
        }
        let of_peer = end.from.and_then(|from| ends.get(&from));
        if let ([CloseReason::Peer], true, Some(peer)) = (&end.closed[..], end.is_stream, of_peer)
            && let accepted = if Arc::ptr_eq(peer, &ends[number]) {
                end.accepted
            } else {
                lock(peer).accepted
            }
            && end.received != accepted
        {
            let received = end.received;
            violations.push(format!(
                "end {number} ended in order with {received} of {accepted} messages"
            ));
        }
    }
    drop(ends);
    for violation in violations {
        world.violated(violation);
    }
}

/// What the process holds between two runs.
pub(crate) struct Process {
    descriptors: Option<usize>,
    memory: Option<isize>,
}

impl Process {
    pub(crate) fn new() -> Self {
        Process {
            descriptors: None,
            memory: None,
        }
    }

    /// Compares with what there was after the first runs.
    pub(crate) fn check(&mut self, runs: u64, violations: &mut Vec<String>) {
        if runs < 5 {
            return;
        }
        let descriptors = self.descriptors.or_else(open_descriptors);
        self.descriptors = descriptors;
        let memory = *self.memory.get_or_insert_with(allocation::live_bytes);
        // The kernel may close a socket a moment after its last user has let go of it.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) && open_descriptors() > descriptors {
            thread::sleep(Duration::from_millis(1));
        }
        let now = open_descriptors();
        if now > descriptors {
            violations.push(format!("{now:?} descriptors are open, of {descriptors:?}"));
        }
        // What panic payloads leak on purpose, and what tables keep, is little.
        let grown = allocation::live_bytes() - memory;
        let allowed = 2_000_000 + 2_000 * runs.cast_signed() as isize;
        if grown > allowed {
            violations.push(format!("{grown} bytes more are allocated"));
        }
    }
}
