//! cubenet in a virtual network on a virtual clock: seeded, deterministic, with faults.
//!
//! The same [`Handler`]s as on the other drivers, the same `listen`, `connect` and
//! [`Connection`], on as many virtual hosts as you like. Time jumps to the next event, so
//! that hours of a thousand connections take a second. One seed is one run, byte for byte:
//! whatever goes wrong in it goes wrong again, for you to look at.
//!
//! # Testing a handler of your own
//!
//! A small game: players move on a line, the server tells every player. It must not send
//! to a player who has left, must survive a player who sends nonsense, and all who stay must
//! see the same world in the end, whatever the network does.
//!
//! ```
//! use cubenet_sim::{
//!     CloseReason, Conditions, Connection, Faults, Handler, Link, Message, Simulation, Transport,
//! };
//! use std::collections::BTreeMap;
//! use std::net::IpAddr;
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! // The game. Nothing in it knows that it is simulated but the type of the handle.
//! #[derive(Default)]
//! struct World {
//!     players: BTreeMap<u64, (Connection, i8)>,
//! }
//!
//! struct Player {
//!     world: Arc<Mutex<World>>,
//! }
//!
//! impl Handler for Player {
//!     fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
//!         let &[step] = &*message else {
//!             return link.abort(); // nonsense
//!         };
//!         let mut world = self.world.lock().unwrap();
//!         let Some((_, at)) = world.players.get_mut(&link.id().as_u64()) else {
//!             return;
//!         };
//!         *at = at.saturating_add(if step == 0 { -1 } else { 1 });
//!         let news = [link.id().as_u64() as u8, *at as u8];
//!         for (connection, _) in world.players.values() {
//!             // A player that cannot keep up is disconnected.
//!             if connection.send(news).is_err() {
//!                 connection.abort();
//!             }
//!         }
//!     }
//!
//!     fn closed(&mut self, link: &mut dyn Link, _reason: CloseReason) {
//!         self.world.lock().unwrap().players.remove(&link.id().as_u64());
//!     }
//! }
//!
//! // A client, as far as the test needs one: it keeps what it receives.
//! #[derive(Clone, Default)]
//! struct Screen(Arc<Mutex<BTreeMap<u8, u8>>>);
//!
//! impl Handler for Screen {
//!     fn received(&mut self, _link: &mut dyn Link, news: Message<'_>) {
//!         self.0.lock().unwrap().insert(news[0], news[1]);
//!     }
//! }
//!
//! fn play(seed: u64) -> Result<(), cubenet_sim::Error> {
//!     // A bad mobile network, and sockets that behave as badly as they may.
//!     let simulation = Simulation::builder()
//!         .seed(seed)
//!         .conditions(
//!             Conditions::new()
//!                 .with_latency(Duration::from_millis(60))
//!                 .with_jitter(Duration::from_millis(40))
//!                 .with_loss(0.05),
//!         )
//!         .faults(Faults::new().with_short_read(0.5).with_partial_write(0.5))
//!         .build()?;
//!
//!     let world = Arc::new(Mutex::new(World::default()));
//!     let server: IpAddr = [10, 0, 0, 1].into();
//!     let of_server = Arc::clone(&world);
//!     simulation.network(server).start()?.listen(
//!         Transport::Tcp,
//!         (server, 7000),
//!         move |connection| {
//!             let mut world = of_server.lock().unwrap();
//!             world.players.insert(connection.id().as_u64(), (connection.clone(), 0));
//!             Some(Player { world: Arc::clone(&of_server) })
//!         },
//!     )?;
//!
//!     let screens: Vec<_> = (0..3).map(|_| Screen::default()).collect();
//!     let mut players = Vec::new();
//!     for (nth, screen) in screens.iter().enumerate() {
//!         let host: IpAddr = [10, 0, 1, nth as u8].into();
//!         let screen = screen.clone();
//!         let network = simulation.network(host).start()?;
//!         players.push(network.connect(Transport::Tcp, (server, 7000), |_| screen)?);
//!     }
//!     simulation.run_for(Duration::from_secs(30));
//!
//!     for _ in 0..20 {
//!         for player in &players {
//!             // The test's own choices come from the seed, too.
//!             let _ = player.send([simulation.random() as u8 % 2]);
//!         }
//!         simulation.run_for(Duration::from_millis(100));
//!     }
//!     // One is gone without a word; one has gone mad.
//!     simulation.crash([10, 0, 1, 0].into());
//!     players[1].send("nonsense").unwrap();
//!     for _ in 0..20 {
//!         players[2].send([1]).unwrap();
//!         simulation.run_for(Duration::from_secs(60));
//!     }
//!
//!     let world = world.lock().unwrap();
//!     assert_eq!(world.players.len(), 1, "seed {seed}: players that left are gone");
//!     for (id, (_, at)) in &world.players {
//!         let shown = screens[2].0.lock().unwrap().get(&(*id as u8)).copied();
//!         assert_eq!(shown, Some(*at as u8), "seed {seed}: the screen is right");
//!     }
//!     Ok(())
//! }
//!
//! // A run that fails prints its seed.
//! for seed in 0..50 {
//!     play(seed)?;
//! }
//! # Ok::<(), cubenet_sim::Error>(())
//! ```
//!
//! # What is simulated
//!
//! - *Paths* between hosts ([`Conditions`]), each with a direction: latency, jitter, loss, in
//!   bursts too, bandwidth and queue, for every packet, be it a segment, a SYN, a SYN-ACK, an ACK or a
//!   RST; packets damaged, long datagrams in fragments;
//!   datagrams duplicated, overtaken, forged; connects refused, connections reset at both ends or at
//!   one. [`Simulation::partition`], [`Simulation::partition_one_way`] and [`Simulation::heal`] cut
//!   and mend, [`Simulation::nat`] puts hosts behind a router that translates addresses, and
//!   [`Simulation::rebind`] makes it forget.
//! - *Hosts* ([`Faults`]): reads and writes cut short, full buffers, readers that stand
//!   still, no descriptors; [`Simulation::crash`] pulls the power,
//!   [`Simulation::freeze`] stops the clock of one. Buffers, ports and what survives a reset are as
//!   on Linux.
//! - *Streams* are a small TCP: they open in three packets, segments that are lost are sent again,
//!   the receiver's buffer and congestion hold the sender back. So throughput falls with loss as it
//!   does.
//! - *Work* takes no time unless it is given [`Costs`]: then worker threads are busy, and overload,
//!   late ticks and starvation show. The [`Budgets`] hold in any case.
//! - *Threads*: callbacks of different workers, and [threads](Simulation::spawn) of the
//!   application's own, [interleave](Builder::interleave) as the seed chooses, so that races and
//!   deadlocks of handlers show.
//! - *Schedules*: [`Simulation::at`] has anything done when its time comes.
//! - *Layers* such as TLS ([`ListenOptions::layer`], [`ConnectOptions::layer`]) see every fault that
//!   a stream sees.
//! - *Peers of plain bytes* ([`RawStream`], [`RawDatagrams`]) send what no driver would.
//!
//! # What makes a run repeat
//!
//! There is no clock and no chance in a simulation but its generator, and one thread runs at a
//! time. What the application adds is its own: a handler that reads a clock, iterates a `HashMap`
//! or waits for a thread makes two runs of one seed differ, and [`Simulation::trace_hash`] shows it.

