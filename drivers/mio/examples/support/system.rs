//! What the operating system allows and reports.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// Whether the process has been asked to end: SIGINT, SIGTERM, Ctrl-C.
#[derive(Clone)]
pub struct End(Arc<(Mutex<bool>, Condvar)>);

impl End {
    /// Listens to that from now on, instead of ending at once. Who asks again is heard at once.
    pub fn watch() -> Self {
        let end = End(Arc::default());
        let asked = end.clone();
        let handler = move || {
            let (flag, changed) = &*asked.0;
            if std::mem::replace(&mut *lock(flag), true) {
                // What a shell says of a process that was interrupted.
                std::process::exit(130);
            }
            changed.notify_all();
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            eprintln!("cannot wait for signals: {error}");
        }
        end
    }

    /// Whether somebody has asked.
    pub fn is_asked(&self) -> bool {
        *lock(&self.0.0)
    }

    /// Waits until somebody asks.
    pub fn wait(&self) {
        let (flag, changed) = &*self.0;
        let asked = changed.wait_while(lock(flag), |asked| !*asked);
        drop(asked.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits so long, or until somebody asks.
    pub fn wait_for(&self, time: Duration) {
        let (flag, changed) = &*self.0;
        let asked = changed.wait_timeout_while(lock(flag), time, |asked| !*asked);
        drop(asked.unwrap_or_else(PoisonError::into_inner));
    }
}

fn lock(flag: &Mutex<bool>) -> MutexGuard<'_, bool> {
    flag.lock().unwrap_or_else(PoisonError::into_inner)
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
