//! How true the simulator is: the same programs in a simulation and over the kernels of two network
//! namespaces, between which a relay delays and loses what it carries. Their figures, side by side, are
//! a page of the book, which `CUBENET_WRITE_DOCS=1` writes.
//!
//! The real half runs in real time, about a minute and a half, and needs the right to make namespaces:
//!
//! ```sh
//! cargo test --release --package cubenet-tests --test truth -- --ignored
//! ```

#![cfg(target_os = "linux")]

mod kernels;
mod page;
mod programs;
mod simulated;

use cubenet_core::{Limits, Transport};
use cubenet_tests::harness::{Accept, Connected, Connection};
use cubenet_tests::system::have_taps;
use programs::Row;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How the path between the two hosts treats a packet, each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// One way.
    pub(crate) delay: Duration,
    pub(crate) loss: f64,
    /// Bits a second.
    pub(crate) bandwidth: Option<u64>,
    /// Bytes that wait for it.
    pub(crate) queue: usize,
}

impl Path {
    pub(crate) const GOOD: Path = Path {
        delay: Duration::from_millis(10),
        loss: 0.0,
        bandwidth: None,
        queue: 64 << 10,
    };

    pub(crate) fn losing(loss: f64) -> Path {
        Path { loss, ..Path::GOOD }
    }
}

/// Two hosts and a path between them.
pub(crate) trait World {
    /// Listens on the server.
    fn listen(&self, transport: Transport, accept: Accept) -> SocketAddr;
    /// Connects from the client.
    fn connect(
        &self,
        transport: Transport,
        to: SocketAddr,
        connected: Connected,
    ) -> Arc<dyn Connection>;
    /// An address of the server's where no socket listens.
    fn unused(&self) -> SocketAddr;
    /// Nothing gets through from now on.
    fn cut(&self);
    /// Lets this much time pass.
    fn pass(&self, time: Duration);
    /// Lets time pass until `done`, for at most this long. Returns whether it is.
    fn until(&self, longest: Duration, done: &mut dyn FnMut() -> bool) -> bool;
    /// The time.
    fn now(&self) -> Duration;
}

/// Of both networks.
pub(crate) fn limits() -> Limits {
    Limits::new()
        .with_connect_timeout(Duration::from_secs(90))
        .with_write_stall_timeout(Duration::from_secs(3))
}

/// Makes worlds of one kind: with a path like this, and buffers of streams of so many bytes unless
/// the system is to choose.
pub(crate) type Make = dyn Fn(Path, Option<usize>) -> Box<dyn World>;

#[test]
#[ignore = "takes a minute and a half; `.ci/run` runs it"]
fn programs_fare_in_the_simulator_as_they_do_over_real_kernels() {
    if !have_taps() {
        return;
    }
    let real = programs::run(&|path, buffer| Box::new(kernels::Kernels::new(path, buffer)));
    let simulated =
        programs::run(&|path, buffer| Box::new(simulated::Simulated::new(path, buffer)));
    let pairs: Vec<(Row, Row)> = real.into_iter().zip(simulated).collect();
    for (real, simulated) in &pairs {
        println!("{}: {} | {}", real.what, real.shown(), simulated.shown());
    }
    page::write(&pairs);
    for (real, simulated) in &pairs {
        simulated.must_be_like(real);
    }
}
