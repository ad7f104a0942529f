//! Two connections back to back over wires that deliver in any pieces, stop, flip bytes and
//! break, while time passes in any steps and either side sends, pauses and closes.
//!
//! As long as no byte is flipped, what arrives is what was sent, whole, in order and once;
//! what was accepted before a clean close arrives before it. Whatever happens, each side
//! closes once, holds no more than its bounds, and holds nothing in the end.

use crate::{length, read};
use arbitrary::Arbitrary;
use cubenet_core::connection::HeldInput;
use cubenet_core::connection::held::holds_too_much;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{
    Action, Backlog, CloseReason, Connection, Decoder, Growing, Instant, Limits, Reading,
    SendError, SendQueue, State,
};
use std::collections::VecDeque;
use std::time::Duration;

/// What is done, in order. `true` is the side that connects.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    /// The handshake is complete.
    Connect,
    /// A side sends a message.
    Send(bool, u8, u8),
    /// A side hands this much to its wire.
    Write(bool, u8),
    /// A side reads this much off the other's wire.
    Read(bool, u8),
    /// A side takes this much off the other's wire, and delivers it when it reads next.
    Delay(bool, u8),
    /// A byte on the way to a side is flipped.
    Flip(bool, u8, u8),
    /// A side reads no more, or again.
    Pause(bool),
    Resume(bool),
    Close(bool),
    Abort(bool),
    /// The wire breaks; both sides see it.
    Break,
    /// Time passes, in steps of ten milliseconds.
    Pass(u8),
}

fn limits() -> Limits {
    Limits::new()
        .with_max_message(8_000)
        .with_max_datagram(8_000)
        .with_max_queued(12_000)
        .with_low_watermark(5_000)
        .with_max_queued_total(14_000)
        .with_max_held_total(9_000)
        .with_connect_timeout(Duration::from_secs(2))
        .with_frame_timeout(Duration::from_secs(3))
        .with_first_message_timeout(Duration::from_secs(6))
        .with_stream_idle_timeout(Duration::from_secs(10))
        .with_write_stall_timeout(Duration::from_secs(4))
        .with_drain_timeout(Duration::from_secs(1))
}

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let _ = run(data);
}

/// The same. Returns why each side closed; `None` if `data` is too short to say what is done.
pub fn run(data: &[u8]) -> Option<[CloseReason; 2]> {
    let steps = read::<Vec<Step>>(data)?;
    let mut pair = Pair::new();
    for step in steps {
        pair.step(step);
        pair.check();
    }
    Some(pair.finish())
}

struct Pair {
    limits: Limits,
    now: Instant,
    client: Side,
    server: Side,
    /// A byte was flipped, so nothing more can be said about what arrives.
    flipped: bool,
}

/// One side, as a driver would keep it, and what it received.
struct Side {
    connection: Connection<Decoder<Growing>>,
    queue: SendQueue,
    /// What it put on the wire and the other has not read.
    wire: VecDeque<u8>,
    /// Its FIN is on the wire, behind that.
    fin_sent: bool,
    /// It has read the other's FIN.
    fin_read: bool,
    /// The wire is broken and it has not seen that.
    reset: bool,
    /// Messages it was accepted to send that have not arrived.
    accepted: VecDeque<Vec<u8>>,
    /// Bytes read since the last whole message.
    of_frame: usize,
    /// Bytes taken off the wire and not delivered.
    undelivered: Vec<u8>,
    /// Those and the partial frame, as a driver counts them.
    held: HeldInput,
    closed: Option<CloseReason>,
}

impl Side {
    fn new(connection: Connection<Decoder<Growing>>) -> Self {
        Side {
            connection,
            queue: SendQueue::new(),
            wire: VecDeque::new(),
            fin_sent: false,
            fin_read: false,
            reset: false,
            accepted: VecDeque::new(),
            of_frame: 0,
            undelivered: Vec::new(),
            held: HeldInput::NONE,
            closed: None,
        }
    }

    fn state(&self) -> State {
        self.connection.state()
    }

    /// Sends a message. Both sides are connections of one network, so what the other has queued
    /// counts in the sum of all.
    fn send(&mut self, message: Vec<u8>, other: &Side, now: Instant, limits: &Limits) {
        let (own, others) = (self.queue.len(), other.queue.len());
        let backlog = Backlog::growing(own, own + others);
        match self.connection.admit(message.len(), backlog, limits) {
            Ok(header) => {
                self.queue.push(&header);
                self.queue.push(&message);
                let queued = self.queue.len();
                let backlog = Backlog::growing(queued, queued + others);
                self.connection
                    .send
                    .handle_queued(false, backlog, now, limits);
                self.accepted.push_back(message);
            }
            Err(SendError::TooLong { len, limit }) => assert!(len > limit),
            Err(SendError::Full) => assert!(own > 0),
            Err(SendError::Closed) => {
                assert!(!self.state().accepts_messages());
            }
            Err(other) => panic!("no error of a stream: {other:?}"),
        }
    }

