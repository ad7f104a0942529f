//! Every bound there is, each with a default and its reason.

use crate::frame::{HEADER_LEN, MAX_PAYLOAD};
use core::fmt;
use core::time::Duration;

/// The longest datagram UDP can carry over IPv4, in bytes: 65,535 less the IP and UDP
/// headers. IPv6 could carry 20 more; one number for both is easier to keep.
pub const MAX_DATAGRAM: usize = 65_507;

/// The bounds on what peers and the application can make a driver hold, wait for or do.
///
/// ```
/// use cubenet_core::Limits;
/// let limits = Limits { max_message: 1_024, ..Limits::default() };
/// assert!(limits.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest message on a stream, either way, in bytes. A peer that declares more is
    /// closed. Default 65,535, all that a header can say.
    pub max_message: usize,
    /// The longest datagram, either way, in bytes. A longer one is dropped. Default 65,507,
    /// all that UDP over IPv4 can carry; above about 1,400 the network cuts it in pieces,
    /// and one lost piece loses it all.
    pub max_datagram: usize,
    /// Bytes that may wait to be sent on one connection, below 4 GiB. Default 1 MiB: a second of a
    /// megabyte stream, and no more than a thousand stuck peers a gigabyte.
    pub max_queued: usize,
    /// After `Full`, `writable` is called once no more than this waits. Default 256 KiB, a
    /// quarter: enough left to keep the transport busy while the application wakes.
    pub low_watermark: usize,
    /// Bytes that may wait to be sent on all connections together. Default 1 GiB. A message on
    /// a connection with nothing queued is always accepted; the connection that thereby takes
    /// the sum over this bound is aborted (`Overflow`).
    pub max_queued_total: usize,
    /// Bytes of input that all connections together may hold: frames of which a part has
    /// arrived, and bytes read before a pause and not yet delivered. Default 256 MiB: some
    /// 4,000 frames of the longest kind that have all but arrived. When the sum exceeds
    /// it, workers whose connections hold more than an equal share of it abort those that have
    /// held input longest (`Overflow`); while a callback keeps such a worker busy, the sum may
    /// reach twice the bound. A device holds input in its sockets' rings, whose size is
    /// fixed, and needs no such bound.
    pub max_held_total: usize,
    /// Open connections on each transport, of all listeners and connects together. Streams and
    /// datagram connections are counted apart, so that neither can use up the places of the
    /// other. Default 1,000,000; the operating system's own bound on descriptors is usually
    /// met first.
    pub max_connections: usize,
    /// Peers of one datagram listener. Default 65,536: a flood of forged addresses fills no
    /// more than some 20 MB.
    pub max_peers: usize,
    /// Of [`max_peers`](Limits::max_peers), places kept for newcomers that the listener's
    /// admission hook recognises; other newcomers find the table full without them. Default 0.
    pub reserved_peers: usize,
    /// What to do with a new peer when there are [`max_peers`](Limits::max_peers). Default
    /// [`FullPolicy::Refuse`]: who is there stays there.
    pub full_policy: FullPolicy,
    /// Whether an empty datagram closes the connection of its sender's address. Default true.
    /// Whoever can forge a source address can close any datagram connection with one packet;
    /// set this to false where that matters, and let silence end connections
    /// ([`datagram_idle_timeout`](Limits::datagram_idle_timeout)). Empty datagrams are then
    /// dropped. This side still sends one when it closes.
    pub empty_datagram_closes: bool,
    /// How long a call may go unanswered. Default 10 s: two retransmissions of a SYN.
    pub connect_timeout: Duration,
    /// How long a frame may take from its first byte to its last. Default 30 s: 64 KB at
    /// 17 kbit/s.
    pub frame_timeout: Duration,
    /// How long the peer of an accepted stream may take to begin its first message. Default
    /// 2 minutes, so that peers which connect and say nothing cannot hold all places for the idle
    /// time. Lower it where clients speak at once, and raise it where they only listen.
    pub first_message_timeout: Duration,
    /// How long a stream's peer may say nothing. Default 10 minutes, so that peers that
    /// vanished without a word do not pile up. Applications that are silent longer send
    /// an empty message now and then, or raise it.
    pub stream_idle_timeout: Duration,
    /// How long a datagram peer may say nothing. Default 60 s: silence is the usual way a
    /// datagram connection ends.
    pub datagram_idle_timeout: Duration,
    /// How long a peer may take none of what is queued for it. Default 30 s.
    pub write_stall_timeout: Duration,
    /// How long the delivery of what was queued at a `close` may take, and the peer's end
    /// after it. Default 5 s.
    pub drain_timeout: Duration,
    /// Connections accepted before other work gets its turn. Default 256.
    pub accepts_per_turn: usize,
    /// Bytes read from one connection before the others get their turn. Default 256 KiB:
    /// two reads of 128 KiB.
    pub read_budget: usize,
    /// Messages delivered from one connection before the others get their turn. Default
    /// 4,096: empty frames are two bytes, so a bound on bytes does not bound callbacks.
    pub message_budget: usize,
    /// Datagrams read from, or sent by, one socket before the others get their turn. Default
    /// 1,024.
    pub datagram_budget: usize,
    /// How long callbacks of one connection, or of one datagram socket, may run before the
    /// others get their turn. Looked at between callbacks: one that is running is not
    /// interrupted. Default 1 ms.
    pub time_budget: Duration,
}

