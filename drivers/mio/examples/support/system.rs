//! What the operating system allows and reports.

use std::sync::mpsc::{Receiver, channel};

/// Raises the limit on open descriptors as far as it goes and returns it.
pub fn descriptors() -> u64 {
    #[cfg(unix)]
    return rlimit::increase_nofile_limit(u64::MAX).unwrap_or(256);
    #[cfg(not(unix))]
    16_384
}

/// Bytes of memory this process occupies now; `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    // The page size of every Linux this runs on that has /proc and statm in pages of 4 KiB.
    Some(pages * 4096)
}

/// Receives something once the process is asked to end: SIGINT, SIGTERM, Ctrl-C.
pub fn asked_to_end() -> Receiver<()> {
    let (sender, receiver) = channel();
    let handler = move || {
        let _ = sender.send(());
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        eprintln!("cannot wait for signals: {error}");
    }
    receiver
}

/// Writes the library's events to stderr, as `RUST_LOG` asks; warnings, if it does not.
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
