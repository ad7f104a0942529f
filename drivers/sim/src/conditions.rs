//! What a virtual network does to what is sent over it, and a virtual host to those on it.

use std::fmt;
use std::time::Duration;

/// How a path between two hosts treats what is sent along it. Rates are probabilities from
/// 0 to 1. The default is a local network without faults: 100 µs and nothing else.
///
/// ```
/// use cubenet_sim::Conditions;
/// use std::time::Duration;
/// let mobile = Conditions {
///     latency: Duration::from_millis(60),
///     jitter: Duration::from_millis(40),
///     loss: 0.02,
///     bandwidth: Some(2_000_000),
///     ..Conditions::default()
/// };
/// # assert!(mobile.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    /// How long anything takes to arrive, one way.
    pub latency: Duration,
    /// What is added to that, at most, to each packet by chance. Datagrams overtake each
    /// other by it; the segments of a stream are put in order again.
    pub jitter: Duration,
    /// Of packets that are lost: segments and datagrams, and SYN, SYN-ACK, ACK and RST. A stream's segments are sent again: after a round trip if enough is
    /// under way, after two if little is, and after a timeout from 200 ms if nothing else is.
    pub loss: f64,
    /// Times in which more is lost; `None` for none.
    pub bursts: Option<Bursts>,
    /// Of datagrams that arrive twice.
    pub duplicate: f64,
    /// Of datagrams that are held back, up to four times the latency, and so overtaken.
    pub reorder: f64,
    /// Of packets that are damaged on their way. Their checksum shows it, so they are dropped.
    pub corrupt: f64,
    /// Of damaged datagrams, those whose checksum does not show it: they arrive with a byte changed,
    /// or cut off at the end.
    pub undetected: f64,
    /// Of datagrams that are followed by a forged one: from an address that has sent to the
    /// listener already, or from one that no host has.
    pub spoof: f64,
    /// Bits a second, each way; `None` for no bound.
    pub bandwidth: Option<u64>,
    /// Bytes that wait for the bandwidth before more are lost.
    pub queue: usize,
    /// Bytes of the largest packet, headers included. A longer datagram goes in fragments, and is
    /// lost if any of them is; a stream's segments are made no longer.
    pub mtu: usize,
    /// Of connects that are refused although a socket listens.
    pub refuse: f64,
    /// Of stream segments at which the connection is reset at both ends.
    pub reset: f64,
    /// Of stream segments at which the sending end is reset, and the other end gets no RST.
    pub half_open: f64,
}

/// Losses that come together, as on radio: the model of Gilbert and Elliott. A path is in one of
/// two states; in the good one [`Conditions::loss`] holds, in the bad one a rate of its own. Each
/// packet may take it from one to the other. All are probabilities from 0 to 1.
///
/// The share of packets in the bad state is `begin / (begin + end)`, and it lasts `1 / end` packets
/// on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bursts {
    /// Of packets in the good state, those behind which the bad one begins.
    pub begin: f64,
    /// Of packets in the bad state, those behind which it ends.
    pub end: f64,
    /// Of packets in the bad state that are lost.
    pub loss: f64,
}

impl Default for Conditions {
    fn default() -> Self {
        Conditions {
            latency: Duration::from_micros(100),
            jitter: Duration::ZERO,
            loss: 0.0,
            bursts: None,
            duplicate: 0.0,
            reorder: 0.0,
            corrupt: 0.0,
            undetected: 0.0,
            spoof: 0.0,
            bandwidth: None,
            queue: 256 * 1024,
            mtu: 1_500,
            refuse: 0.0,
            reset: 0.0,
            half_open: 0.0,
        }
    }
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

/// How a host treats the sockets on it. Rates are probabilities from 0 to 1. The default is
/// none of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Of reads that give only a part of what has arrived, so that frames are cut anywhere.
    pub short_read: f64,
    /// Of writes that take only a part, however much room there is.
    pub partial_write: f64,
    /// Of writes that take nothing, however much room there is; for a stream and for a
    /// datagram. There is room again within a millisecond.
    pub full_buffer: f64,
    /// Of arrivals on a stream after which its reader stands still,
    pub stall: f64,
    /// for this long at most.
    pub stall_for: Duration,
    /// Of resets, those with which what had arrived and was not read is lost. It never is on Linux,
    /// which is 0, and always on other systems, which is 1.
    pub reset_loses_unread: f64,
    /// Of attempts to accept a connection that fail for lack of a descriptor. They are made
    /// again.
    pub accept_failure: f64,
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
            let conditions = Conditions {
                loss,
                ..Conditions::default()
            };
            assert_eq!(conditions.validate().unwrap_err().field, "loss");
        }
        let faults = Faults {
            full_buffer: 1.0,
            ..Faults::default()
        };
        assert_eq!(faults.validate().unwrap_err().field, "full_buffer");
        assert_eq!(Conditions::default().validate(), Ok(()));
        assert_eq!(Faults::default().validate(), Ok(()));
    }
}
