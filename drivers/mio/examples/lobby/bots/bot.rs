//! One bot: its session, what it has said, and what it has heard.

use crate::protocol::{ToPlayer, credentials, read_tick};
use cubenet_mio::{CloseReason, ConnectError, Handler, Link, Message, Report, TransportError};
use cubenet_session::wire::Refusal;
use cubenet_session::{Client, Event};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long after a loss the first connect is tried, at most; and each after that.
const DELAY: Duration = Duration::from_millis(100);

pub struct Bot {
    run: u32,
    pub index: usize,
    pub room: usize,
    session: Client<16_384>,
    /// Where its datagrams go, and what they show.
    pub welcome: Option<([u8; 16], SocketAddr)>,
    /// When it has heard anything last.
    pub heard_at: Instant,
    /// Since when it has no connection, or what it has is of no use.
    lost_at: Option<Instant>,
    delay: Duration,
    place: (i16, i16),

    /// The lines it has said, and is to have said, and those it has heard from each other.
    pub said: u64,
    pub due: u64,
    heard: HashMap<usize, u64>,
    pub lines: u64,
    pub lost: u64,
    pub doubled: u64,
    /// When lines were said on their way to itself.
    said_at: std::collections::VecDeque<Instant>,
    pub arrivals: Vec<Duration>,

    pub ticks: u64,
    pub ticks_lost: u64,

    /// How long it was away, each time.
    pub away: Vec<Duration>,
    pub logins: u64,
    pub refused: HashMap<String, u64>,
    /// Why its session is over, if it is, which it must not be.
    pub over: Option<String>,
    /// It leaves of its own accord.
    pub leaves: bool,
}

impl Bot {
    pub fn new(run: u32, index: usize, room: usize) -> Self {
        Bot {
            run,
            index,
            room,
            session: Client::new(),
            welcome: None,
            heard_at: Instant::now(),
            lost_at: None,
            delay: Duration::ZERO,
            place: (fastrand::i16(..), fastrand::i16(..)),
            said: 0,
            due: 0,
            heard: HashMap::new(),
            lines: 0,
            lost: 0,
            doubled: 0,
            said_at: std::collections::VecDeque::new(),
            arrivals: Vec::new(),
            ticks: 0,
            ticks_lost: 0,
            away: Vec::new(),
            logins: 0,
            refused: HashMap::new(),
            over: None,
            leaves: false,
        }
    }

    fn credentials(&self) -> String {
        let room = format!("{:x}-{}", self.run, self.room);
        credentials(&room, &format!("{:x}-bot-{}", self.run, self.index))
    }

    /// Whether it can play.
    pub fn is_active(&self) -> bool {
        self.session.is_active() && self.lost_at.is_none()
    }

    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    pub fn unacknowledged(&self) -> u64 {
        self.session.unacknowledged()
    }

    /// Whether all that it is to say has been said, and has arrived.
    pub fn has_said_all(&self) -> bool {
        self.said >= self.due && self.unacknowledged() == 0
    }

    pub fn heard_of(&self, index: usize) -> u64 {
        self.heard.get(&index).copied().unwrap_or(0)
    }

    /// When to connect again, from now.
    pub fn delay(&mut self) -> Duration {
        let delay = self.delay + DELAY.mul_f64(fastrand::f64());
        self.delay = DELAY;
        delay
    }

    /// A connect could not begin, or did not succeed.
    pub fn refused(&mut self, why: &impl std::error::Error) {
        let why = Report::new(why).to_string();
        *self.refused.entry(why).or_default() += 1;
    }

    /// It has heard nothing for too long.
    pub fn gives_up(&mut self) {
        self.lost_at.get_or_insert(self.heard_at);
    }

    /// A step in some direction. Returns where it is.
    pub fn moves(&mut self) -> (i16, i16) {
        let step = |at: i16| at.wrapping_add(fastrand::i16(-100..=100));
        self.place = (step(self.place.0), step(self.place.1));
        self.place
    }

    /// Says the lines that are due.
    pub fn talk(&mut self, link: &mut dyn Link) {
        while self.said < self.due && self.session.is_active() {
            let line = format!("{} {} {}", self.room, self.index, self.said + 1);
            if self.session.send(link, line.as_bytes()).is_err() {
                // Too much is under way. It is said later.
                return;
            }
            self.said += 1;
            self.said_at.push_back(Instant::now());
        }
    }

