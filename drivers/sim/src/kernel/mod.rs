//! The virtual operating systems and the network between them: hosts, sockets that never
//! block, and what is under way. It knows nothing of messages or handlers; it says
//! which sockets are ready, as a real kernel does.

mod capture;
mod datagram;
mod host;
mod iteration;
mod nat;
mod path;
mod ports;
mod queue;
mod segment;
mod stream;

pub(crate) use capture::{Capture, CaptureFile};
pub(crate) use datagram::{Arrived, Received};
pub(crate) use host::{Host, HostId};
pub(crate) use iteration::Iteration;
pub(crate) use path::Paths;
pub(crate) use ports::EPHEMERAL;
pub(crate) use segment::Segment;
pub(crate) use stream::{Read, StreamBuffers};

use crate::conditions::{Conditions, Faults};
use crate::random::Random;
use crate::trace::{Record, Trace};
use bytes::Bytes;
use cubenet_core::{CloseReason, Instant, Transport};
use datagram::DatagramSocket;
use nat::{Nat, NatId, Passage, Side};
use queue::Queue;
use segment::Control;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use stream::{ListenSocket, StreamSocket};

/// The name of a socket. No other has had it or will have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    generation: u32,
}

impl Key {
    fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }
}

/// What happens at some time.
enum Event {
    /// A SYN arrives.
    Syn {
        to: SocketAddr,
        from: Key,
        /// The address that the listener sees.
        seen_at: SocketAddr,
    },
    /// The SYN was not answered; it is sent again.
    SynAgain(Key),
    /// A SYN-ACK arrives, from this socket.
    SynAck {
        to: Key,
        by: Key,
        /// Bytes that it has room for.
        window: u32,
    },
    /// The third packet of a handshake (ACK) arrives, for this socket.
    Ack(Key),
    /// The third packet has not come in time; the SYN-ACK is sent again.
    SynAckAgain(Key),
    Segment(Segment),
    /// A segment was lost; it is sent again.
    SendAgain(Segment),
    /// An acknowledgement was lost; it is repeated.
    AcknowledgeAgain {
        to: Key,
        attempt: u32,
    },
    /// The connection with `by`, or the connect, has failed for this reason.
    Fail {
        to: Key,
        by: Option<Key>,
        reason: CloseReason,
    },
    /// There is room to send again.
    Transmit(Key),
    Notice(Key, Notice),
    /// A socket that was closed with something to send is dropped, unless it makes progress.
    Forget(Key),
    /// A window that closed is asked about.
    Probe(Key),
    Datagram {
        /// The host that it goes to.
        at: HostId,
        from: SocketAddr,
        to: SocketAddr,
        sender: Key,
        bytes: Bytes,
    },
    /// No socket was bound where a datagram went.
    Unreachable(Key),
    Due(Due),
}

/// What a socket tells its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A connection may be accepted.
    Acceptable,
    /// The peer has answered the SYN.
    Connected,
    Readable,
    Writable,
    /// It is over.
    Failed,
    /// Its timer has fired.
    Timeout,
    /// A budget ended its last iteration; the next one has come.
    RunAgain,
}

/// What the kernel leaves to others.
pub(crate) enum Due {
    /// A worker of a network goes on.
    Work { network: u32, worker: u32 },
    /// A thread that was held up goes on.
    Resume(u32),
    /// A network that stops looks which of its streams are acknowledged.
    StopCheck { network: u32 },
    /// A network has stopped for as long as it may take.
    StopDeadline { network: u32 },
}

enum Socket {
    Listen(Box<ListenSocket>),
    Stream(Box<StreamSocket>),
    Datagrams(Box<DatagramSocket>),
}

struct Entry {
    generation: u32,
    socket: Option<Socket>,
}

