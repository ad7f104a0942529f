//! The simulation: the hosts, the network between them, and time.

use crate::conditions::{Conditions, Faults};
use crate::error::Error;
use crate::kernel::{EPHEMERAL, HostId, Kernel, Key, Notice, Traffic};
use crate::network::{Builder as NetworkBuilder, IntoAddress};
use crate::owners::Owner;
use crate::raw::{self, RawDatagrams, RawListener, RawStream};
use crate::trace::Record;
use crate::world::{Guard, Shared};
use crate::{peers, stream};
use cubenet_core::{Instant, Limits, Transport};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long after a failed `accept` it is tried again.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(20);

/// How a simulation is to be; [`Builder::build`] makes it.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    seed: u64,
    conditions: Conditions,
    faults: Faults,
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

    /// Makes it, at time zero, with nobody in it.
    pub fn build(self) -> Result<Simulation, Error> {
        self.conditions.validate().map_err(Error::Faults)?;
        self.faults.validate().map_err(Error::Faults)?;
        let kernel = Kernel::new(self.seed, self.conditions, self.faults);
        Ok(Simulation {
            shared: Shared::new(kernel),
            seed: self.seed,
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
    shared: Arc<Shared>,
    seed: u64,
}

/// What there is in a simulation at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Census {
    /// Sockets, those included that nobody owns any more and that only send what is left.
    pub sockets: usize,
    /// Connections of all networks.
    pub connections: usize,
    /// Bytes accepted by `send` that wait, on all of them.
    pub queued_bytes: usize,
    /// Bytes of memory held for partial frames.
    pub partial_bytes: usize,
    /// Packets and other events under way.
    pub pending: usize,
    /// Timers that are armed, those included that will find nothing to do.
    pub timers: usize,
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
            shared: Shared::new(kernel),
            seed,
        }
    }

    /// What determines every chance in it.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    // Who is in it.

    /// A network for the host at `address`, to be configured and started.
    pub fn network(&self, address: IpAddr) -> NetworkBuilder {
        NetworkBuilder {
            host: self.host(address),
            shared: Arc::downgrade(&self.shared),
            limits: Limits::default(),
            backlog: 4_096,
            stream_buffer: None,
            stream_unsent: None,
            datagram_buffer: 4 << 20,
            descriptors: usize::MAX,
            addresses: Vec::new(),
            ephemeral_ports: EPHEMERAL,
        }
    }

    /// Calls `to` from the host at `from`, as a peer of plain bytes.
    pub fn raw_connect(&self, from: IpAddr, to: impl IntoAddress) -> Result<RawStream, Error> {
        let to = to
            .into_address()
            .map_err(|given| Error::Address { given })?;
        raw::connect(&self.shared, self.wake(from), to)
    }

    /// Listens at `address` as a peer of plain bytes.
    pub fn raw_listen(&self, address: impl IntoAddress) -> Result<RawListener, Error> {
        let address = address
            .into_address()
            .map_err(|given| Error::Address { given })?;
        let host = self.wake(address.ip());
        raw::listen(&self.shared, host, address).map_err(|refusal| Error::Listen {
            transport: Transport::Tcp,
            address,
            refusal,
        })
    }

    /// A datagram socket at `address` with nothing behind it.
    pub fn raw_datagrams(&self, address: impl IntoAddress) -> Result<RawDatagrams, Error> {
        let address = address
            .into_address()
            .map_err(|given| Error::Address { given })?;
        let host = self.wake(address.ip());
        raw::bind(&self.shared, host, address).map_err(|refusal| Error::Listen {
            transport: Transport::Udp,
            address,
            refusal,
        })
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
    /// `outside`, each socket at a port of its own, and only those it has sent to can answer. The
    /// router forgets a datagram socket's port once it has carried nothing for `timeout` (30 s are
    /// common), a stream's after two hours and four minutes. Paths are those of the hosts behind it.
    pub fn nat(&self, outside: IpAddr, inside: &[IpAddr], timeout: Duration) {
        let mut world = self.shared.lock();
        world.kernel.add_nat(outside, inside, timeout);
    }

    /// The router at `outside` forgets everything, as one does that was switched off and on, and
    /// is at `new` from now on, which may be the same address. Peers see whatever is sent from
    /// behind it come from somebody else: datagrams from a new peer; streams are reset once they
    /// send.
    pub fn rebind(&self, outside: IpAddr, new: IpAddr) -> Result<(), Error> {
        if self.shared.lock().kernel.rebind(outside, new) {
            Ok(())
        } else {
            Err(Error::NoRouter { address: outside })
        }
    }

    /// The power of a host fails: its network is gone, its handlers are dropped without a
    /// callback, and its peers are told nothing. A new network can be started on it; until
    /// then whatever is sent there is lost, and afterwards it is answered with a reset.
    pub fn crash(&self, host: IpAddr) {
        let mut world = self.shared.lock();
        let id = world.kernel.host_at(host);
        let keys = world.kernel.crash(id);
        for network in &mut world.networks {
            if network.host == id {
                network.crashed = true;
                network.metrics.open = 0;
                network.open_streams = 0;
                network.metrics.queued_bytes = 0;
                network.metrics.held_bytes = 0;
            }
        }
        let dropped: Vec<Option<Owner>> = keys
            .into_iter()
            .map(|key| world.owners.remove(key))
            .collect();
        // A handler may use a connection as it is dropped.
        drop(world);
        drop(dropped);
    }

    /// Nothing runs on a host for a while: what arrives waits, and its timers are late.
    pub fn freeze(&self, host: IpAddr, duration: Duration) {
        let mut world = self.shared.lock();
        let until = world.now().after(duration);
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
        let mut world = self.shared.lock();
        let moment = moment.max(world.now());
        world.timers.schedule(moment, Box::new(what));
    }

    // Time.

    /// The time: microseconds since the beginning.
    pub fn now(&self) -> Instant {
        self.shared.lock().now()
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

    /// Runs until `condition` holds, for at most this time. Returns whether it does.
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
        let mut world = self.shared.lock();
        if world.is_calling() {
            drop(world);
            panic!("a simulation cannot be run from inside a callback");
        }
        let buried = world.unbury();
        if !buried.is_empty() {
            drop(world);
            drop(buried);
            world = self.shared.lock();
        }
        world.kernel.transmit_dirty();
        if let Some((key, notice)) = world.kernel.notice() {
            self.noticed(world, key, notice);
            return true;
        }
        let (event, timer) = (world.kernel.next_at(), world.timers.next_at());
        let next = event.min(timer);
        if next == Instant::NEVER || next > until {
            return false;
        }
        if event <= timer {
            world.kernel.step();
            // What it made possible belongs to it.
            if let Some((key, notice)) = world.kernel.notice() {
                self.noticed(world, key, notice);
            }
            return true;
        }
        world.kernel.now = world.kernel.now.max(timer);
        if let Some(key) = world.timers.pop(timer) {
            self.timer(world, key);
        } else if let Some(what) = world.timers.pop_scheduled(timer) {
            drop(world);
            what(self);
        }
        true
    }

    /// A socket may go on.
    fn noticed<'a>(&'a self, mut world: Guard<'a>, key: Key, notice: Notice) {
        let Some(host) = world.kernel.host_of(key) else {
            return;
        };
        let frozen_until = world.kernel.host(host).frozen_until;
        if frozen_until > world.now() {
            return world.kernel.notify_at(frozen_until, key, notice);
        }
        let shared = &self.shared;
        match (world.owners.get(key), notice) {
            (Some(Owner::Listener { .. }), _) => self.accept(world, key),
            (Some(Owner::Stream(_)), Notice::Connected) => {
                drop(stream::connected(shared, world, key));
            }
            (Some(Owner::Stream(_)), Notice::Readable) => drop(stream::read(shared, world, key)),
            (Some(Owner::Stream(_)), Notice::Failed) => drop(stream::failed(shared, world, key)),
            (Some(Owner::Stream(_)), _) => drop(stream::flush(shared, world, key)),
            (Some(Owner::Peers(_)), Notice::Readable) => drop(peers::read(shared, world, key)),
            (Some(Owner::Peers(_)), _) => drop(peers::attend(shared, world, key)),
            (Some(Owner::Raw(_)), _) => raw::noticed(&mut world, key, notice),
            (None, _) => {}
        }
    }

    /// Takes the calls that wait, as long as there are descriptors.
    fn accept<'a>(&'a self, mut world: Guard<'a>, listener: Key) {
        let now = world.now();
        while let Some(Owner::Listener {
            network,
            accept,
            again,
        }) = world.owners.get(listener)
        {
            if *again > now {
                // Whoever waits to try again is not hurried by one more that calls.
                return;
            }
            let (network, accept) = (*network, Arc::clone(accept));
            match world.kernel.accept(listener) {
                Ok(Some(key)) => {
                    world = stream::accepted(&self.shared, world, network, &*accept, key);
                    world.bury(accept);
                }
                Ok(None) => return,
                Err(_) => {
                    world.network(network).metrics.accept_failed += 1;
                    let at = now.after(ACCEPT_AGAIN);
                    if let Some(Owner::Listener { again, .. }) = world.owners.get(listener) {
                        *again = at;
                    }
                    return world.kernel.notify_at(at, listener, Notice::Acceptable);
                }
            }
        }
    }

    fn timer<'a>(&'a self, mut world: Guard<'a>, key: Key) {
        let Some(host) = world.kernel.host_of(key) else {
            return;
        };
        let frozen_until = world.kernel.host(host).frozen_until;
        if frozen_until > world.now() {
            return world.timers.again(key, frozen_until);
        }
        let now = world.now();
        world.kernel.trace.record(now, Record::Timer, 0, &[]);
        match world.owners.get(key) {
            Some(Owner::Stream(_)) => drop(stream::handle_timeout(&self.shared, world, key)),
            Some(Owner::Peers(_)) => drop(peers::handle_timeout(&self.shared, world, key)),
            _ => {}
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

    /// What there is.
    pub fn census(&self) -> Census {
        let world = self.shared.lock();
        let mut census = Census {
            sockets: world.kernel.len(),
            connections: 0,
            queued_bytes: 0,
            partial_bytes: 0,
            pending: world.kernel.pending(),
            timers: world.timers.len(),
        };
        for owner in world.owners.iter() {
            match owner {
                Owner::Stream(stream) => {
                    census.connections += 1;
                    census.queued_bytes += stream.queued();
                    census.partial_bytes += stream.footprint().unwrap_or(0);
                }
                Owner::Peers(peers) => {
                    census.connections += peers.connections().count();
                    census.queued_bytes += peers.queued();
                }
                _ => {}
            }
        }
        census
    }

    /// Checks what must hold at every moment: that what the networks count is what there
    /// is, and that nobody holds more than the limits allow. Costs time in proportion to
    /// the connections.
    pub fn audit(&self) -> Result<(), String> {
        let census = self.census();
        let world = self.shared.lock();
        let counted: usize = world
            .networks
            .iter()
            .map(|network| network.metrics.open)
            .sum();
        if counted != census.connections {
            let there = census.connections;
            return Err(format!(
                "{counted} connections are counted, {there} are there"
            ));
        }
        let networks = world.networks.iter();
        let queued: usize = networks.map(|network| network.metrics.queued_bytes).sum();
        if queued != census.queued_bytes {
            let there = census.queued_bytes;
            return Err(format!(
                "{queued} queued bytes are counted, {there} are there"
            ));
        }
        for network in &world.networks {
            let (metrics, limits) = (&network.metrics, &network.limits);
            let datagrams = metrics.open - network.open_streams;
            if network.open_streams.max(datagrams) > limits.max_connections {
                return Err(format!("{} connections are over the limit", metrics.open));
            }
            if metrics.held_bytes > limits.max_held_total {
                let held = metrics.held_bytes;
                return Err(format!(
                    "{held} bytes of held input are over the limit in all"
                ));
            }
            if metrics.queued_bytes > limits.max_queued_total {
                let queued = metrics.queued_bytes;
                return Err(format!("{queued} queued bytes are over the limit in all"));
            }
        }
        for owner in world.owners.iter() {
            if let Owner::Stream(stream) = owner {
                let limit = world.networks[stream.network.0 as usize].limits.max_queued;
                if stream.queued() > limit {
                    let (id, queued) = (stream.id, stream.queued());
                    return Err(format!("{queued} bytes on {id} are over the limit"));
                }
            }
        }
        Ok(())
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
