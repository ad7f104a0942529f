//! Players that play by themselves, and see that nothing is lost or comes twice.
//!
//! Each says numbered lines in its room, and expects those of all others, in order. One that loses its
//! connection, or hears nothing for a while, connects again and goes on with its session.

mod bot;
pub mod report;

use bot::{Bot, Tcp, Udp};
use cubenet_mio::{ConnectOptions, Connection, Network, Transport};
use report::Outcome;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::protocol::position;
use crate::support::system::End;

const SECOND: Duration = Duration::from_secs(1);
/// How often bots are looked after, which is how often they say where they are.
const PERIOD: Duration = Duration::from_millis(50);
/// After so much silence a connection is given up.
const SILENCE: Duration = Duration::from_millis(1_500);
/// How long a connect and what comes before its session may take.
const CONNECT: Duration = SECOND;
/// How long all may take to come, and at the end until all has arrived.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Plan {
    pub address: SocketAddr,
    pub options: ConnectOptions,
    pub bots: usize,
    pub rooms: usize,
    /// Of each bot, in a second.
    pub lines: u32,
    pub duration: Duration,
}

/// What a bot has: its own state, and its connections.
struct Seat {
    bot: Arc<Mutex<Bot>>,
    tcp: Option<Connection>,
    /// With its session's ticket for it.
    udp: Option<(Connection, [u8; 16])>,
    connect_at: Instant,
    connected_at: Instant,
}

fn lock(bot: &Arc<Mutex<Bot>>) -> MutexGuard<'_, Bot> {
    bot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What happens now, to be shown.
#[derive(Clone, Copy, Default)]
pub struct Progress {
    pub elapsed: Duration,
    pub active: usize,
    pub said: u64,
    pub heard: u64,
    pub wrong: u64,
}

pub struct Bots {
    network: Network,
    plan: Plan,
    seats: Vec<Seat>,
    began: Instant,
}

impl Bots {
    pub fn new(plan: Plan) -> Result<Self, cubenet_mio::Error> {
        let network = Network::builder().workers(1).start()?;
        // So that bots of two processes have nothing to do with each other.
        let run = fastrand::u32(..);
        let now = Instant::now();
        let seat = |index: usize| Seat {
            bot: Arc::new(Mutex::new(Bot::new(run, index, index % plan.rooms))),
            tcp: None,
            udp: None,
            connect_at: now,
            connected_at: now,
        };
        let seats = (0..plan.bots).map(seat).collect();
        Ok(Bots {
            network,
            plan,
            seats,
            began: now,
        })
    }

    /// Plays, and shows how that goes.
    pub fn run(mut self, end: &End, mut show: impl FnMut(&Progress)) -> Outcome {
        let joined = self.go_on(end, PATIENCE, None, &mut show, Bots::all_active);
        if joined {
            self.began = Instant::now();
            let duration = self.plan.duration;
            self.go_on(end, duration, Some(self.began), &mut show, |_| false);
            // What has been said is to arrive.
            self.go_on(end, PATIENCE, None, &mut show, Bots::all_arrived);
            // One that comes twice may do so a little later.
            self.go_on(end, SECOND / 2, None, &mut show, |_| false);
        }
        let outcome = self.outcome(joined);
        self.leave();
        outcome
    }

    /// Ends all sessions, so that the nodes need not wait for the bots.
    fn leave(self) {
        let (leaving, all_left) = channel::<()>();
        for seat in &self.seats {
            lock(&seat.bot).leaves = true;
            if let Some(tcp) = &seat.tcp {
                let (bot, leaving) = (Arc::clone(&seat.bot), leaving.clone());
                let _ = tcp.run_on_worker(move |link| {
                    lock(&bot).leave(link);
                    drop(leaving);
                });
            }
        }
        drop(leaving);
        // Until the last has dropped its end.
        let _ = all_left.recv_timeout(SECOND);
        self.network.stop(SECOND);
    }

    /// Looks after the bots for so long, or until `is_done`, or until the end is asked for. Returns
    /// whether it is done. They talk, if they have begun to.
    fn go_on(
        &mut self,
        end: &End,
        duration: Duration,
        talking: Option<Instant>,
        show: &mut impl FnMut(&Progress),
        is_done: impl Fn(&Bots) -> bool,
    ) -> bool {
        let until = Instant::now() + duration;
        let mut next = Instant::now();
        loop {
            for seat in &mut self.seats {
                seat.look_after(&self.network, &self.plan, talking);
            }
            show(&self.progress());
            if is_done(self) {
                return true;
            }
            next += PERIOD;
            let now = Instant::now();
            if now >= until || end.wait_for(next.saturating_duration_since(now)) {
                return false;
            }
        }
    }

