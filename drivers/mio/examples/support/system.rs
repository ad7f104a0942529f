//! What the operating system allows and reports.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Raises the limit on open descriptors as far as it goes and returns it.
pub fn descriptors() -> u64 {
    #[cfg(unix)]
    return rlimit::increase_nofile_limit(u64::MAX).unwrap_or(256);
    #[cfg(not(unix))]
    16_384
}

/// Bytes of memory this process occupies now; `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    // Under Wine there is such a file, and it is another system's.
    let statm = cfg!(target_os = "linux").then(|| std::fs::read_to_string("/proc/self/statm"))?;
    let pages: u64 = statm.ok()?.split_whitespace().nth(1)?.parse().ok()?;
    // The page size of every Linux this runs on that has /proc and statm in pages of 4 KiB.
    Some(pages * 4096)
}

/// Whether the process has been asked to end: SIGINT, SIGTERM, Ctrl-C; or SIGHUP, if that is to do
/// nothing else.
#[derive(Clone)]
pub struct End(Arc<Signals>);

#[derive(Default)]
struct Signals {
    asked: Mutex<bool>,
    changed: Condvar,
    /// Another process has the sockets.
    handed_over: AtomicBool,
    /// What SIGHUP is to do.
    hangup: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl End {
    /// Listens to that from now on, instead of ending at once. A second request ends it at once.
    pub fn watch() -> Self {
        let end = End(Arc::default());
        if let Err(error) = end.listen() {
            complain!("cannot wait for signals: {error}");
        }
        end
    }

    #[cfg(unix)]
    fn listen(&self) -> std::io::Result<()> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
        let end = self.clone();
        std::thread::spawn(move || {
            for signal in signals.forever() {
                match &*lock(&end.0.hangup) {
                    Some(does) if signal == SIGHUP => does(),
                    _ => end.ask(),
                }
            }
        });
        Ok(())
    }

    #[cfg(not(unix))]
    fn listen(&self) -> Result<(), ctrlc::Error> {
        let end = self.clone();
        ctrlc::set_handler(move || end.ask())
    }

    fn ask(&self) {
        if std::mem::replace(&mut *lock(&self.0.asked), true) {
            // What a shell says of a process that was interrupted.
            std::process::exit(130);
        }
        self.0.changed.notify_all();
    }

    /// Another process has the sockets, and this one is to end.
    pub fn hand_over(&self) {
        self.0.handed_over.store(true, Relaxed);
        *lock(&self.0.asked) = true;
        self.0.changed.notify_all();
    }

    /// Whether that is so.
    pub fn is_handed_over(&self) -> bool {
        self.0.handed_over.load(Relaxed)
    }

    /// From now on SIGHUP does this. There is no such thing on Windows.
    pub fn on_hangup(&self, does: impl Fn() + Send + 'static) {
        *lock(&self.0.hangup) = Some(Box::new(does));
    }

    /// Whether the end was asked for.
    pub fn is_asked(&self) -> bool {
        *lock(&self.0.asked)
    }

    /// Waits until the end is asked for.
    pub fn wait(&self) {
        let Signals { asked, changed, .. } = &*self.0;
        let asked = changed.wait_while(lock(asked), |asked| !*asked);
        drop(asked.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits so long, or until the end is asked for. Returns whether it is.
    pub fn wait_for(&self, time: Duration) -> bool {
        let Signals { asked, changed, .. } = &*self.0;
        let asked = changed.wait_timeout_while(lock(asked), time, |asked| !*asked);
        *asked.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the library's events to stderr, as `RUST_LOG` asks; warnings, if it does not, or asks
/// for something that does not exist.
pub fn log() {
    let filter = match std::env::var("RUST_LOG") {
        Ok(asked) => asked.parse::<EnvFilter>().unwrap_or_else(|error| {
            complain!("RUST_LOG={asked}: {error}; write, for instance, RUST_LOG=cubenet_mio=debug");
            "warn".into()
        }),
        Err(_) => "warn".into(),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

/// An address as it is given on the command line: a host and a port.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let has_port = text.rsplit_once(':').is_some_and(|(host, port)| {
        // An IPv6 address without one ends in a number, too.
        let whole = !host.contains(':') || host.ends_with(']');
        whole && port.parse::<u16>().is_ok()
    });
    if !has_port {
        return Err(String::from(
            "write a host and a port, for instance 127.0.0.1:7000 or [::1]:7000",
        ));
    }
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses
        .next()
        .ok_or_else(|| String::from("the name has no address"))
}
