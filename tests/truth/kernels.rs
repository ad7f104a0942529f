//! Two network namespaces, each with a kernel's network stack of its own, and a relay between them.

use crate::{Path, World, limits};
use cubenet_core::Transport;
use cubenet_tests::harness::{Accept, Connected, Connection, Driven, Listener, Net};
use cubenet_tests::system::ip;
use cubenet_tests::system::tap::{Pump, Tap, enter};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 2);
const MTU: usize = 1_500;
/// Bytes of an Ethernet header, which the path does not count.
const ETHERNET: usize = 14;

/// Done by the thread of the server's namespace, with what it keeps.
type Job = Box<dyn FnOnce(&mut Kept) + Send>;

#[derive(Default)]
struct Kept {
    network: Option<Driven<cubenet_mio::Network>>,
    listeners: Vec<Box<dyn Listener>>,
}

/// A thread in a namespace of its own.
struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    tap: Tap,
}

impl Namespace {
    /// One with this address, in which a network runs.
    fn new(address: Ipv4Addr, buffer: Option<usize>) -> Self {
        let (jobs, todo): (Sender<Job>, Receiver<Job>) = channel();
        let (made, made_here) = channel();
        let thread = std::thread::spawn(move || {
            let (tap, _pump): (Tap, Pump) = enter(MTU, || {});
            ip(&format!("addr add {address}/24 dev tap0"));
            // What the simulator does, and what every kernel has.
            std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno")
                .expect("the namespace is ours");
            let mut kept = Kept {
                network: Some(network(buffer)),
                ..Kept::default()
            };
            made.send(tap).unwrap();
            for job in todo {
                job(&mut kept);
            }
            kept.listeners.clear();
            if let Some(network) = kept.network.take() {
                network.stop(Duration::ZERO);
            }
        });
        let tap = made_here.recv().expect("a namespace was made before");
        Namespace {
            jobs: Some(jobs),
            thread: Some(thread),
            tap,
        }
    }

    fn run<R: Send + 'static>(&self, job: impl FnOnce(&mut Kept) -> R + Send + 'static) -> R {
        let (done, result) = channel();
        let job: Job = Box::new(move |kept| done.send(job(kept)).unwrap());
        self.jobs.as_ref().expect("it runs").send(job).unwrap();
        result.recv().expect("the job does not panic")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn network(buffer: Option<usize>) -> Driven<cubenet_mio::Network> {
    let builder = cubenet_mio::Network::builder().workers(1);
    let mut builder = builder.limits(limits());
    if let Some(bytes) = buffer {
        builder = builder.stream_buffer(bytes);
    }
    let network = builder.start().expect("a network");
    Driven::new(network, (SERVER, 0).into())
}

/// One direction of the relay.
struct Way {
    from: Tap,
    to: Tap,
    frames: VecDeque<(Instant, Vec<u8>)>,
    busy: Instant,
    random: fastrand::Rng,
}

impl Way {
    fn new(from: &Tap, to: &Tap, seed: u64) -> Self {
        Way {
            from: from.clone(),
            to: to.clone(),
            frames: VecDeque::new(),
            busy: Instant::now(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    fn go_on(&mut self, path: Path, cut: bool) {
        let now = Instant::now();
        while let Some(frame) = self.from.take() {
            // ARP comes first; that is not what is measured.
            let is_ip = frame.get(12..14) == Some(&[0x08, 0x00]);
            if is_ip && (cut || self.random.f64() < path.loss) {
                continue;
            }
            let mut departs = now;
            if let Some(bits) = path.bandwidth {
                let takes =
                    |bytes: usize| Duration::from_secs_f64(bytes as f64 * 8.0 / bits as f64);
                if self.busy.saturating_duration_since(now) > takes(path.queue) {
                    continue;
                }
                self.busy = self.busy.max(now) + takes(frame.len() - ETHERNET);
                departs = self.busy;
            }
            self.frames.push_back((departs + path.delay, frame));
        }
        while let Some((at, _)) = self.frames.front()
            && *at <= now
            && let Some((_, frame)) = self.frames.pop_front()
        {
            self.to.give(frame);
        }
    }
}

/// The two, and the relay.
pub(crate) struct Kernels {
    server: Namespace,
    client: Namespace,
    is_cut: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    relay: Option<JoinHandle<()>>,
    begun: Instant,
}

impl Kernels {
    pub(crate) fn new(path: Path, buffer: Option<usize>) -> Self {
        let server = Namespace::new(SERVER, buffer);
        let client = Namespace::new(CLIENT, buffer);
        let mut ways = [
            Way::new(&server.tap, &client.tap, 1),
            Way::new(&client.tap, &server.tap, 2),
        ];
        let (is_cut, ends) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (cut, end) = (Arc::clone(&is_cut), Arc::clone(&ends));
        let relay = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                for way in &mut ways {
                    way.go_on(path, cut.load(Ordering::Relaxed));
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let kernels = Kernels {
            server,
            client,
            is_cut,
            ends,
            relay: Some(relay),
            begun: Instant::now(),
        };
        kernels.introduce();
        kernels
    }

    /// Lets the two know each other's hardware addresses, whatever the path loses.
    fn introduce(&self) {
        for (namespace, own, other) in [
            (&self.server, SERVER, CLIENT),
            (&self.client, CLIENT, SERVER),
        ] {
            let [own_hardware, hardware] = [own, other].map(|address| {
                let last = address.octets()[3];
                format!("02:00:00:00:03:{last:02x}")
            });
            namespace.run(move |_| {
                ip(&format!("link set tap0 address {own_hardware}"));
                ip(&format!(
                    "neigh replace {other} lladdr {hardware} dev tap0 nud permanent"
                ));
            });
        }
    }
}

impl World for Kernels {
    fn listen(&self, transport: Transport, accept: Accept) -> SocketAddr {
        self.server.run(move |kept| {
            let network = kept.network.as_ref().expect("it runs");
            let any = (SERVER, 0).into();
            let listener = Net::listen(network, transport, Some(any), accept);
            let listener = listener.expect("a free port");
            let local = listener.local_addr();
            kept.listeners.push(listener);
            local
        })
    }

    fn connect(
        &self,
        transport: Transport,
        to: SocketAddr,
        connected: Connected,
    ) -> Arc<dyn Connection> {
        self.client.run(move |kept| {
            let network = kept.network.as_ref().expect("it runs");
            let connection = Net::connect(network, transport, to, connected);
            connection.expect("it can be connected to")
        })
    }

    fn unused(&self) -> SocketAddr {
        (SERVER, 9).into()
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    fn pass(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn until(&self, longest: Duration, done: &mut dyn FnMut() -> bool) -> bool {
        let begun = Instant::now();
        while !done() {
            if begun.elapsed() > longest {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(relay) = self.relay.take() {
            let _ = relay.join();
        }
    }
}
