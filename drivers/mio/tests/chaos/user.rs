//! The application: handlers, closures and destructors that do whatever chance says.

use crate::world::{Connect, World, lock};
use cubenet_mio::{
    Admission, CloseReason, Connection, Frame, Handler, Link, ListenOptions, Message, Network,
    SendError, Transport, TransportError,
};
use cubenet_tests::late;
use fastrand::Rng;
use std::net::SocketAddr;
use std::panic::panic_any;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// The payload of a panic that is meant. It panics again when it is dropped, sometimes.
pub(crate) struct Chaos(bool);

impl Drop for Chaos {
    fn drop(&mut self) {
        if self.0 {
            panic_any(Chaos(false));
        }
    }
}

/// Does things as its own numbers say.
pub(crate) struct Actor {
    world: Weak<World>,
    rng: Rng,
    /// What it has done inside a callback does not nest further.
    depth: u32,
}

impl Actor {
    pub(crate) fn new(world: &Arc<World>, seed: u64) -> Self {
        Actor {
            world: Arc::downgrade(world),
            rng: Rng::with_seed(seed),
            depth: 0,
        }
    }

    fn fork(&mut self, world: &Arc<World>) -> Actor {
        Actor::new(world, self.rng.u64(..))
    }

    /// Does one thing, on `own` or anything else.
    fn act(&mut self, own: Option<&Sends>) {
        let Some(world) = self.world.upgrade() else {
            return;
        };
        if self.depth > 2 {
            return;
        }
        self.depth += 1;
        let connection = self.connection(&world, own);
        match self.rng.u8(..) {
            0..100 => {
                if let Some(own) = own {
                    own.send(&world, &mut self.rng);
                }
            }
            100..120 => with(connection, Connection::pause),
            120..150 => with(connection, Connection::resume),
            150..158 => with(connection, Connection::close),
            158..164 => with(connection, Connection::abort),
            164..170 => with(connection, |one| {
                let _ = (one.queued(), one.is_closed(), one.local_addr());
            }),
            170..190 => self.connect(&world),
            190..196 => {
                if let Some(network) = self.network(&world) {
                    let transport = self.transport();
                    listen(&world, &network, transport, self.rng.u64(..));
                }
            }
            196..200 => {
                let mut listeners = lock(&world.listeners);
                let nth = self.rng.usize(0..=listeners.len());
                // One of each stays, so that there is always something to connect to.
                let taken = (nth > 4 && nth < listeners.len()).then(|| listeners.remove(nth));
                drop(listeners);
                if let Some((listener, is_closed)) = taken {
                    listener.close();
                    // On a network's own thread it does not wait for callbacks that are running.
                    let thread = thread::current();
                    if !thread
                        .name()
                        .is_some_and(|name| name.starts_with("cubenet"))
                    {
                        is_closed.store(true, SeqCst);
                    }
                }
            }
            200..206 => {
                if let Some(network) = self.network(&world) {
                    let _ = network.metrics().to_string();
                }
            }
            206..212 => {
                let mut connections = lock(&world.connections);
                let dropped = std::mem::take(&mut *connections);
                drop(connections);
                drop(dropped);
            }
            212..222 => thread::sleep(Duration::from_micros(self.rng.u64(0..1_500))),
            222..230 if world.may_panic => panic_any(Chaos(self.rng.bool())),
            230..238 => Connection::batch(|| {
                for _ in 0..self.rng.usize(0..6) {
                    self.act(own);
                }
            }),
            250..254 => {
                let mut actor = self.fork(&world);
                with(connection, |one| {
                    let _ = one.run_on_worker(move |link| {
                        let _ = link.send(b"by a task");
                        actor.act_some(None);
                    });
                });
            }
            // Without a number: any thread may send it at any moment.
            238..250 => {
                let len = self.rng.usize(0..3_000);
                with(connection, |one| {
                    let _ = one.send(vec![0; len]);
                });
            }
            _ => {}
        }
        self.depth -= 1;
    }

    /// Does one thing as a thread of the application's.
    pub(crate) fn act_alone(&mut self) {
        // A panic may have left it higher.
        self.depth = 0;
        self.act(None);
    }

    /// Does a few things.
    fn act_some(&mut self, own: Option<&Sends>) {
        for _ in 0..self.rng.usize(0..4) {
            let may_act = self.world.upgrade().is_some_and(|world| world.may_act());
            if may_act {
                self.act(own);
            }
        }
    }

    fn connection(&mut self, world: &World, own: Option<&Sends>) -> Option<Connection> {
        if let Some(own) = own.filter(|_| self.rng.bool()) {
            return own.connection.clone();
        }
        let connections = lock(&world.connections);
        self.rng.choice(connections.iter()).cloned()
    }

