//! The lifecycle follows its table, and the halves of a connection do with it what the limits
//! and their clocks say, whatever happens in whatever order.

use crate::model::lifecycle::{End, Failure, Model, VIOLATION};
use crate::{length, read};
use arbitrary::Arbitrary;
use cubenet_core::connection::lifecycle::Input;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{
    Action, Backlog, CloseReason, DatagramHalf, Instant, Lifecycle, Limits, SendError, SendHalf,
    State, Timeout,
};
use std::time::Duration;

/// How the input of this check is read.
#[derive(Arbitrary, Debug)]
struct Scenario {
    datagrams: bool,
    begin: Begin,
    steps: Vec<Step>,
}

/// How a stream begins.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Begin {
    Connecting,
    Accepted,
    /// Accepted, with layers.
    Handshaking,
}

#[derive(Arbitrary, Debug)]
enum Step {
    TransportConnected,
    Connected,
    /// A layer fails.
    LayerFailed,
    Close,
    Ended(End),
    Failed(Failure),
    /// The application sends.
    Send(u8),
    /// The transport takes this much.
    Written(u8),
    /// Time passes.
    Milliseconds(u8),
    /// Everything went out.
    Flushed,
    /// The peer's transport has acknowledged everything.
    Acknowledged,
}

fn limits() -> Limits {
    Limits::new()
        .with_max_message(5_000)
        .with_max_datagram(5_000)
        .with_max_queued(20_000)
        .with_low_watermark(5_000)
        .with_max_queued_total(30_000)
        .with_connect_timeout(Duration::from_millis(400))
        .with_handshake_timeout(Duration::from_millis(500))
        .with_write_stall_timeout(Duration::from_millis(700))
        .with_drain_timeout(Duration::from_millis(300))
}

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let Some(scenario) = read::<Scenario>(data) else {
        return;
    };
    if scenario.datagrams {
        return datagrams(&scenario.steps);
    }
    against_the_table(scenario.begin, &scenario.steps);
    Half::new(scenario.begin).run(&scenario.steps);
}

/// The lifecycle alone, driven by the inputs themselves.
fn against_the_table(begin: Begin, steps: &[Step]) {
    let mut lifecycle = match begin {
        Begin::Connecting => Lifecycle::connecting(),
        Begin::Accepted => Lifecycle::accepted(),
        Begin::Handshaking => Lifecycle::handshaking(),
    };
    let mut model = Model::new(lifecycle.state());
    for step in steps {
        let input = match step {
            Step::TransportConnected => Input::TransportConnected,
            Step::LayerFailed => Input::Violated(CloseReason::Layer),
            Step::Connected => Input::Connected,
            Step::Close => Input::Close,
            Step::Ended(end) => end.input(),
            Step::Failed(failure) => Input::Failed(failure.reason()),
            Step::Flushed => Input::Flushed,
            Step::Acknowledged => Input::Acknowledged,
            Step::Send(_) | Step::Written(_) | Step::Milliseconds(_) => continue,
        };
        let before = model.state;
        model.handle(input);
        assert_eq!(lifecycle.handle(input), before != model.state);
        assert_eq!(lifecycle.state(), model.state);
        assert_eq!(lifecycle.close_reason(), model.close_reason());
    }
}