    pub fn leave(&mut self, link: &mut dyn Link) {
        self.session.end(link);
        link.close();
    }

    fn hear(&mut self, message: &[u8]) {
        match ToPlayer::decode(message) {
            Some(ToPlayer::Welcome { ticket, udp }) => self.welcome = Some((ticket, udp)),
            Some(ToPlayer::Line { text, .. }) => self.hear_line(text),
            Some(ToPlayer::Notice(_)) => {}
            None => self.over = Some("a message that means nothing came".to_owned()),
        }
    }

    fn hear_line(&mut self, text: &str) {
        let mut words = text.split(' ').map(str::parse::<u64>);
        let (Some(Ok(room)), Some(Ok(index)), Some(Ok(nth))) =
            (words.next(), words.next(), words.next())
        else {
            return;
        };
        if room != self.room as u64 {
            self.over = Some("a line of another room came".to_owned());
            return;
        }
        let index = index as usize;
        self.lines += 1;
        let last = self.heard.entry(index).or_default();
        if nth <= *last {
            self.doubled += 1;
            return;
        }
        self.lost += nth - *last - 1;
        *last = nth;
        if index == self.index
            && let Some(said_at) = self.said_at.pop_front()
        {
            self.arrivals.push(said_at.elapsed());
        }
    }
}

fn lock(bot: &Arc<Mutex<Bot>>) -> MutexGuard<'_, Bot> {
    bot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handler of a bot's connection.
pub struct Tcp(pub Arc<Mutex<Bot>>);

impl Handler for Tcp {
    fn connected(&mut self, link: &mut dyn Link) {
        let mut bot = lock(&self.0);
        let credentials = bot.credentials();
        if bot.session.connected(link, credentials.as_bytes()).is_err() {
            link.close();
        }
    }

    fn connect_failed(&mut self, error: ConnectError) {
        lock(&self.0).refused(&error);
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let mut bot = lock(&self.0);
        let bot = &mut *bot;
        bot.heard_at = Instant::now();
        match bot.session.received(link, &message) {
            Ok(Event::Opened) => {
                bot.logins += 1;
                bot.delay = Duration::ZERO;
                bot.lost_at = None;
            }
            Ok(Event::Resumed) => {
                bot.delay = Duration::ZERO;
                if let Some(lost_at) = bot.lost_at.take() {
                    bot.away.push(lost_at.elapsed());
                }
            }
            Ok(Event::Message(message)) => bot.hear(message),
            Ok(Event::Refused {
                reason,
                retry_after,
            }) => {
                *bot.refused.entry(format!("{reason:?}")).or_default() += 1;
                bot.delay = retry_after;
                if reason == Refusal::UnknownSession || retry_after.is_zero() {
                    bot.over = Some(format!("refused: {reason:?}"));
                }
                link.close();
            }
            Ok(Event::Ended(reason)) => {
                if !bot.leaves {
                    bot.over = Some(format!("ended: {reason:?}"));
                }
                link.close();
            }
            Ok(_) => {}
            Err(error) => {
                bot.over = Some(error.to_string());
                link.close();
            }
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        lock(&self.0).session.flush(link);
    }

    fn closed(&mut self, link: &mut dyn Link, _reason: CloseReason) {
        let mut bot = lock(&self.0);
        let was_active = bot.session.is_active();
        bot.session.disconnected(link);
        if was_active && !bot.session.is_active() {
            // Since when it has really heard nothing.
            bot.gives_up();
        }
    }
}

/// The handler of a bot's datagrams, which counts ticks.
pub struct Udp {
    bot: Arc<Mutex<Bot>>,
    last: Option<u32>,
}

impl Udp {
    pub fn new(bot: Arc<Mutex<Bot>>) -> Self {
        Udp { bot, last: None }
    }
}

impl Handler for Udp {
    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        let Some((number, _dots)) = read_tick(&message) else {
            return;
        };
        let last = self.last.unwrap_or(number.wrapping_sub(1));
        // A tick of many players comes in several datagrams; and one may come late.
        let behind = number.wrapping_sub(last);
        if behind > 0 && behind < 1 << 31 {
            self.last = Some(number);
            let mut bot = lock(&self.bot);
            bot.heard_at = Instant::now();
            bot.ticks += 1;
            bot.ticks_lost += u64::from(behind) - 1;
        }
    }

    fn error(&mut self, _link: &mut dyn Link, error: TransportError) {
        // The node has gone: the session hears of it by itself.
        let _ = error;
    }
}
