//! The bounds of the protocol, each with a default and its reason.

use crate::frame::{HEADER_LEN, MAX_PAYLOAD};
use core::fmt;
use core::time::Duration;

/// The longest datagram UDP can carry over IPv4, in bytes: 65,535 less the IP and UDP
/// headers. IPv6 could carry 20 more; one number for both is easier to keep.
pub const MAX_DATAGRAM: usize = 65_507;

crate::settings! {
    /// The bounds on what a connection, its peer and the application can make a driver hold or
    /// wait for. Each has a method that reads it, and a `with_*` method that returns a changed
    /// copy.
    ///
    /// ```
    /// use cubenet_core::Limits;
    /// let limits = Limits::new().with_max_message(1_024);
    /// assert_eq!(limits.max_message(), 1_024);
    /// assert!(limits.validate().is_ok());
    /// ```
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Limits;

    /// The longest message on a stream, either way, in bytes. A peer that declares more is
    /// closed. Default 65,535, all that a header can say.
    max_message, with_max_message: usize = MAX_PAYLOAD;

    /// The longest datagram, either way, in bytes. A longer one is dropped. Default 65,507,
    /// all that UDP over IPv4 can carry; above about 1,400 the network cuts it in pieces,
    /// and one lost piece loses it all.
    max_datagram, with_max_datagram: usize = MAX_DATAGRAM;

    /// Bytes that may wait to be sent on one connection, below 4 GiB. Default 1 MiB: one
    /// second at 1 MB/s, and 1 GiB for a thousand peers that do not read.
    max_queued, with_max_queued: usize = 1 << 20;

    /// After `Full`, `writable` is called once no more than this many bytes wait. Default
    /// 256 KiB, a quarter: enough left to keep the transport busy while the application wakes.
    low_watermark, with_low_watermark: usize = 1 << 18;

    /// Bytes that may wait to be sent on all connections together. Default 1 GiB. A message on
    /// a connection with nothing queued is always accepted; the connection that thereby takes
    /// the sum over this bound is aborted (`Overflow`).
    max_queued_total, with_max_queued_total: usize = 1 << 30;

    /// Bytes of input that all connections together may hold: frames of which a part has
    /// arrived, and bytes read before a pause and not yet delivered. Default 256 MiB: some
    /// 4,000 frames of the longest kind that have all but arrived. When the sum exceeds
    /// it, workers whose connections hold more than an equal share of it abort those that have
    /// held input longest (`Overflow`); while a callback keeps such a worker busy, the sum may
    /// reach twice the bound. A device holds input in its sockets' rings, whose size is
    /// fixed, and needs no such bound.
    max_held_total, with_max_held_total: usize = 1 << 28;

    /// Open connections on each transport, of all listeners and connects together. Streams and
    /// datagram connections are counted apart, so that neither can use up the places of the
    /// other. Default 1,000,000; the operating system's own bound on descriptors is usually
    /// met first.
    max_connections, with_max_connections: usize = 1_000_000;

    /// Peers of one datagram listener. Default 65,536: a flood of forged addresses fills no
    /// more than some 20 MB.
    max_peers, with_max_peers: usize = 1 << 16;

    /// How many of the [`max_peers`](Limits::max_peers) places are reserved for peers that the
    /// listener's admission hook recognises. Other new peers cannot take them. Default 0.
    reserved_peers, with_reserved_peers: usize = 0;

    /// What to do with a new peer when there are [`max_peers`](Limits::max_peers). Default
    /// [`FullPolicy::Refuse`]: peers that are connected stay connected.
    full_policy, with_full_policy: FullPolicy = FullPolicy::Refuse;

    /// Whether an empty datagram closes the connection of its source address. Default true.
    /// An attacker that can forge a source address can close any datagram connection with one
    /// packet; set this to false where that matters, and let
    /// [`datagram_idle_timeout`](Limits::datagram_idle_timeout) end connections. Empty datagrams are then
    /// dropped. This side still sends one when it closes.
    empty_datagram_closes, with_empty_datagram_closes: bool = true;

    /// Connections whose layers are in their handshake at the same time, of all listeners and
    /// connects together. A connection over it is refused. Default 10,000: as many as arrive in a
    /// burst; peers that begin one and never go on are gone after
    /// [`handshake_timeout`](Limits::handshake_timeout).
    max_handshakes, with_max_handshakes: usize = 10_000;

    /// How long the peer may take to complete the handshake of the layers, such as that of TLS.
    /// Default 10 s. For connections with layers only.
    handshake_timeout, with_handshake_timeout: Duration = Duration::from_secs(10);

    /// How long the peer may take to complete the handshake of the transport. Default 10 s: two
    /// retransmissions of a SYN.
    connect_timeout, with_connect_timeout: Duration = Duration::from_secs(10);

    /// How long a frame may take from its first byte to its last. Default 30 s: 64 KB at
    /// 17 kbit/s.
    frame_timeout, with_frame_timeout: Duration = Duration::from_secs(30);

    /// How long the peer of an accepted stream may take to begin its first message. Default
    /// 2 minutes, so that peers which connect and send nothing cannot hold all places for the
    /// idle time. Lower it where clients speak at once, and raise it where they only listen.
    first_message_timeout, with_first_message_timeout: Duration = Duration::from_secs(120);

    /// How long a stream may be idle: no bytes from the peer. Default 10 minutes, so that peers that
    /// vanished without a FIN do not pile up. Applications that are idle longer send
    /// an empty message now and then, or raise it.
    stream_idle_timeout, with_stream_idle_timeout: Duration = Duration::from_secs(600);

    /// How long a datagram peer may be idle. Default 60 s: this is the usual end of a datagram
    /// connection.
    datagram_idle_timeout, with_datagram_idle_timeout: Duration = Duration::from_secs(60);

    /// How long a peer may take none of what is queued for it. Default 30 s.
    write_stall_timeout, with_write_stall_timeout: Duration = Duration::from_secs(30);

    /// How long the delivery of what was queued at a `close` may take, and the peer's FIN
    /// after it. Default 5 s.
    drain_timeout, with_drain_timeout: Duration = Duration::from_secs(5);
}