/// A datagram connection: what it says follows from the first thing that ended it.
fn datagrams(steps: &[Step]) {
    let limits = limits();
    let mut half = DatagramHalf::new();
    let (mut closing, mut lost) = (false, None);
    let (mut queued, mut owed) = (0, false);
    for step in steps {
        let open = !closing && lost.is_none();
        match *step {
            Step::Close => {
                half.close();
                closing |= open;
            }
            Step::Ended(_) if half.state() != State::Closed => {
                half.handle_close_datagram();
                let reason = if closing {
                    CloseReason::Local
                } else {
                    CloseReason::Peer
                };
                lost = Some(reason);
            }
            Step::Failed(failure) if half.state() != State::Closed => {
                half.abort(failure.reason());
                lost = Some(match failure {
                    Failure::Reset | Failure::Refused => CloseReason::Io,
                    known => known.reason(),
                });
            }
            Step::Ended(_) | Step::Failed(_) => {
                let reason = half.close_reason();
                half.handle_close_datagram();
                half.abort(CloseReason::Io);
                assert_eq!(half.close_reason(), reason, "once and for good");
            }
            Step::Send(byte) => {
                let len = length(byte);
                let backlog = Backlog::growing(queued, queued);
                let answer = half.admit(len, backlog, &limits);
                let expected = match len {
                    _ if !open => Err(SendError::Closed),
                    5_001.. => Err(SendError::TooLong { len, limit: 5_000 }),
                    0 => Err(SendError::Empty),
                    _ if queued > 0 && queued + len > 20_000 => Err(SendError::Full),
                    _ => Ok(()),
                };
                assert_eq!(answer, expected);
                owed |= answer == Err(SendError::Full);
                if answer.is_ok() {
                    queued += len;
                }
            }
            Step::Written(byte) => queued -= length(byte).min(queued),
            Step::Flushed => queued = 0,
            Step::TransportConnected
            | Step::Connected
            | Step::LayerFailed
            | Step::Milliseconds(_)
            | Step::Acknowledged => {}
        }
        if half.poll_action(queued) == Action::SendFin {
            assert!(closing && lost.is_none());
            half.handle_fin_sent();
        }
        let action = half.poll_action(queued);
        let expected = match lost {
            Some(reason) => Action::Reset(reason),
            None if closing && (queued == 0 || half.state() == State::Closed) => {
                Action::Close(CloseReason::Local)
            }
            None => Action::Wait,
        };
        assert_eq!(action, expected);
        let due = owed && queued <= 5_000 && half.state() == State::Open;
        let backlog = Backlog::growing(queued, queued);
        assert_eq!(half.poll_writable(backlog, &limits), due);
        owed &= !due;
    }
}

/// A sending half, what it should be, and what a driver keeps beside it.
struct Half {
    limits: Limits,
    sending: SendHalf,
    model: Model,
    /// Since when the clock of the state runs.
    since: Instant,
    owed: bool,
    /// It was aborted before it had closed.
    lossy: bool,
    fin_sent: bool,
    queued: usize,
    now: Instant,
}

impl Half {
    fn new(begin: Begin) -> Self {
        let (half, since) = match begin {
            Begin::Connecting => (SendHalf::connecting(Instant::ZERO), Instant::ZERO),
            Begin::Accepted => (SendHalf::accepted(), Instant::NEVER),
            Begin::Handshaking => (SendHalf::handshaking(Instant::ZERO), Instant::ZERO),
        };
        Half {
            limits: limits(),
            model: Model::new(half.state()),
            sending: half,
            since,
            owed: false,
            lossy: false,
            fin_sent: false,
            queued: 0,
            now: Instant::ZERO,
        }
    }

    fn run(mut self, steps: &[Step]) {
        for step in steps {
            let closed = self.model.close_reason();
            match *step {
                Step::TransportConnected => self.transport_connected(),
                Step::Connected => self.connected(),
                Step::LayerFailed => self.layer_failed(),
                Step::Close => {
                    self.sending.close(self.now);
                    self.drain(Input::Close);
                }
                Step::Ended(end) => self.ended(end),
                Step::Failed(failure) => {
                    self.sending.abort(failure.reason());
                    self.lossy |= self.model.state != State::Closed;
                    self.model.handle(Input::Failed(failure.reason()));
                }
                Step::Send(byte) => self.send(length(byte)),
                Step::Written(byte) => self.written(length(byte)),
                Step::Milliseconds(count) => self.pass(u64::from(count)),
                Step::Flushed => self.written(usize::MAX),
                Step::Acknowledged => {
                    self.sending.handle_acknowledged();
                    self.model.handle(Input::Acknowledged);
                }
            }
            self.act();
            assert_eq!(self.sending.state(), self.model.state);
            assert_eq!(self.sending.close_reason(), self.model.close_reason());
            assert_eq!(self.sending.was_open(), self.model.was_open);
            if closed.is_some() {
                assert_eq!(self.sending.close_reason(), closed, "once and for good");
            } else if self.model.state != State::Closed {
                let deadline = self.sending.poll_timeout(&self.limits);
                assert_eq!(deadline, self.deadline());
                let has_deadline = SendHalf::has_deadline(self.model.state, self.queued);
                assert!(has_deadline || deadline == Instant::NEVER);
            }
        }
    }