/// What a full table of datagram peers does with a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullPolicy {
    /// The newcomer's datagram is dropped.
    Refuse,
    /// The peer that has been silent longest gives way, if it has been silent this long.
    EvictSilentFor(Duration),
}

impl Default for Limits {
    #[inline]
    fn default() -> Self {
        Limits {
            max_message: MAX_PAYLOAD,
            max_datagram: MAX_DATAGRAM,
            max_queued: 1 << 20,
            low_watermark: 1 << 18,
            max_queued_total: 1 << 30,
            max_held_total: 1 << 28,
            max_connections: 1_000_000,
            max_peers: 1 << 16,
            reserved_peers: 0,
            full_policy: FullPolicy::Refuse,
            empty_datagram_closes: true,
            connect_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(30),
            first_message_timeout: Duration::from_secs(120),
            stream_idle_timeout: Duration::from_secs(600),
            datagram_idle_timeout: Duration::from_secs(60),
            write_stall_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(5),
            accepts_per_turn: 256,
            read_budget: 1 << 18,
            message_budget: 4_096,
            datagram_budget: 1_024,
            time_budget: Duration::from_millis(1),
        }
    }
}

impl Limits {
    /// Whether the bounds fit each other. Drivers ask before they start.
    #[expect(
        clippy::inline_always,
        reason = "with limits that are constants nothing is left of it"
    )]
    #[inline(always)]
    pub fn validate(&self) -> Result<(), LimitError> {
        let error = |limit, problem| Err(LimitError { limit, problem });
        if self.max_message > MAX_PAYLOAD {
            return error("max_message", "a header can declare at most 65,535 bytes");
        }
        if self.max_datagram == 0 || self.max_datagram > MAX_DATAGRAM {
            return error("max_datagram", "a datagram carries 1 to 65,507 bytes");
        }
        if self.max_queued < self.max_datagram.max(self.max_message + HEADER_LEN) {
            return error(
                "max_queued",
                "it must hold one message of max_message (and 2 bytes) or max_datagram",
            );
        }
        if u32::try_from(self.max_queued).is_err() {
            return error("max_queued", "it must be below 4 GiB");
        }
        if self.low_watermark >= self.max_queued {
            return error("low_watermark", "it must be below max_queued");
        }
        if self.max_queued_total < self.max_queued {
            return error("max_queued_total", "it must be at least max_queued");
        }
        if self.max_held_total < self.max_message {
            return error("max_held_total", "it must be at least max_message");
        }
        if self.reserved_peers >= self.max_peers.max(1) {
            return error("reserved_peers", "it must be below max_peers");
        }
        let counts = [
            ("max_connections", self.max_connections),
            ("max_peers", self.max_peers),
            ("accepts_per_turn", self.accepts_per_turn),
            ("read_budget", self.read_budget),
            ("message_budget", self.message_budget),
            ("datagram_budget", self.datagram_budget),
        ];
        for (limit, count) in counts {
            if count == 0 {
                return error(limit, "it must be at least 1");
            }
        }
        let durations = [
            ("connect_timeout", self.connect_timeout),
            ("frame_timeout", self.frame_timeout),
            ("first_message_timeout", self.first_message_timeout),
            ("stream_idle_timeout", self.stream_idle_timeout),
            ("datagram_idle_timeout", self.datagram_idle_timeout),
            ("write_stall_timeout", self.write_stall_timeout),
            ("drain_timeout", self.drain_timeout),
            ("time_budget", self.time_budget),
        ];
        for (limit, duration) in durations {
            // The core counts time in microseconds.
            if duration.as_micros() == 0 {
                return error(limit, "it must be at least a microsecond");
            }
        }
        Ok(())
    }
}

/// A bound that cannot be kept, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitError {
    /// The field of [`Limits`].
    pub limit: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limit `{}`: {}", self.limit, self.problem)
    }
}