    fn write(&mut self, count: usize, now: Instant, limits: &Limits) {
        if !self.state().is_connected() {
            return;
        }
        let before = self.queue.len();
        self.wire
            .extend(self.queue.chunks().flatten().take(count).copied());
        self.queue.advance(count);
        let queued = self.queue.len();
        let send = &mut self.connection.send;
        send.handle_written(queued < before, queued, now);
        send.poll_writable(Backlog::growing(queued, queued), limits);
    }

    /// Reads `count` bytes of what the other put on the wire, then asks the clocks, as a driver
    /// does: while input waited to be delivered, nothing asked them.
    fn read(
        &mut self,
        from: &mut Side,
        count: usize,
        now: Instant,
        limits: &Limits,
        flipped: bool,
    ) {
        if self.state() == State::Closed || self.connection.reading() == Reading::Hold {
            return;
        }
        let count = count.min(from.wire.len());
        let mut piece = std::mem::take(&mut self.undelivered);
        piece.extend(from.wire.drain(..count));
        let delivered = self.decode(from, &piece, now, flipped);
        self.hold(delivered, now);
        if from.wire.is_empty() && from.fin_sent && !self.fin_read {
            self.fin_read = true;
            self.connection.handle_fin(now);
        }
        self.pass(now, limits);
    }

    /// Takes `count` bytes of what the other put on the wire, to be delivered later.
    fn delay(&mut self, from: &mut Side, count: usize, now: Instant) {
        if self.connection.reading() == Reading::Deliver {
            let count = count.min(from.wire.len());
            self.undelivered.extend(from.wire.drain(..count));
            self.hold(false, now);
        }
    }

    /// Counts the input that is held.
    fn hold(&mut self, progressed: bool, now: Instant) {
        let bytes = self.connection.recv.footprint() + self.undelivered.len();
        self.held.update(bytes, progressed, now);
    }

    /// Returns whether it delivered a message.
    fn decode(&mut self, from: &mut Side, mut piece: &[u8], now: Instant, flipped: bool) -> bool {
        let mut delivered = false;
        while self.connection.reading() == Reading::Deliver {
            let before = piece.len();
            let Connection { recv, send, .. } = &mut self.connection;
            match recv.handle_input(&mut piece, now) {
                Ok(Some(message)) => {
                    let sent = from.accepted.pop_front();
                    assert!(flipped || sent.as_deref() == Some(&*message));
                    self.of_frame = 0;
                    delivered = true;
                }
                Ok(None) => {
                    self.of_frame += before;
                    return delivered;
                }
                Err(error) => {
                    assert!(flipped, "no side sends a frame that is too long");
                    send.handle_violation(error, now);
                }
            }
        }
        delivered
    }

    fn pass(&mut self, now: Instant, limits: &Limits) {
        if self.state() == State::Closed {
            return;
        }
        let has_unread = !self.undelivered.is_empty();
        let due = now >= self.connection.poll_timeout(has_unread, limits);
        self.connection.handle_timeout(has_unread, now, limits);
        assert_eq!(self.state() == State::Closed, due);
    }

    /// What a driver does after every input.
    fn act(&mut self, other: &mut Side) {
        let reset = match self.connection.poll_action(self.queue.len()) {
            Action::Wait => return assert_eq!(self.closed, None),
            Action::SendFin => {
                assert!(self.queue.is_empty(), "the FIN comes behind everything");
                self.fin_sent = true;
                return self.connection.send.handle_fin_sent();
            }
            Action::Close(reason) => self.close(reason),
            Action::Reset(reason) => {
                self.close(reason);
                true
            }
        };
        other.reset |= reset;
    }

    /// Lets everything go. Returns whether the socket of a system would reset the peer: it was
    /// closed before both FINs were through.
    fn close(&mut self, reason: CloseReason) -> bool {
        let first = self.closed.is_none();
        assert_eq!(*self.closed.get_or_insert(reason), reason, "for good");
        self.queue.advance(usize::MAX);
        self.undelivered.clear();
        self.held = HeldInput::NONE;
        first && !(self.fin_sent && self.fin_read)
    }

    /// A reset arrives when what came before it has been read, or at once.
    fn see_end(&mut self) {
        if self.reset && !self.state().is_connecting() {
            self.connection.abort(CloseReason::Reset);
        }
    }
}