    fn each<R>(&self, get: impl Fn(&Bot) -> R) -> impl Iterator<Item = R> {
        self.seats.iter().map(move |seat| get(&lock(&seat.bot)))
    }

    fn all_active(&self) -> bool {
        self.each(|bot| bot.is_active() && bot.welcome.is_some())
            .all(|is_so| is_so)
    }

    /// Whether all that was said has been acknowledged, and has come to all.
    fn all_arrived(&self) -> bool {
        self.each(|bot| bot.is_active() && bot.has_said_all())
            .all(|is_so| is_so)
            && self.missing() == 0
    }

    /// Lines that were said and have not come to a bot that is to hear them.
    fn missing(&self) -> u64 {
        let mut said: HashMap<usize, Vec<(usize, u64)>> = HashMap::new();
        for (room, index, count) in self.each(|bot| (bot.room, bot.index, bot.said)) {
            said.entry(room).or_default().push((index, count));
        }
        self.each(|bot| {
            let of_room = said.get(&bot.room).map_or(&[][..], Vec::as_slice);
            let missing =
                |(index, count): &(usize, u64)| count.saturating_sub(bot.heard_of(*index));
            of_room.iter().map(missing).sum::<u64>()
        })
        .sum()
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress {
            elapsed: self.began.elapsed(),
            ..Progress::default()
        };
        for (is_active, said, heard, wrong) in
            self.each(|bot| (bot.is_active(), bot.said, bot.lines, bot.lost + bot.doubled))
        {
            progress.active += usize::from(is_active);
            progress.said += said;
            progress.heard += heard;
            progress.wrong += wrong;
        }
        progress
    }

    fn outcome(&self, joined: bool) -> Outcome {
        let mut outcome = Outcome::new();
        outcome.joined = joined;
        (outcome.bots, outcome.rooms) = (self.plan.bots, self.plan.rooms);
        outcome.seconds = self.began.elapsed();
        outcome.missing = self.missing();
        for seat in &self.seats {
            outcome.add(&lock(&seat.bot));
        }
        outcome
    }
}

impl Seat {
    /// Sees to its connections, says where it is, and talks.
    fn look_after(&mut self, network: &Network, plan: &Plan, talking: Option<Instant>) {
        let now = Instant::now();
        let shared = Arc::clone(&self.bot);
        let mut bot = lock(&shared);
        if bot.is_over() {
            return;
        }
        if let Some(tcp) = &self.tcp {
            let is_silent = if bot.is_active() {
                bot.heard_at + SILENCE < now
            } else {
                self.connected_at + CONNECT < now
            };
            if is_silent {
                bot.gives_up();
                tcp.abort();
                self.tcp = None;
            } else if tcp.is_closed() {
                self.tcp = None;
            }
            if self.tcp.is_none() {
                self.connect_at = now + bot.delay();
            }
        }
        if self.tcp.is_none() && self.connect_at <= now {
            self.connected_at = now;
            let handler = Tcp(Arc::clone(&self.bot));
            drop(bot);
            let connect =
                network.connect_with(&plan.options, Transport::Tcp, plan.address, |_| handler);
            match connect {
                Ok(connection) => self.tcp = Some(connection),
                Err(error) => {
                    lock(&self.bot).refused(&error);
                    self.connect_at = now + CONNECT;
                }
            }
            bot = lock(&shared);
        }
        self.send_position(network, &mut bot);
        if let Some(began) = talking {
            // Each at its own time.
            let period = 1_000_000 / u64::from(plan.lines);
            let ahead = period * bot.index as u64 / plan.bots as u64;
            bot.due = (began.elapsed().as_micros() as u64 + ahead) / period;
        }
        if let Some(tcp) = &self.tcp
            && bot.said < bot.due
        {
            let talks = Arc::clone(&self.bot);
            let _ = tcp.run_on_worker(move |link| lock(&talks).talk(link));
        }
    }

    fn send_position(&mut self, network: &Network, bot: &mut Bot) {
        let Some((ticket, address)) = bot.welcome else {
            return;
        };
        let (x, y) = bot.moves();
        match &self.udp {
            Some((udp, shown)) if *shown == ticket && !udp.is_closed() => {
                // The next says it anew.
                let _ = udp.send(position(&ticket, x, y));
            }
            _ => {
                if let Some((before, _)) = self.udp.take() {
                    before.abort();
                }
                let handler = Udp::new(Arc::clone(&self.bot));
                if let Ok(udp) = network.connect(Transport::Udp, address, |_| handler) {
                    self.udp = Some((udp, ticket));
                }
            }
        }
    }
}
