//! The simulation: the hosts, the network between them, and time.

use crate::conditions::{self, Conditions, Faults};
use crate::error::Error;
use crate::kernel::{Capture, CaptureFile, HostId, Kernel, Traffic};
use crate::network::address::ToAddress;
use crate::network::builder::Builder as NetworkBuilder;
use crate::raw::{self, RawDatagrams, RawListener, RawStream};
use crate::run;
use crate::shared::Shared;
use crate::threads::{Pause, Threads};
use crate::world::Next;
use cubenet_core::{Instant, Transport};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a simulation is to be; [`Builder::build`] makes it.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    seed: u64,
    conditions: Conditions,
    faults: Faults,
    interleave: f64,
}

impl Builder {
    /// What determines every chance in it. Default 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How paths treat what is sent along them. Default: a local network without faults.
    #[must_use]
    pub fn conditions(mut self, conditions: Conditions) -> Self {
        self.conditions = conditions;
        self
    }

    /// How hosts treat their sockets. Default: without faults.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Of the points at which a callback may be held up in the middle while those of other workers
    /// run, those at which it is: where it begins and ends, and at each call of a connection. The
    /// seed chooses, so a handler with a race, or with two locks taken in two orders, fails for some
    /// seeds, and again for the same. From 0 to 1; default 0.
    ///
    /// Callbacks then run on threads of the system, one at a time. A callback that waits for a lock of
    /// the application's own lets the others go on; if it still waits after ten seconds of virtual
    /// time, or nothing else is left to happen, the simulation panics and names the callbacks that wait. One
    /// thing is left to chance: in which order two threads get a lock that both wait for.
    ///
    /// The thread that runs the simulation is not one of these. If it takes a lock that a held-up
    /// handler holds, it waits for ever. So do not take such a lock between steps, in
    /// [`at`](Simulation::at), or in the `Drop` of a handler.
    #[must_use]
    pub fn interleave(mut self, rate: f64) -> Self {
        self.interleave = rate;
        self
    }

    /// Makes it, at time zero, without hosts.
    pub fn build(self) -> Result<Simulation, Error> {
        conditions::check_rates([("interleave", self.interleave)]).map_err(Error::Faults)?;
        self.conditions.validate().map_err(Error::Faults)?;
        self.faults.validate().map_err(Error::Faults)?;
        let kernel = Kernel::new(self.seed, self.conditions, self.faults);
        Ok(Simulation {
            shared: Shared::new(kernel, self.interleave),
            seed: self.seed,
            schedule: Mutex::default(),
        })
    }
}

/// A virtual network and its clock.
///
/// Nothing happens in it unless it is run: by [`step`](Simulation::step), by
/// [`run_for`](Simulation::run_for) and their like, on the thread that calls them. Time
/// jumps to the next event. It cannot be run from inside a callback: that panics, as any
/// panic of a callback does. When it is dropped, all its handlers are.
pub struct Simulation {
    pub(crate) shared: Arc<Shared>,
    seed: u64,
    /// What a test has scheduled.
    schedule: Mutex<Schedule>,
}

type Scheduled = Box<dyn FnOnce(&Simulation) + Send>;

/// A test's own functions, by the time at which they are called, and in the order they were given.
#[derive(Default)]
struct Schedule {
    functions: BTreeMap<(Instant, u64), Scheduled>,
    pushed: u64,
}

impl Schedule {
    fn push(&mut self, at: Instant, function: Scheduled) {
        self.pushed += 1;
        self.functions.insert((at, self.pushed), function);
    }

    fn next_at(&self) -> Instant {
        let first = self.functions.first_key_value();
        first.map_or(Instant::NEVER, |((at, _), _)| *at)
    }

    fn pop(&mut self) -> Option<Scheduled> {
        Some(self.functions.pop_first()?.1)
    }
}

impl Simulation {
    /// A simulation to be configured and built.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A simulation with this seed and no faults.
    pub fn new(seed: u64) -> Self {
        let kernel = Kernel::new(seed, Conditions::default(), Faults::default());
        Simulation {
            shared: Shared::new(kernel, 0.0),
            seed,
            schedule: Mutex::default(),
        }
    }

    /// What determines every chance in it.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    // Hosts.

    /// A network for the host at `address`, to be configured and started.
    pub fn network(&self, address: IpAddr) -> NetworkBuilder {
        NetworkBuilder::new(&self.shared, self.host(address))
    }