impl core::error::Error for LimitError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_each_other() {
        assert_eq!(Limits::default().validate(), Ok(()));
    }

    /// Limits with one changed.
    fn with(change: impl FnOnce(&mut Limits)) -> Limits {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    }

    #[test]
    fn a_limit_that_cannot_be_kept_is_named() {
        let zero = Duration::ZERO;
        let cases = [
            ("max_message", with(|limits| limits.max_message = 65_536)),
            ("max_datagram", with(|limits| limits.max_datagram = 0)),
            ("max_datagram", with(|limits| limits.max_datagram = 65_508)),
            ("max_queued", with(|limits| limits.max_queued = 65_536)),
            ("max_queued", with(|limits| limits.max_queued = 1 << 32)),
            (
                "low_watermark",
                with(|limits| limits.low_watermark = 1 << 20),
            ),
            (
                "max_queued_total",
                with(|limits| limits.max_queued_total = (1 << 20) - 1),
            ),
            ("max_connections", with(|limits| limits.max_connections = 0)),
            ("max_peers", with(|limits| limits.max_peers = 0)),
            (
                "accepts_per_turn",
                with(|limits| limits.accepts_per_turn = 0),
            ),
            ("read_budget", with(|limits| limits.read_budget = 0)),
            ("message_budget", with(|limits| limits.message_budget = 0)),
            ("datagram_budget", with(|limits| limits.datagram_budget = 0)),
            (
                "time_budget",
                with(|limits| limits.time_budget = Duration::from_nanos(999)),
            ),
            (
                "max_held_total",
                with(|limits| limits.max_held_total = 65_534),
            ),
            (
                "reserved_peers",
                with(|limits| limits.reserved_peers = 1 << 16),
            ),
            (
                "first_message_timeout",
                with(|limits| limits.first_message_timeout = zero),
            ),
            (
                "connect_timeout",
                with(|limits| limits.connect_timeout = zero),
            ),
            ("frame_timeout", with(|limits| limits.frame_timeout = zero)),
            (
                "stream_idle_timeout",
                with(|limits| limits.stream_idle_timeout = zero),
            ),
            (
                "datagram_idle_timeout",
                with(|limits| limits.datagram_idle_timeout = zero),
            ),
            (
                "write_stall_timeout",
                with(|limits| limits.write_stall_timeout = zero),
            ),
            ("drain_timeout", with(|limits| limits.drain_timeout = zero)),
        ];
        for (name, limits) in cases {
            let error = limits.validate().unwrap_err();
            assert_eq!(error.limit, name);
            let text = std::string::ToString::to_string(&error);
            assert!(
                text.starts_with("limit `") && text.contains(error.problem),
                "{text}"
            );
        }
    }

    #[test]
    fn a_limit_may_be_all_that_can_be_kept() {
        let cases = [
            with(|limits| limits.max_message = 65_535),
            with(|limits| limits.max_datagram = 65_507),
            with(|limits| limits.max_datagram = 1),
            with(|limits| {
                // Room for one message of the longest and its header.
                limits.max_queued = 65_537;
                limits.low_watermark = 0;
            }),
            with(|limits| {
                limits.max_message = 100;
                limits.max_datagram = 50;
                limits.max_queued = 102;
                limits.low_watermark = 101;
            }),
            with(|limits| {
                limits.max_message = 48;
                limits.max_datagram = 102;
                limits.max_queued = 102;
                limits.low_watermark = 101;
            }),
            with(|limits| {
                limits.max_queued = (1 << 32) - 1;
                limits.max_queued_total = (1 << 32) - 1;
            }),
            with(|limits| limits.max_queued_total = 1 << 20),
            with(|limits| limits.max_held_total = 65_535),
            with(|limits| limits.reserved_peers = (1 << 16) - 1),
        ];
        for limits in cases {
            assert_eq!(limits.validate(), Ok(()), "{limits:?}");
        }
        let narrow = with(|limits| {
            limits.max_message = 100;
            limits.max_datagram = 50;
            limits.max_queued = 101;
            limits.low_watermark = 10;
        });
        assert_eq!(narrow.validate().unwrap_err().limit, "max_queued");
    }

    #[test]
    fn the_defaults_are_what_is_documented() {
        let limits = Limits::default();
        assert_eq!(limits.max_queued, 1_048_576);
        assert_eq!(limits.low_watermark, 262_144);
        assert_eq!(limits.max_queued_total, 1_073_741_824);
        assert_eq!(limits.max_peers, 65_536);
        assert_eq!(limits.read_budget, 262_144);
        assert_eq!(limits.max_held_total, 268_435_456);
    }
}
