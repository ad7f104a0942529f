//! What the kernel has measured of a stream (`TCP_INFO`).

use cubenet_core::TcpInfo;
use mio::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

// Where the numbers are in the kernel's `struct tcp_info` (linux/tcp.h), which only grows at its end.
const LOST: usize = 32;
const ROUND_TRIP: usize = 68;
const ROUND_TRIP_VARIATION: usize = 72;
const RETRANSMITTED: usize = 100;
const SHORTEST_ROUND_TRIP: usize = 148;
const SENT: usize = 156;
/// The end of the last of them.
const LEN: usize = 160;

/// `None` if the kernel does not say, as of a stream that is over.
pub(crate) fn tcp_info(stream: &TcpStream) -> Option<TcpInfo> {
    let mut bytes = [0_u8; LEN];
    let mut len = LEN as libc::socklen_t;
    // SAFETY: the kernel writes as many bytes as it is told that there is room for, or fewer, and says how
    // many those are.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    (result == 0).then(|| read(&bytes[..LEN.min(len as usize)]))?
}

fn read(bytes: &[u8]) -> Option<TcpInfo> {
    let number = |at: usize| {
        let number = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(number.try_into().ok()?))
    };
    let time = |at| Some(Duration::from_micros(u64::from(number(at)?)));
    let mut info = TcpInfo::default();
    info.lost = u64::from(number(LOST)?);
    info.round_trip = time(ROUND_TRIP)?;
    info.round_trip_variation = time(ROUND_TRIP_VARIATION)?;
    info.retransmitted = u64::from(number(RETRANSMITTED)?);
    // Those that only newer kernels have. Before the first measurement the shortest is the longest that
    // there can be.
    let shortest = time(SHORTEST_ROUND_TRIP);
    info.shortest_round_trip = shortest.filter(|time| time.as_micros() < u128::from(u32::MAX));
    info.sent = number(SENT).map(u64::from);
    Some(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_kernel_says_less() {
        let bytes = [1; LEN];
        assert!(read(&bytes).is_some_and(|info| info.sent.is_some()));
        let older = read(&bytes[..RETRANSMITTED + 4]).expect("it has the rest");
        assert_eq!((older.sent, older.shortest_round_trip), (None, None));
        assert_eq!(older.retransmitted, 0x0101_0101);
        assert_eq!(read(&bytes[..RETRANSMITTED]), None);
    }
}
