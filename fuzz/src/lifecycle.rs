//! The lifecycle follows its table, and the sending half does with it what the limits and
//! its clocks say, whatever happens in whatever order.

use crate::model::lifecycle::{End, Failure, Model, VIOLATION};
use crate::{length, read};
use arbitrary::Arbitrary;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::lifecycle::{Input, State};
use cubenet_core::send::Backlog;
use cubenet_core::{
    CloseReason, Instant, Lifecycle, Limits, SendError, Sender, Timeout, Transport,
};
use std::time::Duration;

/// How the input of this check is read.
#[derive(Arbitrary, Debug)]
struct Scenario {
    datagrams: bool,
    calling: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Connected,
    Close,
    Ended(End),
    Failed(Failure),
    /// The application sends.
    Send(u8),
    /// The transport takes this much.
    Written(u8),
    /// Time passes.
    Milliseconds(u8),
    /// The lifecycle alone is told that everything went out.
    Flushed,
    /// The peer's transport has acknowledged everything.
    Acknowledged,
}

fn limits() -> Limits {
    Limits {
        max_message: 5_000,
        max_datagram: 5_000,
        max_queued: 20_000,
        low_watermark: 5_000,
        max_queued_total: 30_000,
        connect_timeout: Duration::from_millis(400),
        write_stall_timeout: Duration::from_millis(700),
        drain_timeout: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let Some(scenario) = read::<Scenario>(data) else {
        return;
    };
    let transport = if scenario.datagrams {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    against_the_table(transport, scenario.calling, &scenario.steps);
    Half::new(transport, scenario.calling).run(&scenario.steps);
}

/// The lifecycle alone, driven by the inputs themselves.
fn against_the_table(transport: Transport, calling: bool, steps: &[Step]) {
    let mut lifecycle = if calling {
        Lifecycle::connecting(transport)
    } else {
        Lifecycle::accepted(transport)
    };
    let mut model = Model::new(transport, calling);
    for step in steps {
        let input = match step {
            Step::Connected => Input::Connected,
            Step::Close => Input::Close { queued: false },
            Step::Ended(end) => end.input(),
            Step::Failed(failure) => Input::Failed(failure.reason()),
            Step::Send(_) => Input::Close { queued: true },
            Step::Flushed => Input::Flushed,
            Step::Acknowledged => Input::Acknowledged,
            Step::Written(_) | Step::Milliseconds(_) => continue,
        };
        let before = model.state;
        model.handle(input);
        assert_eq!(lifecycle.handle(input), before != model.state);
        assert_eq!(lifecycle.state(), model.state);
        assert_eq!(lifecycle.close_reason(), model.close_reason());
        assert_eq!(lifecycle.transport(), transport);
    }
}

/// A sending half, what it should be, and what a driver keeps beside it.
struct Half {
    limits: Limits,
    sender: Sender,
    model: Model,
    /// Since when the clock of the state runs.
    since: Instant,
    starved: bool,
    queued: usize,
    now: Instant,
}

impl Half {
    fn new(transport: Transport, calling: bool) -> Self {
        let sender = if calling {
            Sender::connecting(transport, Instant::ZERO)
        } else {
            Sender::accepted(transport)
        };
        let model = Model::new(transport, calling);
        let since = match model.state {
            State::Connecting => Instant::ZERO,
            _ => Instant::NEVER,
        };
        Half {
            limits: limits(),
            sender,
            model,
            since,
            starved: false,
            queued: 0,
            now: Instant::ZERO,
        }
    }

    fn run(mut self, steps: &[Step]) {
        for step in steps {
            let closed = self.model.close_reason();
            match *step {
                Step::Connected => self.connected(),
                Step::Close => self.close(),
                Step::Ended(end) => self.ended(end),
                Step::Failed(failure) => {
                    self.sender.fail(failure.reason());
                    self.model.handle(Input::Failed(failure.reason()));
                }
                Step::Send(byte) => self.send(length(byte)),
                Step::Written(byte) => self.written(length(byte)),
                Step::Milliseconds(count) => self.pass(u64::from(count)),
                Step::Flushed => self.written(usize::MAX),
                Step::Acknowledged => {
                    self.sender.handle_acknowledged();
                    self.model.handle(Input::Acknowledged);
                }
            }
            assert_eq!(self.sender.state(), self.model.state);
            assert_eq!(self.sender.close_reason(), self.model.close_reason());
            if closed.is_some() {
                assert_eq!(self.sender.close_reason(), closed, "once and for good");
            } else if self.model.state != State::Closed {
                assert_eq!(self.sender.poll_timeout(&self.limits), self.deadline());
            }
        }
    }

    fn deadline(&self) -> Instant {
        self.since.after(match self.model.state {
            State::Connecting => self.limits.connect_timeout,
            State::Open => self.limits.write_stall_timeout,
            _ => self.limits.drain_timeout,
        })
    }

    fn connected(&mut self) {
        self.sender.handle_connected();
        let was = self.model.state;
        self.model.handle(Input::Connected);
        if was == State::Connecting {
            self.since = Instant::NEVER;
        }
    }

    fn close(&mut self) {
        self.sender.close(self.now, self.queued);
        let was = self.model.state;
        let queued = self.queued > 0;
        self.model.handle(Input::Close { queued });
        self.begin_to_drain(was);
    }

    fn ended(&mut self, end: End) {
        if let Input::Ended(reason) = end.input() {
            self.sender.handle_end(self.now, reason, self.queued);
        } else {
            self.sender
                .handle_violation(self.now, VIOLATION, self.queued);
        }
        let was = self.model.state;
        self.model.handle(end.input());
        self.begin_to_drain(was);
    }

    fn begin_to_drain(&mut self, was: State) {
        if was != State::Draining && self.model.state == State::Draining {
            self.since = self.now;
            if self.queued == 0 {
                self.model.handle(Input::Flushed);
            }
        }
    }

    fn send(&mut self, len: usize) {
        let backlog = Backlog {
            own: self.queued,
            total: self.queued,
        };
        let stream = self.model.transport == Transport::Tcp;
        let size = len + if stream { HEADER_LEN } else { 0 };
        let answer = self.sender.admit(len, backlog, &self.limits);
        let expected = match self.model.state {
            State::Connecting | State::Open if len > 5_000 => {
                Err(SendError::TooLong { len, limit: 5_000 })
            }
            State::Connecting | State::Open if len == 0 && !stream => Err(SendError::Empty),
            State::Connecting | State::Open if self.queued > 0 && self.queued + size > 20_000 => {
                Err(SendError::Full)
            }
            State::Connecting | State::Open => Ok(()),
            _ => Err(SendError::Closed),
        };
        assert_eq!(answer, expected);
        self.starved |= answer == Err(SendError::Full);
        if answer.is_ok() {
            self.queued += size;
            assert!(self.queued <= self.limits.max_queued);
            self.tried(false);
        }
    }

    fn written(&mut self, count: usize) {
        if self.model.state == State::Connecting {
            return;
        }
        let taken = count.min(self.queued);
        self.queued -= taken;
        self.tried(taken > 0);
        let due = self.starved && self.queued <= 5_000 && self.model.state == State::Open;
        assert_eq!(self.sender.poll_writable(self.queued, &self.limits), due);
        self.starved &= !due;
        assert!(
            !self.sender.poll_writable(self.queued, &self.limits),
            "once"
        );
    }

    /// The driver tried to send.
    fn tried(&mut self, progress: bool) {
        self.sender.handle_written(self.now, progress, self.queued);
        match self.model.state {
            State::Open if self.queued == 0 => self.since = Instant::NEVER,
            State::Open if progress || self.since == Instant::NEVER => self.since = self.now,
            State::Draining if self.queued == 0 => {
                self.model.handle(Input::Flushed);
            }
            _ => {}
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now = self.now.after(Duration::from_millis(milliseconds));
        self.sender.handle_timeout(self.now, &self.limits);
        if self.model.state == State::Closed || self.now < self.deadline() {
            return;
        }
        let timeout = match self.model.state {
            State::Connecting => Timeout::Connect,
            State::Open => Timeout::WriteStall,
            _ => Timeout::Drain,
        };
        self.model
            .handle(Input::Failed(CloseReason::Timeout(timeout)));
    }
}