    fn network(&mut self, world: &World) -> Option<Network> {
        let networks = lock(&world.networks);
        self.rng.choice(networks.iter()).cloned()
    }

    fn transport(&mut self) -> Transport {
        if self.rng.bool() {
            Transport::Tcp
        } else {
            Transport::Udp
        }
    }

    fn connect(&mut self, world: &Arc<World>) {
        let Some(network) = self.network(world) else {
            return;
        };
        let addresses = lock(&world.addresses);
        let address = self.rng.choice(addresses.iter()).copied();
        drop(addresses);
        let Some((transport, address)) = address else {
            return;
        };
        let mut connects = lock(&world.connects);
        let number = connects.len();
        connects.push(Connect::default());
        drop(connects);
        let mut actor = self.fork(world);
        let of_closure = Arc::downgrade(world);
        let connected = move |outcome: Result<&Connection, _>| {
            let world = of_closure.upgrade()?;
            lock(&world.connects)[number].answered += 1;
            let connection = outcome.ok()?;
            actor.open(&world, connection, transport)
        };
        // The connect may be answered before this returns.
        if let Ok(connection) = network.connect(transport, address, late(connected)) {
            lock(&world.connects)[number].began = true;
            lock(&world.connections).push(connection);
        }
    }

    /// Decides about a connection, in `accepted` or `connected`.
    fn open(
        &mut self,
        world: &Arc<World>,
        connection: &Connection,
        transport: Transport,
    ) -> Option<User> {
        let end = world.new_end(transport == Transport::Tcp);
        lock(&world.every).push(connection.clone());
        let keeps = self.rng.bool();
        let own = Sends {
            end,
            connection: keeps.then(|| connection.clone()),
        };
        if self.rng.bool() {
            lock(&world.connections).push(connection.clone());
        }
        self.act_some(Some(&own));
        if self.rng.u8(..) < 20 {
            return None;
        }
        world.end(end, |end| end.opened = true);
        Some(User {
            actor: self.fork(world),
            own,
            is_closed: false,
        })
    }
}

fn with(connection: Option<Connection>, act: impl FnOnce(&Connection)) {
    if let Some(connection) = connection {
        act(&connection);
    }
}

/// Listens with a closure that does things, and does things when it is dropped.
pub(crate) fn listen(world: &Arc<World>, network: &Network, transport: Transport, seed: u64) {
    let actor = Actor::new(world, seed);
    let at_the_end = AtTheEnd(Actor::new(world, seed ^ 1));
    let actor = std::sync::Mutex::new(actor);
    let of_closure = Arc::downgrade(world);
    let is_closed = Arc::new(AtomicBool::new(false));
    let was_closed = Arc::clone(&is_closed);
    let accepted = move |connection: &Connection| {
        let _ = &at_the_end;
        let world = of_closure.upgrade()?;
        if was_closed.load(SeqCst) {
            world.violated("`accepted` after the listener was closed");
        }
        let mut actor = lock(&actor).fork(&world);
        actor.open(&world, connection, transport)
    };
    let mut rng = Rng::with_seed(seed ^ 2);
    let mut options = ListenOptions::new();
    if rng.bool() {
        options = options.limits(crate::world::limits(&mut rng));
    }
    if rng.bool() {
        options = options.admit(hook(world, &is_closed, rng.u64(..)));
    }
    if let Ok(listener) = network.listen_with(options, transport, "127.0.0.1:0", accepted) {
        lock(&world.addresses).push((transport, listener.local_addr()));
        lock(&world.listeners).push((listener, is_closed));
    }
}

/// An admission hook that does things and admits as the seed says.
fn hook(
    world: &Arc<World>,
    is_closed: &Arc<AtomicBool>,
    seed: u64,
) -> impl Fn(SocketAddr, &[u8]) -> Admission + Send + Sync + use<> {
    let actor = std::sync::Mutex::new(Actor::new(world, seed));
    let at_the_end = AtTheEnd(Actor::new(world, seed ^ 1));
    let (world, is_closed) = (Arc::downgrade(world), Arc::clone(is_closed));
    move |_peer, _datagram| {
        let _ = &at_the_end;
        let Some(world) = world.upgrade() else {
            return Admission::Refuse;
        };
        if is_closed.load(SeqCst) {
            world.violated("the hook was asked after the listener was closed");
        }
        let mut actor = lock(&actor).fork(&world);
        actor.act_some(None);
        match actor.rng.u8(..) {
            0..40 => Admission::Refuse,
            40..200 => Admission::Admit,
            _ => Admission::Recognise,
        }
    }
}