/// What the network did, all hosts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Stream segments and datagrams that were sent.
    pub packets: u64,
    /// Packets that were lost on their way, or sent to an address without a socket.
    pub lost: u64,
    /// Packets that carry nothing of the application's: SYN-ACK, ACK, RST.
    pub control: u64,
    /// Control packets that were lost on their way, or sent to a host that does not run.
    pub control_lost: u64,
    /// Stream segments that were sent again.
    pub sent_again: u64,
    /// Datagrams that arrived a second time.
    pub duplicated: u64,
    /// Datagrams that were held back.
    pub reordered: u64,
    /// Datagrams that were changed on their way, those that were dropped for it included.
    pub corrupted: u64,
    /// Fragments of datagrams that were longer than a packet of their path.
    pub fragments: u64,
    /// Datagrams that were forged.
    pub spoofed: u64,
    /// Datagrams that found their socket's buffer full.
    pub overflowed: u64,
    /// Connections that the network reset.
    pub reset: u64,
    /// Connects that the network refused.
    pub refused: u64,
    /// Times that a reader stood still.
    pub stalled: u64,
    /// Writes cut short or refused.
    pub held_up: u64,
    /// Attempts to accept that failed.
    pub accept_failed: u64,
}

pub(crate) struct Kernel {
    pub(crate) now: Instant,
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    pub(crate) traffic: Traffic,
    /// The iteration of a worker that runs.
    pub(crate) iteration: Iteration,
    pub(crate) paths: Paths,
    /// The faults of hosts to come.
    pub(crate) faults: Faults,
    hosts: Vec<Host>,
    by_address: BTreeMap<IpAddr, HostId>,
    /// Where what is sent is written down.
    capture: Option<Box<Capture>>,
    nats: Vec<Nat>,
    nat_at: BTreeMap<IpAddr, NatId>,
    sockets: Vec<Entry>,
    free: Vec<u32>,
    events: Queue<Event>,
    notices: VecDeque<(Key, Notice)>,
    /// Streams that were written to and have not sent.
    dirty: Vec<Key>,
}

impl Kernel {
    pub(crate) fn new(seed: u64, conditions: Conditions, faults: Faults) -> Self {
        Kernel {
            now: Instant::ZERO,
            random: Random::new(seed),
            trace: Trace::new(),
            traffic: Traffic::default(),
            iteration: Iteration::NONE,
            paths: Paths::new(conditions),
            faults,
            hosts: Vec::new(),
            by_address: BTreeMap::new(),
            capture: None,
            nats: Vec::new(),
            nat_at: BTreeMap::new(),
            sockets: Vec::new(),
            free: Vec::new(),
            events: Queue::new(),
            notices: VecDeque::new(),
            dirty: Vec::new(),
        }
    }

    // Hosts.

    /// The host at `address`, whether a network runs on it or not.
    pub(crate) fn host_at(&mut self, address: IpAddr) -> HostId {
        let next = HostId(self.hosts.len() as u32);
        let id = *self.by_address.entry(address).or_insert(next);
        if id == next {
            let mut host = Host::new(address);
            host.faults = self.faults.clone();
            self.hosts.push(host);
        }
        id
    }

    /// Whether a host may have another address: it may be another's.
    pub(crate) fn may_add_address(&mut self, id: HostId, address: IpAddr) -> bool {
        let other = self.host_at(address);
        other == id || !self.host(other).alive
    }

    /// Gives a host another address, with what the paths to and from it were set to.
    pub(crate) fn add_address(&mut self, id: HostId, address: IpAddr) {
        let before = self.by_address.insert(address, id);
        if let Some(before) = before.filter(|before| *before != id) {
            self.paths.inherit(before, id);
        }
        self.host_mut(id).add_address(address);
    }

    pub(crate) fn host(&self, id: HostId) -> &Host {
        &self.hosts[id.0 as usize]
    }

    pub(crate) fn host_mut(&mut self, id: HostId) -> &mut Host {
        &mut self.hosts[id.0 as usize]
    }