    /// What the driver does after every input.
    fn act(&mut self) {
        if self.queued == 0 {
            self.model.handle(Input::Flushed);
        }
        let action = self.sending.poll_action(self.queued);
        let expected = match self.model.close_reason() {
            Some(reason) if self.lossy || self.queued > 0 => Action::Reset(reason),
            Some(reason) => Action::Close(reason),
            None if self.model.state == State::Finishing && !self.fin_sent => Action::SendFin,
            None => Action::Wait,
        };
        assert_eq!(action, expected);
        if action == Action::SendFin {
            self.fin_sent = true;
            self.sending.handle_fin_sent();
        }
    }

    fn deadline(&self) -> Instant {
        self.since.after(match self.model.state {
            State::Connecting => self.limits.connect_timeout(),
            State::Handshaking => self.limits.handshake_timeout(),
            State::Open => self.limits.write_stall_timeout(),
            _ => self.limits.drain_timeout(),
        })
    }

    fn connected(&mut self) {
        let opens = self.sending.handle_connected();
        let was = self.model.state;
        assert_eq!(opens, matches!(was, State::Connecting | State::Handshaking));
        self.model.handle(Input::Connected);
        if opens {
            self.since = Instant::NEVER;
        }
    }

    fn transport_connected(&mut self) {
        self.sending.handle_transport_connected(self.now);
        if self.model.state == State::Connecting {
            self.since = self.now;
        }
        self.model.handle(Input::TransportConnected);
    }

    fn layer_failed(&mut self) {
        self.sending.handle_layer_failure(self.now);
        self.drain(Input::Violated(if self.model.state.is_handshaking() {
            CloseReason::Handshake
        } else {
            CloseReason::Layer
        }));
    }

    fn ended(&mut self, end: End) {
        if let Input::Fin(reason) = end.input() {
            self.sending.handle_fin(reason, self.now);
        } else {
            self.sending.handle_violation(VIOLATION, self.now);
        }
        self.drain(end.input());
    }

    fn drain(&mut self, input: Input) {
        let was = self.model.state;
        self.model.handle(input);
        if was != self.model.state && self.model.state != State::Closed {
            self.since = self.now;
        }
    }

    fn send(&mut self, len: usize) {
        let backlog = Backlog::growing(self.queued, self.queued);
        let size = len + HEADER_LEN;
        let answer = self.sending.admit(len, backlog, &self.limits);
        let expected = match self.model.state {
            State::Connecting | State::Handshaking | State::Open => {
                if len > 5_000 {
                    Err(SendError::TooLong { len, limit: 5_000 })
                } else if self.queued > 0 && self.queued + size > 20_000 {
                    Err(SendError::Full)
                } else {
                    Ok((len as u16).to_be_bytes())
                }
            }
            _ => Err(SendError::Closed),
        };
        assert_eq!(answer, expected);
        self.owed |= answer == Err(SendError::Full);
        if answer.is_ok() {
            self.queued += size;
            assert!(self.queued <= self.limits.max_queued());
            self.tried(false);
        }
    }

    fn written(&mut self, count: usize) {
        let state = self.model.state;
        if state.is_connecting() || state.is_handshaking() {
            return;
        }
        let taken = count.min(self.queued);
        self.queued -= taken;
        self.tried(taken > 0);
        let due = self.owed && self.queued <= 5_000 && self.model.state == State::Open;
        let backlog = Backlog::growing(self.queued, self.queued);
        assert_eq!(self.sending.poll_writable(backlog, &self.limits), due);
        self.owed &= !due;
        assert!(!self.sending.poll_writable(backlog, &self.limits), "once");
    }

    /// The driver tried to send.
    fn tried(&mut self, progress: bool) {
        self.sending.handle_written(progress, self.queued, self.now);
        match self.model.state {
            State::Open if self.queued == 0 => self.since = Instant::NEVER,
            State::Open if progress || self.since == Instant::NEVER => self.since = self.now,
            _ => {}
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now = self.now.after(Duration::from_millis(milliseconds));
        self.sending.handle_timeout(self.now, &self.limits);
        if self.model.state == State::Closed || self.now < self.deadline() {
            return;
        }
        let timeout = match self.model.state {
            State::Connecting => Timeout::Connect,
            State::Handshaking => Timeout::Handshake,
            State::Open => Timeout::WriteStall,
            _ => Timeout::Drain,
        };
        self.model
            .handle(Input::Failed(CloseReason::Timeout(timeout)));
    }
}
