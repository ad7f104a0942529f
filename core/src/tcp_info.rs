//! What the system knows of the way to the peer of a stream.

use core::time::Duration;

/// What the system has measured of a stream: see [`Handle::tcp_info`](crate::Handle::tcp_info). Counts are from
/// the beginning of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TcpInfo {
    /// The time from sending something to its acknowledgement, smoothed; zero before the first.
    pub round_trip: Duration,
    /// How much that varies: its mean deviation.
    pub round_trip_variation: Duration,
    /// The shortest round trip, if the system says.
    pub shortest_round_trip: Option<Duration>,
    /// Segments with data that were sent, those that were sent again included; if the system says.
    pub sent: Option<u64>,
    /// Segments that were sent again, those that open the connection included.
    pub retransmitted: u64,
    /// Segments that the system takes for lost and that are not acknowledged yet, whether they were sent
    /// again or not.
    pub lost: u64,
}

impl TcpInfo {
    /// Which part of the segments had to be sent again, from 0 to 1: about as many as the way loses.
    /// `None` before any was sent, or if the system does not say.
    pub fn loss(&self) -> Option<f64> {
        let sent = self.sent.filter(|sent| *sent > 0)?;
        Some((self.retransmitted as f64 / sent as f64).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_a_part_of_what_was_sent() {
        let mut info = TcpInfo::default();
        assert_eq!(info.loss(), None);
        info.sent = Some(0);
        assert_eq!(info.loss(), None);
        (info.sent, info.retransmitted) = (Some(200), 5);
        assert_eq!(info.loss(), Some(0.025));
        // Control segments that are sent again are no segments with data.
        info.sent = Some(1);
        assert_eq!(info.loss(), Some(1.0));
    }
}
