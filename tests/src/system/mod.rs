//! What differs between operating systems, and nothing else.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{device_and_kernel, have_taps};
#[cfg(target_os = "linux")]
pub use linux::{device_and_kernel, have_taps, in_namespace, ip, tap, tc};

use std::io::{Error, ErrorKind, Write};
use std::time::Duration;

/// Which of the two networks of a device and a kernel is on the device.
#[derive(Clone, Copy, PartialEq)]
pub enum Device {
    /// The first that is started, which mostly listens.
    Listens,
    /// The second, which mostly connects.
    Connects,
}

/// How many descriptors this process has open; `None` where the system does not say.
pub fn open_descriptors() -> Option<usize> {
    // Under Wine the folder would be there, and be another system's.
    let descriptors = cfg!(unix).then(|| std::fs::read_dir("/proc/self/fd"))?;
    Some(descriptors.ok()?.count())
}

/// The processor's time that another process has taken, to 10 ms; `None` where the system does
/// not say.
pub fn processor_time(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: Result<Vec<u64>, _> = times.map(str::parse).collect();
    Some(Duration::from_millis(10 * ticks.ok()?.iter().sum::<u64>()))
}

/// The processor's time that this process has taken, to the nanosecond; `None` where the system
/// does not say.
pub fn own_processor_time() -> Option<Duration> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let used = tasks.flatten().map(|task| {
        let books = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let first = books.split_whitespace().next();
        first.and_then(|time| time.parse::<u64>().ok()).unwrap_or(0)
    });
    Some(Duration::from_nanos(used.sum()))
}

/// How many datagrams the kernel had no room for in the buffers of the sockets that are bound to
/// this port. Linux tells; elsewhere it may be any number.
pub fn datagrams_lost(port: u16) -> usize {
    let port = format!(":{port:04X}");
    let Ok(sockets) = std::fs::read_to_string("/proc/net/udp") else {
        return usize::MAX;
    };
    let fields = sockets.lines().map(str::split_whitespace);
    let lost = fields.filter_map(|mut fields| {
        let local = fields.nth(1)?;
        let lost = fields.last()?.parse::<usize>().ok()?;
        local.ends_with(&port).then_some(lost)
    });
    lost.sum()
}

/// Allows this process as many descriptors as the system lets it.
pub fn raise_descriptors() {
    #[cfg(unix)]
    rlimit::increase_nofile_limit(u64::MAX).expect("the soft limit can be raised");
}

/// Allows this process no more than `count` descriptors. Returns whether there is such a limit;
/// says so if not.
pub fn limit_descriptors(count: u64) -> bool {
    #[cfg(unix)]
    {
        let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).expect("it is known");
        rlimit::setrlimit(rlimit::Resource::NOFILE, count, hard).expect("it can be lowered");
        true
    }
    #[cfg(not(unix))]
    {
        skipped(&format!(
            "the system cannot limit a process to {count} handles"
        ));
        false
    }
}

/// Whether a call has only begun.
pub fn is_under_way(error: &Error) -> bool {
    #[cfg(unix)]
    let in_progress = Some(nix::errno::Errno::EINPROGRESS as i32);
    #[cfg(not(unix))]
    let in_progress = None;
    error.kind() == ErrorKind::WouldBlock
        || in_progress.is_some() && error.raw_os_error() == in_progress
}

/// Bytes of the heap that mio takes to watch one socket.
pub const BYTES_OF_WATCHED: usize = if cfg!(windows) { 160 } else { 0 };

/// Whether a datagram socket that is bound to every address can learn to which of them a
/// datagram was sent; says so if not.
pub fn tells_destination() -> bool {
    let tells = cfg!(target_os = "linux");
    if !tells {
        skipped("only Linux is asked to which address a datagram was sent");
    }
    tells
}

/// Whether this runs under Wine and not on Windows: the script that starts it there says so, by
/// `CUBENET_WINE`.
pub fn is_wine() -> bool {
    cfg!(windows) && std::env::var_os("CUBENET_WINE").is_some()
}

/// Why Wine cannot show that a connection is reset.
pub const RESETS: &str = "a reset reads as an end in order";
/// Why Wine cannot show that no socket listens for datagrams.
pub const ICMP: &str = "a datagram socket gets no ICMP errors";

/// Whether a test has to be left out because this is Wine; says so, with the reason.
pub fn wine_cannot(reason: &str) -> bool {
    if is_wine() {
        skipped(&format!("Wine: {reason}"));
    }
    is_wine()
}

/// Says, past the test harness, why the test of this thread is left out.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}