mod census;
mod conditions;
mod conn_info;
mod connection;
mod costs;
mod error;
mod job;
mod kernel;
mod link;
mod network;
mod network_state;
mod owner;
mod peers;
mod random;
mod raw;
mod run;
mod schedule;
mod shared;
mod simulation;
mod stream;
mod threads;
mod timers;
mod trace;
mod worker;
mod world;

pub use census::Census;
pub use conditions::{Bursts, Conditions, FaultError, Faults};
pub use connection::Connection;
pub use costs::Costs;
pub use cubenet_core::layer::{
    ConnectOptions, Ends, Identity, Layer, LayerError, LayerState, MakeLayer, Stack,
};
pub use cubenet_core::{
    Budgets, ByReason, CloseReason, ConnectError, ConnectionId, Frame, FrameError, FullPolicy,
    Handle, Handler, Histogram, Instant, LimitError, Limits, Link, Message, Metric, MetricKind,
    MetricValue, Metrics, Report, SendError, Timeout, Transport, TransportError,
};
pub use error::{Error, Refusal};
pub use kernel::Traffic;
pub use network::Network;
pub use network::address::ToAddress;
pub use network::builder::Builder as NetworkBuilder;
pub use network::listen_options::ListenOptions;
pub use network::listener::Listener;
pub use raw::{RawDatagrams, RawEnd, RawListener, RawStream};
pub use simulation::{Builder, Simulation, Thread};

/// The code in the package's README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
