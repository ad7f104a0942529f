//! What a virtual network does to what is sent over it, and a virtual host to those on it.

use cubenet_core::settings;
use std::fmt;
use std::time::Duration;

settings! {
    /// How a path between two hosts treats the packets that are sent along it. Rates are
    /// probabilities from 0 to 1. The default is a local network without faults: 100 µs and nothing
    /// else.
    ///
    /// ```
    /// use cubenet_sim::Conditions;
    /// use std::time::Duration;
    /// let mobile = Conditions::new()
    ///     .with_latency(Duration::from_millis(60))
    ///     .with_jitter(Duration::from_millis(40))
    ///     .with_loss(0.02)
    ///     .with_bandwidth(Some(2_000_000));
    /// # assert!(mobile.validate().is_ok());
    /// ```
    #[derive(Clone, Debug, PartialEq)]
    pub struct Conditions;

    /// How long a packet takes to arrive, one way. Default 100 µs.
    latency, with_latency: Duration = Duration::from_micros(100);

    /// The most that is added to the latency of each packet, by chance. Datagrams overtake each
    /// other by it; the segments of a stream are put in order again. Default zero.
    jitter, with_jitter: Duration = Duration::ZERO;

    /// Probability that a packet is lost: segments and datagrams, and SYN, SYN-ACK, ACK and RST. A
    /// stream's segments are sent again: after a round trip if enough is under way, after two if
    /// little is, and after a timeout from 200 ms if nothing else is. Default 0.
    loss, with_loss: f64 = 0.0;

    /// Times in which more is lost. Default `None`.
    bursts, with_bursts: Option<Bursts> = None;

    /// Probability that a datagram arrives twice. Default 0.
    duplicate, with_duplicate: f64 = 0.0;

    /// Probability that a datagram is held back, up to four times the latency, and so overtaken.
    /// Default 0.
    reorder, with_reorder: f64 = 0.0;

    /// Probability that a packet is damaged on its way. Its checksum shows that, so it is dropped.
    /// Default 0.
    corrupt, with_corrupt: f64 = 0.0;

    /// Probability that the checksum of a damaged datagram does not show it: it arrives with a byte
    /// changed, or cut off at the end. Default 0.
    undetected, with_undetected: f64 = 0.0;

    /// Probability that a datagram is followed by a forged one: from an address that has sent to
    /// the listener already, or from one that no host has. Default 0.
    spoof, with_spoof: f64 = 0.0;

    /// Bits a second, each way. Default `None`: no bound.
    bandwidth, with_bandwidth: Option<u64> = None;

    /// Bytes that wait for the bandwidth; further packets are lost. Default 256 KiB.
    queue, with_queue: usize = 256 * 1024;

    /// Bytes of the largest packet, headers included. A longer datagram goes in fragments, and is
    /// lost if any of them is; a stream's segments are made no longer. Default 1,500.
    mtu, with_mtu: usize = 1_500;

    /// Probability that a connect is refused although a socket listens. Default 0.
    refuse, with_refuse: f64 = 0.0;

    /// Probability, for each stream segment, that the connection is reset at both ends. Default 0.
    reset, with_reset: f64 = 0.0;

    /// Probability, for each stream segment, that the sending end is reset, and the other end gets
    /// no RST. Default 0.
    half_open, with_half_open: f64 = 0.0;
}

settings! {
    /// Losses that come together, as on radio: the model of Gilbert and Elliott. A path is in one of
    /// two states; in the good one [`Conditions::loss`] holds, in the bad one a rate of its own. Each
    /// packet may take it from one to the other. All are probabilities from 0 to 1.
    ///
    /// The share of packets in the bad state is `begin / (begin + end)`, and it lasts `1 / end`
    /// packets on average.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Bursts;

    /// Probability that the bad state begins behind a packet in the good one. Default 0.
    begin, with_begin: f64 = 0.0;

    /// Probability that the bad state ends behind a packet in it. Default 1.
    end, with_end: f64 = 1.0;

    /// Probability that a packet in the bad state is lost. Default 1.
    loss, with_loss: f64 = 1.0;
}

/// The least that IPv4 allows (RFC 791).
const MIN_MTU: usize = 68;
/// The most that a header can say.
const MAX_MTU: usize = 65_535;