struct AtTheEnd(Actor);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        self.0.act_some(None);
    }
}

/// One end of a connection, as its handler sends on it.
pub(crate) struct Sends {
    end: u32,
    connection: Option<Connection>,
}

impl Sends {
    /// Sends the next message of this end: its number, that of the message, and filling.
    fn send(&self, world: &World, rng: &mut Rng) {
        if let Some(connection) = &self.connection {
            let how = rng.u8(0..3);
            send(world, self.end, rng, |message| {
                match (how, Frame::new(message)) {
                    (0, Ok(frame)) => connection.send_frame(&frame),
                    (1, _) => connection.send(Looks {
                        message,
                        connection,
                    }),
                    _ => connection.send(message),
                }
            });
        }
    }
}

/// A message that uses its connection as it is read.
struct Looks<'a> {
    message: &'a [u8],
    connection: &'a Connection,
}

impl AsRef<[u8]> for Looks<'_> {
    fn as_ref(&self) -> &[u8] {
        let _ = (self.connection.queued(), self.connection.is_closed());
        self.connection.resume();
        self.message
    }
}

fn send(world: &World, end: u32, rng: &mut Rng, send: impl FnOnce(&[u8]) -> Result<(), SendError>) {
    let longest = *rng.choice(&[16, 100, 1_400, 9_000, 65_535]).unwrap_or(&16);
    let mut message = vec![0; rng.usize(16..=longest)];
    message[..8].copy_from_slice(&world.tag);
    message[8..12].copy_from_slice(&end.to_be_bytes());
    // Numbered and sent under one lock, so that the numbers are in the order of the messages.
    world.end(end, |known| {
        message[12..16].copy_from_slice(&known.accepted.to_be_bytes());
        if send(&message).is_ok() {
            known.accepted += 1;
        }
    });
}

/// A handler.
pub(crate) struct User {
    actor: Actor,
    own: Sends,
    is_closed: bool,
}

impl User {
    fn world(&self) -> Option<Arc<World>> {
        self.actor.world.upgrade()
    }

    fn check_open(&self, what: &str) {
        if self.is_closed
            && let Some(world) = self.world()
        {
            world.violated(format!("`{what}` after `closed`"));
        }
    }

    fn act(&mut self, link: &mut dyn Link) {
        let Some(world) = self.world() else {
            return;
        };
        if world.may_act() {
            match self.actor.rng.u8(..) {
                0..60 => send(&world, self.own.end, &mut self.actor.rng, |message| {
                    link.send(message)
                }),
                60..64 => link.close(),
                64..66 => link.abort(),
                66..70 => link.pause(),
                70..75 => link.resume(),
                75..80 => drop((
                    link.queued(),
                    link.is_closed(),
                    link.local_addr(),
                    link.now(),
                )),
                _ => {}
            }
        }
        self.actor.act_some(Some(&self.own));
    }
}

impl Handler for User {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.check_open("received");
        let Some(world) = self.world() else {
            return;
        };
        if let Some((from, number)) = numbers(&world, &message) {
            let violation = world.end(self.own.end, |end| {
                if !end.is_stream {
                    return None;
                }
                let expected = (*end.from.get_or_insert(from), end.received);
                end.received += 1;
                (expected != (from, number))
                    .then(|| format!("{expected:?}, not {:?}", (from, number)))
            });
            if let Some(violation) = violation {
                world.violated(format!("a stream expected message {violation}"));
            }
        }
        self.act(link);
    }

    fn writable(&mut self, link: &mut dyn Link) {
        self.check_open("writable");
        self.act(link);
    }

    fn error(&mut self, link: &mut dyn Link, _exception: TransportError) {
        self.check_open("error");
        self.act(link);
    }

    fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
        self.check_open("closed");
        self.is_closed = true;
        if let Some(world) = self.world() {
            world.end(self.own.end, |end| end.closed.push(reason));
            if !link.is_closed() || link.send(b"late") != Err(SendError::Closed) {
                world.violated("a connection is open in `closed`");
            }
        }
        self.act(link);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(world) = self.world() {
            world.end(self.own.end, |end| end.dropped += 1);
        }
        self.actor.act_some(Some(&self.own));
    }
}

/// Which end of this run sent a message, and its number. Raw peers send others, and so may
/// another process that has got the port of a listener that was closed.
fn numbers(world: &World, message: &[u8]) -> Option<(u32, u32)> {
    let rest = message.strip_prefix(&world.tag)?;
    let (from, rest) = rest.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*from), u32::from_be_bytes(*number)))
}