impl Pair {
    fn new() -> Self {
        let limits = limits();
        let decoder = || Decoder::new(Growing::new(), limits.max_message());
        let client = Connection::connecting(decoder(), Instant::ZERO);
        let server = Connection::accepted(decoder(), Instant::ZERO);
        Pair {
            client: Side::new(client),
            server: Side::new(server),
            limits,
            now: Instant::ZERO,
            flipped: false,
        }
    }

    /// A side and the other.
    fn sides(&mut self, client: bool) -> (&mut Side, &mut Side) {
        if client {
            (&mut self.client, &mut self.server)
        } else {
            (&mut self.server, &mut self.client)
        }
    }

    fn step(&mut self, step: Step) {
        let (now, limits, flipped) = (self.now, self.limits.clone(), self.flipped);
        match step {
            Step::Connect => {
                let client = &mut self.client.connection;
                let (state, was_open) = (client.state(), client.send.was_open());
                let opens = client.handle_connected(now);
                assert_eq!(opens, state == State::Connecting);
                assert_eq!(client.send.was_open(), opens || was_open);
            }
            Step::Send(side, byte, fill) => {
                let (sender, other) = self.sides(side);
                sender.send(vec![fill; length(byte)], other, now, &limits);
            }
            Step::Write(side, byte) => self.sides(side).0.write(length(byte), now, &limits),
            Step::Read(side, byte) => {
                let (reader, writer) = self.sides(side);
                reader.read(writer, length(byte), now, &limits, flipped);
            }
            Step::Delay(side, byte) => {
                let (reader, writer) = self.sides(side);
                reader.delay(writer, length(byte), now);
            }
            Step::Flip(side, at, bits) => {
                let wire = &mut self.sides(side).1.wire;
                let at = length(at).min(wire.len().saturating_sub(1));
                if let Some(byte) = wire.get_mut(at) {
                    *byte ^= bits;
                    self.flipped |= bits != 0;
                }
            }
            Step::Pause(side) | Step::Resume(side) => {
                let pause = matches!(step, Step::Pause(_));
                let recv = &mut self.sides(side).0.connection.recv;
                recv.set_paused(pause, now);
            }
            Step::Close(side) => self.sides(side).0.connection.close(now),
            Step::Abort(side) => {
                let connection = &mut self.sides(side).0.connection;
                connection.abort(CloseReason::Local);
            }
            Step::Break => {
                self.client.reset = true;
                self.server.reset = true;
            }
            Step::Pass(count) => {
                self.now = now.after(Duration::from_millis(10 * u64::from(count)));
                self.client.pass(self.now, &limits);
                self.server.pass(self.now, &limits);
            }
        }
        let Pair { client, server, .. } = self;
        while holds_too_much(client.held.bytes() + server.held.bytes(), &limits) {
            let client_is_first = client.held.since() <= server.held.since();
            let longest = if client_is_first {
                &mut *client
            } else {
                &mut *server
            };
            assert!(longest.held.since() <= now, "it holds input");
            longest.connection.abort(CloseReason::Overflow);
            longest.held = HeldInput::NONE;
        }
        client.act(server);
        server.act(client);
        client.see_end();
        server.see_end();
        client.act(server);
        server.act(client);
    }

    /// What holds after every step.
    fn check(&self) {
        let queued = self.client.queue.len() + self.server.queue.len();
        assert!(queued <= self.limits.max_queued_total());
        let held = self.client.held.bytes() + self.server.held.bytes();
        assert!(held <= self.limits.max_held_total());
        for side in [&self.client, &self.server] {
            let footprint = side.connection.recv.footprint();
            assert!(footprint <= 2 * side.of_frame + size_of::<Vec<u8>>());
            assert!(side.queue.len() <= self.limits.max_queued().max(8_000 + HEADER_LEN));
            if side.closed.is_some() {
                assert!(side.queue.is_empty());
            } else {
                let has_unread = !side.undelivered.is_empty();
                let deadline = side.connection.poll_timeout(has_unread, &self.limits);
                assert!(deadline > self.now, "a clock that ran out has been heeded");
            }
        }
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            // A side that closed cleanly, and was read to its end, lost nothing.
            let clean = !self.flipped && to.closed == Some(CloseReason::Peer);
            assert!(!clean || from.accepted.is_empty());
        }
    }

    /// Lets the wires run dry and time pass until both have closed.
    fn finish(mut self) -> [CloseReason; 2] {
        self.step(Step::Connect);
        for side in [true, false] {
            self.step(Step::Resume(side));
            self.step(Step::Close(side));
        }
        for _ in 0..3 {
            for side in [true, false] {
                self.step(Step::Write(side, 255));
                self.step(Step::Read(!side, 255));
            }
            self.check();
        }
        for _ in 0..3 {
            self.step(Step::Pass(255));
            self.check();
        }
        [&self.client, &self.server].map(|side| side.closed.expect("both have closed"))
    }
}