/// What a full table of datagram peers does with a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FullPolicy {
    /// The newcomer's datagram is dropped.
    Refuse,
    /// The peer that has been idle longest makes way, if it has been idle this long.
    EvictIdleFor(Duration),
}

/// How many of `max_peers` places a new peer may take; see [`Limits::peer_places`].
pub(crate) const fn places(max_peers: usize, reserved: usize, recognised: bool) -> usize {
    let reserved = if recognised { 0 } else { reserved };
    max_peers.saturating_sub(reserved)
}

impl Limits {
    /// How many places of a datagram listener a new peer may take: all of
    /// [`max_peers`](Limits::max_peers) if the listener's hook recognises it, otherwise those that are
    /// not [reserved](Limits::reserved_peers).
    pub const fn peer_places(&self, recognised: bool) -> usize {
        places(self.max_peers, self.reserved_peers, recognised)
    }

    /// Every timeout, by its name.
    const fn timeouts(&self) -> [(&'static str, Duration); 8] {
        [
            ("connect_timeout", self.connect_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("frame_timeout", self.frame_timeout),
            ("first_message_timeout", self.first_message_timeout),
            ("stream_idle_timeout", self.stream_idle_timeout),
            ("datagram_idle_timeout", self.datagram_idle_timeout),
            ("write_stall_timeout", self.write_stall_timeout),
            ("drain_timeout", self.drain_timeout),
        ]
    }

    /// The shortest of the timeouts: how often a driver that looks at its clocks at intervals has to
    /// do so.
    pub fn shortest_timeout(&self) -> Duration {
        let timeouts = self.timeouts().map(|(_, timeout)| timeout);
        timeouts.into_iter().fold(Duration::MAX, Duration::min)
    }

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
            ("max_handshakes", self.max_handshakes),
        ];
        for (limit, count) in counts {
            if count == 0 {
                return error(limit, "it must be at least 1");
            }
        }
        for (limit, duration) in self.timeouts() {
            // The core counts time in microseconds.
            if duration < Duration::from_micros(1) {
                return error(limit, "it must be at least a microsecond");
            }
        }
        Ok(())
    }
}

/// A bound that cannot be kept, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitError {
    /// The name of the limit, as a method of [`Limits`] or [`Budgets`](crate::Budgets).
    pub limit: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl LimitError {
    /// The error of a driver that cannot keep a limit.
    pub const fn new(limit: &'static str, problem: &'static str) -> Self {
        LimitError { limit, problem }
    }
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.limit, self.problem)
    }
}

impl core::error::Error for LimitError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_timeout_is_found() {
        let limits = Limits::new().with_handshake_timeout(Duration::from_millis(7));
        assert_eq!(limits.shortest_timeout(), Duration::from_millis(7));
        assert_eq!(Limits::new().shortest_timeout(), Duration::from_secs(5));
    }

    #[test]
    fn a_driver_names_the_limit_that_it_cannot_keep() {
        let error = LimitError::new("max_peers", "it must be 4 at most here");
        assert_eq!(
            std::format!("{error}"),
            "`max_peers`: it must be 4 at most here"
        );
    }

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
                text.starts_with('`') && text.contains(error.problem),
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
            with(|limits| limits.drain_timeout = Duration::from_micros(1)),
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
        assert_eq!(limits.max_held_total, 268_435_456);
    }
}