impl Conditions {
    /// Whether the numbers make sense. [`Simulation`](crate::Simulation) asks before it uses
    /// them.
    pub fn validate(&self) -> Result<(), FaultError> {
        check_rates([
            ("loss", self.loss),
            ("duplicate", self.duplicate),
            ("reorder", self.reorder),
            ("corrupt", self.corrupt),
            ("undetected", self.undetected),
            ("spoof", self.spoof),
            ("refuse", self.refuse),
            ("reset", self.reset),
            ("half_open", self.half_open),
        ])?;
        if let Some(bursts) = &self.bursts {
            check_rates([
                ("bursts.begin", bursts.begin),
                ("bursts.end", bursts.end),
                ("bursts.loss", bursts.loss),
            ])?;
        }
        check_durations([("latency", self.latency), ("jitter", self.jitter)])?;
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(FaultError {
                field: "mtu",
                problem: "it must be 68 to 65,535 bytes, as IPv4 allows",
            });
        }
        if self.bandwidth == Some(0) {
            return Err(FaultError {
                field: "bandwidth",
                problem: "it must be at least 1 bit a second; a path that carries nothing is a \
                          partition",
            });
        }
        Ok(())
    }
}

settings! {
    /// How a host treats the sockets on it. Rates are probabilities from 0 to 1. The default is
    /// none of it.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Faults;

    /// Probability that a read gives only a part of what has arrived, so that frames are cut
    /// anywhere. Default 0.
    short_read, with_short_read: f64 = 0.0;

    /// Probability that a write takes only a part, however much room there is. Default 0.
    partial_write, with_partial_write: f64 = 0.0;

    /// Probability that a write takes nothing, however much room there is; for a stream and for a
    /// datagram. There is room again within a millisecond. Default 0.
    full_buffer, with_full_buffer: f64 = 0.0;

    /// Probability that the reader of a stream stops reading after an arrival; see
    /// [`stall_for`](Self::stall_for). Default 0.
    stall, with_stall: f64 = 0.0;

    /// The longest time that such a reader stops. Default zero.
    stall_for, with_stall_for: Duration = Duration::ZERO;

    /// Probability that a reset throws away what had arrived and was not read. On Linux it never
    /// does, which is 0; on other systems it always does, which is 1. Default 0.
    reset_loses_unread, with_reset_loses_unread: f64 = 0.0;

    /// Probability that an attempt to accept a connection fails for lack of a descriptor. It is made
    /// again. Default 0.
    accept_failure, with_accept_failure: f64 = 0.0;
}

impl Faults {
    /// Whether the numbers make sense. [`Simulation`](crate::Simulation) asks before it uses
    /// them.
    pub fn validate(&self) -> Result<(), FaultError> {
        check_rates([
            ("short_read", self.short_read),
            ("partial_write", self.partial_write),
            ("full_buffer", self.full_buffer),
            ("stall", self.stall),
            ("reset_loses_unread", self.reset_loses_unread),
            ("accept_failure", self.accept_failure),
        ])?;
        check_durations([("stall_for", self.stall_for)])?;
        for (field, rate) in [
            ("full_buffer", self.full_buffer),
            ("accept_failure", self.accept_failure),
        ] {
            if rate >= 1.0 {
                let problem = "it must be below 1, or nothing would ever go on";
                return Err(FaultError { field, problem });
            }
        }
        Ok(())
    }
}

pub(crate) fn check_rates<const N: usize>(
    rates: [(&'static str, f64); N],
) -> Result<(), FaultError> {
    for (field, rate) in rates {
        if !(0.0..=1.0).contains(&rate) {
            let problem = "a rate is a probability, from 0 to 1";
            return Err(FaultError { field, problem });
        }
    }
    Ok(())
}

pub(crate) fn check_durations<const N: usize>(
    durations: [(&'static str, Duration); N],
) -> Result<(), FaultError> {
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
    for (field, duration) in durations {
        if duration > LONGEST {
            let problem = "it must be at most a day; for longer, use a partition or a freeze";
            return Err(FaultError { field, problem });
        }
    }
    Ok(())
}

/// A number in [`Conditions`] or [`Faults`] that makes no sense, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.problem)
    }
}

impl std::error::Error for FaultError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_is_none_is_named() {
        for loss in [-0.1, 1.1, f64::NAN] {
            let conditions = Conditions::new().with_loss(loss);
            assert_eq!(conditions.validate().unwrap_err().field, "loss");
        }
        let faults = Faults::new().with_full_buffer(1.0);
        assert_eq!(faults.validate().unwrap_err().field, "full_buffer");
        assert_eq!(Conditions::default().validate(), Ok(()));
        assert_eq!(Faults::default().validate(), Ok(()));
    }
}