    /// Connects to `to` from the host at `from`, as a peer of plain bytes.
    pub fn raw_connect(&self, from: IpAddr, to: impl ToAddress) -> Result<RawStream, Error> {
        let to = to.to_address()?;
        raw::connect(&self.shared, self.wake(from), to)
    }

    /// Listens at `address` as a peer of plain bytes.
    pub fn raw_listen(&self, address: impl ToAddress) -> Result<RawListener, Error> {
        let address = address.to_address()?;
        let host = self.wake(address.ip());
        raw::listen(&self.shared, host, address).map_err(|refusal| Error::Listen {
            transport: Transport::Tcp,
            address,
            refusal,
        })
    }

    /// A datagram socket at `address` with nothing behind it.
    pub fn raw_datagrams(&self, address: impl ToAddress) -> Result<RawDatagrams, Error> {
        let address = address.to_address()?;
        let host = self.wake(address.ip());
        raw::bind(&self.shared, host, address).map_err(|refusal| Error::Listen {
            transport: Transport::Udp,
            address,
            refusal,
        })
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many functions are scheduled.
    pub(crate) fn scheduled(&self) -> usize {
        self.schedule().functions.len()
    }

    fn host(&self, address: IpAddr) -> HostId {
        self.shared.lock().kernel.host_at(address)
    }

    fn wake(&self, address: IpAddr) -> HostId {
        let mut world = self.shared.lock();
        let host = world.kernel.host_at(address);
        world.kernel.host_mut(host).alive = true;
        host
    }

    // What goes wrong.

    /// From now on this is how all paths treat what is sent along them, but those with
    /// conditions of their own.
    pub fn set_conditions(&self, conditions: Conditions) -> Result<(), Error> {
        conditions.validate().map_err(Error::Faults)?;
        self.shared.lock().kernel.paths.set_default(conditions);
        Ok(())
    }

    /// From now on this is how the path from one host to another treats what is sent along
    /// it. The way back is a path of its own.
    pub fn set_path(&self, from: IpAddr, to: IpAddr, conditions: Conditions) -> Result<(), Error> {
        conditions.validate().map_err(Error::Faults)?;
        let mut world = self.shared.lock();
        let (from, to) = (world.kernel.host_at(from), world.kernel.host_at(to));
        world.kernel.paths.set(from, to, conditions);
        Ok(())
    }

    /// From now on this is how every host, and every one to come, treats its sockets.
    pub fn set_faults(&self, faults: Faults) -> Result<(), Error> {
        faults.validate().map_err(Error::Faults)?;
        let mut world = self.shared.lock();
        for host in world.kernel.hosts() {
            host.faults = faults.clone();
        }
        world.kernel.faults = faults;
        Ok(())
    }

    /// The same for one host.
    pub fn set_host_faults(&self, host: IpAddr, faults: Faults) -> Result<(), Error> {
        faults.validate().map_err(Error::Faults)?;
        let mut world = self.shared.lock();
        let host = world.kernel.host_at(host);
        world.kernel.host_mut(host).faults = faults;
        Ok(())
    }

    /// Nothing gets from one of these hosts to the other any more. What streams had under
    /// way is sent again and again until it arrives or is given up.
    pub fn partition(&self, one: IpAddr, other: IpAddr) {
        self.set_cut(one, other, true);
    }

    /// Nothing gets from `from` to `to` any more; the other way is open.
    pub fn partition_one_way(&self, from: IpAddr, to: IpAddr) {
        let mut world = self.shared.lock();
        let (from, to) = (world.kernel.host_at(from), world.kernel.host_at(to));
        world.kernel.paths.set_cut(from, to, true);
    }

    /// Undoes a [`partition`](Simulation::partition), of either kind.
    pub fn heal(&self, one: IpAddr, other: IpAddr) {
        self.set_cut(one, other, false);
    }

    fn set_cut(&self, one: IpAddr, other: IpAddr, cut: bool) {
        let mut world = self.shared.lock();
        let (one, other) = (world.kernel.host_at(one), world.kernel.host_at(other));
        world.kernel.paths.set_cut(one, other, cut);
        world.kernel.paths.set_cut(other, one, cut);
    }

    /// Puts hosts behind a router that translates addresses: whatever they send is seen to come from
    /// `outside`, each socket at a port of its own, and only hosts that it has sent to can answer. The
    /// router forgets a datagram socket's port once it has carried nothing for `timeout` (30 s are
    /// common), a stream's after two hours and four minutes. Paths are those of the hosts behind it.
    pub fn nat(&self, outside: IpAddr, inside: &[IpAddr], timeout: Duration) {
        let mut world = self.shared.lock();
        world.kernel.add_nat(outside, inside, timeout);
    }

    /// The router at `outside` forgets everything, as one does that was switched off and on, and
    /// is at `new` from now on, which may be the same address, but not another router's. Peers see whatever is sent from
    /// behind it come from another address: datagrams from a new peer; streams are reset once they
    /// send.
    pub fn rebind(&self, outside: IpAddr, new: IpAddr) -> Result<(), Error> {
        if self.shared.lock().kernel.rebind(outside, new) {
            Ok(())
        } else {
            Err(Error::NoRouter { address: outside })
        }
    }

    /// The power of a host fails: its network is gone, its handlers are dropped without a
    /// callback, and its peers get neither FIN nor RST. A callback that is held up runs to its end;
    /// nothing that it sends arrives. A new network can be started on it; until
    /// then whatever is sent there is lost, and afterwards it is answered with a RST.
    pub fn crash(&self, host: IpAddr) {
        let mut world = self.shared.lock();
        let id = world.kernel.host_at(host);
        let sockets = world.kernel.crash(id);
        for network in &mut world.networks {
            if network.host == id {
                network.crash();
            }
        }
        let sockets = sockets.into_iter();
        let owners: Vec<_> = sockets.map(|socket| world.owners.remove(socket)).collect();
        // A handler may use a connection as it is dropped.
        drop(world);
        drop(owners);
    }

    /// Nothing runs on a host for a while: what arrives waits, and its timers are late.
    pub fn freeze(&self, host: IpAddr, duration: Duration) {
        let mut world = self.shared.lock();
        let until = world.kernel.now.after(duration);
        let host = world.kernel.host_at(host);
        world.kernel.host_mut(host).frozen_until = until;
    }

    /// Sockets that the host may have open from now on. Those that are open stay.
    pub fn set_descriptors(&self, host: IpAddr, descriptors: usize) {
        let mut world = self.shared.lock();
        let host = world.kernel.host_at(host);
        world.kernel.host_mut(host).max_descriptors = descriptors;
    }

    /// Has something done when the time comes: a partition, a crash, another wave of
    /// clients. A moment that has passed counts as now.
    pub fn at(&self, moment: Instant, what: impl FnOnce(&Simulation) + Send + 'static) {
        let moment = moment.max(self.now());
        self.schedule().push(moment, Box::new(what));
    }

    /// Begins a thread of the application's own, such as one that ticks: it runs only while nothing else
    /// does. It may be held up at any call of a connection if the simulation
    /// [interleaves](Builder::interleave). `name` appears in reports. If it panics, the thread that
    /// runs the simulation panics, too.
    ///
    /// ```
    /// # use cubenet_sim::Simulation;
    /// # use std::time::Duration;
    /// let simulation = Simulation::new(1);
    /// simulation.spawn("tick", |thread| {
    ///     while thread.sleep(Duration::from_millis(50)) {
    ///         // Send every player the state of the game.
    ///     }
    /// });
    /// simulation.run_for(Duration::from_secs(60));
    /// ```
    pub fn spawn(&self, name: &str, what: impl FnOnce(&Thread) + Send + 'static) {
        let thread = Thread(Arc::clone(&self.shared.threads));
        let name = format!("thread `{name}`");
        let now = self.now();
        self.at(now, move |simulation| {
            let what = Box::new(move || what(&thread));
            run::spawn(&simulation.shared, name, what);
        });
    }

    // Looking at it.

    /// Writes every packet sent from now on to a file that Wireshark reads (pcapng). Each packet is
    /// written once, when it leaves its host, with a comment if it is lost or damaged; packets that
    /// a router drops are left out. Ends an earlier capture first, and returns its error.
    ///
    /// The simulation collects 64 KiB before it writes, between two steps.
    pub fn capture(&self, writer: impl Write + Send + 'static) -> io::Result<()> {
        let ended = self.end_capture();
        let mut capture = Capture::new()?;
        let mut file = CaptureFile::new(Box::new(writer));
        file.write(&capture.take());
        self.shared.set_capture_file(Some(file));
        self.shared.lock().kernel.set_capture(Some(capture));
        ended
    }

    /// Ends the capture, if there is one, and flushes its writer. Returns the first error of that
    /// writer; nothing was written after it.
    pub fn end_capture(&self) -> io::Result<()> {
        let capture = self.shared.lock().kernel.set_capture(None);
        let file = self.shared.set_capture_file(None);
        match (capture, file) {
            (Some(mut capture), Some(mut file)) => {
                file.write(&capture.take());
                file.finish()
            }
            _ => Ok(()),
        }
    }

    // Time.

    /// The time: microseconds since the beginning.
    pub fn now(&self) -> Instant {
        self.shared.lock().kernel.now
    }

    /// Lets the next thing happen. Returns whether there was one.
    pub fn step(&self) -> bool {
        self.step_until(Instant::NEVER)
    }

    /// Lets everything happen that happens within this time.
    pub fn run_for(&self, duration: Duration) {
        let until = self.now().after(duration);
        self.run_until(until);
    }

    /// Lets everything happen that happens up to `moment`. It is that time afterwards.
    pub fn run_until(&self, moment: Instant) {
        while self.step_until(moment) {}
        let mut world = self.shared.lock();
        if moment != Instant::NEVER {
            world.kernel.now = world.kernel.now.max(moment);
        }
    }

    /// Runs until nothing is left to happen.
    pub fn run_until_idle(&self) {
        while self.step() {}
    }

    /// Runs while `condition` returns true, for at most `longest` of virtual time. Returns true if
    /// `condition` became false, false if the time was up or no event was left first.
    pub fn run_while(&self, longest: Duration, mut condition: impl FnMut() -> bool) -> bool {
        let until = self.now().after(longest);
        while condition() {
            if !self.step_until(until) {
                return !condition();
            }
        }
        true
    }

    fn step_until(&self, until: Instant) -> bool {
        let on_thread = self.shared.threads.current().is_some();
        let mut world = self.shared.lock();
        if on_thread || world.is_in_callback() {
            drop(world);
            panic!("a simulation cannot be run from inside a callback, or by a thread of its own");
        }
        if world.blocked_since.is_some() {
            drop(world);
            run::check_blocked(&self.shared, until);
            world = self.shared.lock();
        }
        loop {
            let next = world.next(until, self.schedule().next_at());
            drop(world);
            match next {
                Next::Nothing => return false,
                Next::Done => {}
                Next::Job(job) => run::start(&self.shared, job),
                Next::Thread(thread) => run::resume(&self.shared, thread),
                Next::Scheduled => {
                    // The function may schedule another: it runs without the lock.
                    let function = self.schedule().pop();
                    if let Some(function) = function {
                        function(self);
                    }
                }
                Next::Drop(values) => {
                    drop(values);
                    world = self.shared.lock();
                    continue;
                }
                Next::Capture(bytes) => {
                    self.shared.write_captured(&bytes);
                    world = self.shared.lock();
                    continue;
                }
            }
            return true;
        }
    }

    // What came of it.

    /// Everything that has happened so far, as one number: two runs with the same number
    /// were the same run, byte for byte.
    pub fn trace_hash(&self) -> u64 {
        self.shared.lock().kernel.trace.hash()
    }

    /// How many events went into the [`trace_hash`](Simulation::trace_hash).
    pub fn events(&self) -> u64 {
        self.shared.lock().kernel.trace.records()
    }

    /// What the network did to what was sent.
    pub fn traffic(&self) -> Traffic {
        self.shared.lock().kernel.traffic
    }

    /// A number by chance, for decisions of the test's own. It is part of the run: the same
    /// seed gives the same numbers.
    pub fn random(&self) -> u64 {
        self.shared.lock().kernel.random.next()
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.shared.threads.close();
    }
}

/// A thread that [`Simulation::spawn`] began, to itself.
pub struct Thread(Arc<Threads>);

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Thread")
    }
}

impl Thread {
    /// Lets this much virtual time pass. Returns whether the simulation is still there: if it is
    /// not, no more time passes, and the thread is to end.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> bool {
        self.0.point(|| Some(Pause::For(duration)))
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.seed)
            .field("now", &self.now())
            .field("census", &self.census())
            .finish_non_exhaustive()
    }
}
