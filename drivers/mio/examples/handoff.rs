//! The network hands messages over; the application's own threads do the work.
//!
//! cubenet has no scheduler: `received` puts work into a ready queue and returns at once, a
//! pool of threads that the network knows nothing of takes it from there, and each answers
//! through the `Connection`. Here some of the work is slow, and the round trips of the
//! others show that they do not wait for it.
//!
//! `cargo run --release --example handoff`

#[macro_use]
mod support;

use bytes::Bytes;
use clap::Parser;
use cubenet_mio::{
    ConnectError, Connection, Error, Handler, Link, Message, Network, SendError, Transport,
};
use hdrhistogram::Histogram;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use support::system;

/// Shows that slow jobs delay no other connection, as long as a thread is free.
#[derive(Parser)]
struct Options {
    /// Clients that ask for slow work, over and over.
    #[arg(long, default_value_t = 2)]
    slow: usize,
    /// Clients that ask for quick work.
    #[arg(long, default_value_t = 20)]
    quick: usize,
    /// How long a slow job takes, in milliseconds.
    #[arg(long, default_value_t = 200)]
    job_ms: u64,
    /// Threads that work; more than there are slow clients.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// How long to watch, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

/// Work: the connection that asked, and what it asked for.
struct Job {
    connection: Connection,
    request: Bytes,
}

/// The server's handler: it only hands over. If the ready queue is full, the client gets an error.
struct HandOver {
    connection: Connection,
    ready: SyncSender<Job>,
}

impl Handler for HandOver {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let job = Job {
            connection: self.connection.clone(),
            request: message.into_bytes(),
        };
        match self.ready.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                let _ = link.send(b"busy");
            }
        }
    }
}

/// A thread of the application: takes work, does it, answers.
fn work(ready: &Mutex<Receiver<Job>>, job_time: Duration) {
    loop {
        let job = ready.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            connection,
            request,
        }) = job
        else {
            return;
        };
        if &request[..] == b"slow" {
            thread::sleep(job_time);
        }
        // The client may have gone meanwhile; that is no trouble of this thread's.
        match connection.send(&request) {
            Ok(()) | Err(SendError::Closed) => {}
            Err(error) => complain!("{connection:?}: {error}"),
        }
    }
}

/// A client that asks again as soon as it is answered, and tells how long each took.
struct Asks {
    request: &'static [u8],
    asked: Instant,
    took: Sender<(&'static [u8], Duration)>,
}

impl Handler for Asks {
    fn connected(&mut self, link: &mut dyn Link) {
        if let Err(error) = link.send(self.request) {
            complain!("{error}");
        }
    }

    fn connect_failed(&mut self, error: ConnectError) {
        complain!("{error}");
    }

    fn received(&mut self, link: &mut dyn Link, _answer: Message<'_>) {
        let _ = self.took.send((self.request, self.asked.elapsed()));
        self.asked = Instant::now();
        let _ = link.send(self.request);
    }
}

fn main() -> ExitCode {
    system::log();
    let options = Options::parse();
    let counts = [
        options.slow,
        options.quick,
        options.threads,
        options.seconds as usize,
    ];
    if counts.contains(&0) {
        complain!("there must be a client of each kind, a thread and a second at least");
        return ExitCode::from(2);
    }
    let allowed = system::descriptors().saturating_sub(32) / 2;
    if (options.slow + options.quick) as u64 > allowed {
        complain!("there can be {allowed} clients at most: each takes two descriptors");
        return ExitCode::from(2);
    }
    support::print::outcome(&run(&options))
}

fn run(options: &Options) -> Result<bool, Error> {
    let end = system::End::watch();
    let (ready, jobs) = sync_channel(1024);
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..options.threads {
        let jobs = Arc::clone(&jobs);
        let job_time = Duration::from_millis(options.job_ms);
        thread::spawn(move || work(&jobs, job_time));
    }

    // One worker serves them all: were the work done in its callbacks, every connection would wait.
    let network = Network::builder().workers(1).start()?;
    let listener = network.listen(Transport::Tcp, "127.0.0.1:0", move |connection| {
        Some(HandOver {
            connection: connection.clone(),
            ready: ready.clone(),
        })
    })?;

    let (took, seen) = channel();
    let slow = std::iter::repeat_n(&b"slow"[..], options.slow);
    let quick = std::iter::repeat_n(&b"quick"[..], options.quick);
    for request in slow.chain(quick) {
        let asked = Instant::now();
        let took = took.clone();
        let asks = Asks {
            request,
            asked,
            took,
        };
        network.connect(Transport::Tcp, listener.local_addr(), |_| asks)?;
    }
    end.wait_for(Duration::from_secs(options.seconds));
    network.stop(Duration::from_millis(options.job_ms) + Duration::from_secs(1));
    drop(took);

    // In microseconds, up to ten minutes, with three digits.
    let new =
        || Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).expect("the bounds are in order");
    let (mut slow, mut quick) = (new(), new());
    for (request, took) in seen.try_iter() {
        let histogram = if request == b"slow" {
            &mut slow
        } else {
            &mut quick
        };
        histogram.saturating_record(took.as_micros() as u64);
    }
    for (name, histogram) in [("slow", &slow), ("quick", &quick)] {
        say!(
            "{name}: {} answers, p50 {} µs, p99 {} µs",
            histogram.len(),
            histogram.value_at_quantile(0.5),
            histogram.value_at_quantile(0.99),
        );
    }
    let seen = !slow.is_empty() && !quick.is_empty();
    let independent = seen && quick.value_at_quantile(0.99) < options.job_ms * 1_000 / 2;
    let verdict = if independent {
        "did not wait"
    } else {
        "waited"
    };
    say!("the quick {verdict} for the slow");
    Ok(independent)
}