    pub(crate) fn hosts(&mut self) -> impl Iterator<Item = &mut Host> {
        self.hosts.iter_mut()
    }

    /// The network at this host vanishes without FIN or RST. Returns the sockets it had.
    pub(crate) fn crash(&mut self, id: HostId) -> Vec<Key> {
        let of_host = |entry: &Entry| match &entry.socket {
            Some(Socket::Listen(socket)) => socket.host == id,
            Some(Socket::Stream(socket)) => socket.host == id,
            Some(Socket::Datagrams(socket)) => socket.host == id,
            None => false,
        };
        let mut keys = Vec::new();
        for slot in 0..self.sockets.len() {
            if of_host(&self.sockets[slot]) {
                let generation = self.sockets[slot].generation;
                let slot = slot as u32;
                keys.push(Key { slot, generation });
            }
        }
        for key in &keys {
            self.remove(*key);
        }
        let host = self.host_mut(id);
        host.clear();
        host.alive = false;
        keys
    }

    // Sockets.

    fn insert(&mut self, socket: Socket) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(Entry {
                generation: 0,
                socket: None,
            });
            self.sockets.len() as u32 - 1
        });
        let entry = &mut self.sockets[slot as usize];
        entry.socket = Some(socket);
        Key {
            slot,
            generation: entry.generation,
        }
    }

    fn remove(&mut self, key: Key) -> Option<Socket> {
        let entry = self.sockets.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let socket = entry.socket.take()?;
        entry.generation += 1;
        self.free.push(key.slot);
        Some(socket)
    }

    fn socket(&mut self, key: Key) -> Option<&mut Socket> {
        let entry = self.sockets.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        entry.socket.as_mut()
    }

    /// The host that a socket is on.
    pub(crate) fn host_of(&self, key: Key) -> Option<HostId> {
        let entry = self.sockets.get(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        Some(match entry.socket.as_ref()? {
            Socket::Listen(socket) => socket.host,
            Socket::Stream(socket) => socket.host,
            Socket::Datagrams(socket) => socket.host,
        })
    }

    /// How many sockets there are.
    pub(crate) fn len(&self) -> usize {
        self.sockets.len() - self.free.len()
    }

    // Time.

    /// When the next thing happens.
    pub(crate) fn next_at(&self) -> Instant {
        if self.notices.is_empty() && self.dirty.is_empty() {
            self.events.next_at()
        } else {
            self.now
        }
    }

    /// How much is under way.
    pub(crate) fn pending(&self) -> usize {
        self.events.len() + self.notices.len()
    }

    /// The next notice, if there is one now.
    pub(crate) fn notice(&mut self) -> Option<(Key, Notice)> {
        self.notices.pop_front()
    }

    pub(crate) fn notify(&mut self, key: Key, notice: Notice) {
        self.notices.push_back((key, notice));
    }

    pub(crate) fn notify_at(&mut self, at: Instant, key: Key, notice: Notice) {
        self.events.push(at, Event::Notice(key, notice));
    }

    pub(crate) fn work_at(&mut self, at: Instant, network: u32, worker: u32) {
        let due = Due::Work { network, worker };
        self.events.push(at, Event::Due(due));
    }

    pub(crate) fn resume_at(&mut self, at: Instant, thread: u32) {
        self.events.push(at, Event::Due(Due::Resume(thread)));
    }

    pub(crate) fn stop_check_at(&mut self, at: Instant, network: u32) {
        let due = Due::StopCheck { network };
        self.events.push(at, Event::Due(due));
    }

    pub(crate) fn stop_deadline_at(&mut self, at: Instant, network: u32) {
        let due = Due::StopDeadline { network };
        self.events.push(at, Event::Due(due));
    }

    /// Counts what moving `bytes` to or from the system takes, and the call itself if `calls`.
    fn charge(&mut self, host: HostId, calls: bool, bytes: usize) {
        let Some(costs) = &self.hosts[host.0 as usize].costs else {
            return;
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let calls = costs.system_call() * u32::from(calls);
        self.iteration
            .spend(costs.byte().saturating_mul(bytes).saturating_add(calls));
    }

    /// When what is sent now leaves: once the work before it is done.
    fn departure(&self) -> Instant {
        match self.iteration.spent {
            0 => self.now,
            spent => self.now.after(Duration::from_nanos(spent)),
        }
    }

    /// Sends what was written.
    pub(crate) fn transmit_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            self.transmit(key);
        }
        // Transmitting makes none dirty. Its memory is used again.
        self.dirty = dirty;
    }

    /// Lets the next thing happen, at its time.
    pub(crate) fn step(&mut self) -> Option<Due> {
        let (at, event) = self.events.pop()?;
        self.now = at;
        match event {
            Event::Syn { to, from, seen_at } => self.syn_arrived(to, from, seen_at),
            Event::SynAgain(key) => self.send_syn(key),
            Event::SynAck { to, by, window } => self.syn_ack_arrived(to, by, window),
            Event::Segment(segment) => self.arrived(segment),
            Event::SendAgain(segment) => self.send_again(segment),
            Event::Ack(by) => self.handshake_done(by),
            Event::SynAckAgain(by) => self.retransmit_syn_ack(by),
            Event::AcknowledgeAgain { to, attempt } => self.acknowledge_again(to, attempt),
            Event::Fail { to, by, reason } => self.failed_by(to, by, reason),
            Event::Transmit(key) => self.transmit(key),
            Event::Notice(key, notice) => self.notices.push_back((key, notice)),
            Event::Forget(key) => self.linger(key),
            Event::Probe(key) => self.probe(key),
            Event::Datagram {
                at,
                from,
                to,
                sender,
                bytes,
            } => self.datagram_arrived(at, (from, to), sender, bytes),
            Event::Unreachable(key) => self.unreachable(key),
            Event::Due(due) => return Some(due),
        }
        None
    }

    fn record(&mut self, record: Record, key: Key, bytes: &[u8]) {
        self.trace.record(self.now, record, key.number(), bytes);
    }

    /// When a packet arrives that the peer of `to`, a stream, sends it, and that carries nothing of
    /// the application's: SYN-ACK, ACK, RST. `None` if it does not.
    fn carry_control_to(&mut self, to: Key, what: Control) -> Option<Instant> {
        let Some(Socket::Stream(socket)) = self.socket(to) else {
            return None;
        };
        let (from, host) = (socket.remote_host, socket.host);
        if socket.nat == Side::Open || self.passage_to(to) == Passage::Through {
            let at = self.carry_control(from, host);
            self.capture_control(to, what, at.is_some());
            return at;
        }
        self.traffic.control += 1;
        self.traffic.control_lost += 1;
        None
    }

    /// When a packet that carries nothing of the application's arrives. `None` if it is lost.
    fn carry_control(&mut self, from: HostId, to: HostId) -> Option<Instant> {
        /// Addresses, ports, numbers and an option or two.
        const CONTROL_LEN: usize = 52;
        let (now, alive) = (self.now, self.host(to).alive);
        let random = &mut self.random;
        let carried = self.paths.carry(from, to, CONTROL_LEN, now, random);
        self.traffic.control += 1;
        let at = carried.intact().filter(|_| alive);
        self.traffic.control_lost += u64::from(at.is_none());
        at
    }

    /// The socket that listens at `address`, of this host.
    fn listener(&self, host: HostId, transport: Transport, address: SocketAddr) -> Option<Key> {
        let slot = self.host(host).bound(transport, address)?;
        let generation = self.sockets[slot as usize].generation;
        Some(Key { slot, generation })
    }
}

/// How long until what was lost is sent again, the `attempt`th time.
fn retransmission_timeout(attempt: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(120);
    (FIRST * 2_u32.pow(attempt.min(12))).min(LONGEST)
}
