//! The streams that wait for connections.
//!
//! smoltcp has no backlog: a SYN is answered by a socket that listens, or with RST. So every
//! stream that carries no connection listens somewhere, shared out evenly among the listeners,
//! and it does so again as soon as its connection has ended. While none is left for a listener,
//! SYNs to it are dropped and not answered with RST: the peer sends them again.

use crate::tcp::listeners::Listeners;
use crate::tcp::stream::{Stage, Stream};
use core::time::Duration;
use cubenet_core::{Handler, Instant};
use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp;

/// Whether all that a stream had to send, whose connection is over, is acknowledged: it would only
/// wait for the peer's FIN, or for late segments.
pub(crate) fn is_delivered<H>(stream: &Stream<H>, sockets: &SocketSet<'_>) -> bool {
    let Some(handle) = stream.handle else {
        return false;
    };
    let state = sockets.get::<tcp::Socket>(handle).state();
    matches!(stream.stage, Stage::Ending { .. })
        && matches!(state, tcp::State::FinWait2 | tcp::State::TimeWait)
}

/// How long a handshake may take while no stream waits for other connections. A lost packet of it is
/// sent again after one second, and once more two seconds later.
const HALF_OPEN: Duration = Duration::from_secs(3);

/// Handshakes that began before this moment may be given up for another.
pub(crate) fn half_open_before(now: Instant) -> Instant {
    Instant::ZERO.after(now.since(Instant::ZERO.after(HALF_OPEN)))
}

/// Puts the streams that are free into the pools of the listeners. A listener whose pool is
/// empty gets one from another's larger pool, too, or one whose handshake began before
/// `half_open_before`. Returns a bit for each place that got one.
pub(crate) fn fill_pools<'a, H>(
    streams: &mut [Stream<H>],
    sockets: &mut SocketSet<'a>,
    listeners: &Listeners<'a, H>,
    half_open_before: Instant,
) -> u32 {
    let mut armed = 0;
    while let Some((place, waiting)) = smallest_pool(streams, listeners) {
        let most = if waiting == 0 {
            Need::half_open(half_open_before)
        } else {
            Need::NONE
        };
        let Some((slot, socket)) = least_needed(streams, sockets, most, half_open_before) else {
            break;
        };
        let stream = &mut streams[slot];
        stream.stage = Stage::Free;
        let listening = listeners.places[place].as_ref();
        if listening.is_none_or(|listening| socket.listen(listening.endpoint).is_err()) {
            break;
        }
        stream.stage = Stage::Pooled {
            listener: place as u8,
            syn_at: None,
        };
        armed |= 1 << place;
    }
    armed
}

/// The listener for which the fewest streams wait, and how many.
fn smallest_pool<H>(streams: &[Stream<H>], listeners: &Listeners<'_, H>) -> Option<(usize, usize)> {
    let places = listeners.places.iter().enumerate();
    let used = places.filter(|(_, listening)| listening.is_some());
    let pools = used.map(|(place, _)| (place, waiting(streams, place)));
    pools.min_by_key(|(_, waiting)| *waiting)
}

/// How many streams wait for the listener at `place`.
fn waiting<H>(streams: &[Stream<H>], place: usize) -> usize {
    let there = streams
        .iter()
        .filter(|one| one.listens_for() == Some(place));
    there.count()
}

/// Whether the stream in `slot` has a new connection from an address that has `limit` streams
/// already, those included whose FIN has not been acknowledged.
pub(crate) fn is_one_too_many<H: Handler>(
    streams: &[Stream<H>],
    sockets: &SocketSet<'_>,
    slot: usize,
    limit: usize,
) -> bool {
    let of = |stream: &Stream<H>| {
        let socket = sockets.get::<tcp::Socket>(stream.handle?);
        Some((socket.state(), socket.remote_endpoint()?.addr))
    };
    let Some((state, peer)) = of(&streams[slot]) else {
        return false;
    };
    let is_new = matches!(streams[slot].stage, Stage::Pooled { .. })
        && !matches!(state, tcp::State::Listen | tcp::State::SynReceived);
    let theirs = |stream: &&Stream<H>| {
        let same = of(stream).is_some_and(|(_, address)| address == peer);
        same && stream.was_accepted() && !is_delivered(stream, sockets)
    };
    is_new && streams.iter().filter(theirs).count() >= limit
}

/// The places of the listeners for which a stream waits, a bit for each.
pub(crate) fn pooled<H>(streams: &[Stream<H>]) -> u32 {
    let places = streams.iter().filter_map(Stream::listens_for);
    places.fold(0, |bits, place| bits | 1 << place)
}

/// Takes a stream to connect with.
pub(crate) fn take<H>(
    streams: &mut [Stream<H>],
    sockets: &mut SocketSet<'_>,
    now: Instant,
) -> Option<usize> {
    let (slot, _) = least_needed(streams, sockets, Need::LAST_OF_POOL, half_open_before(now))?;
    streams[slot].stage = Stage::Free;
    Some(slot)
}

/// How much a stream is needed where it is; the one that is needed least is taken for something
/// else. A number, since comparing these takes less flash than comparing an enumeration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Need(u64);

impl Need {
    /// It is free.
    const NONE: Need = Need(0);
    /// Its connection is over and all is delivered; it would only wait for the peer's FIN, or for
    /// late segments.
    const DELIVERED: Need = Need(1 << 16);
    /// The only one that waits for a listener.
    const LAST_OF_POOL: Need = Need(u64::MAX);

    /// One of `waiting` that wait for a listener, of `streams` in all: of the largest pool first.
    fn one_of_pool(waiting: usize, streams: usize) -> Need {
        Need(1 + (streams - waiting) as u64)
    }

    /// It has been in a handshake since then: the oldest first.
    fn half_open(syn_at: Instant) -> Need {
        Need(Need::DELIVERED.0 + 1 + syn_at.as_micros() / 2)
    }

    /// Of this stream, if it can be taken.
    fn of<H>(
        stream: &Stream<H>,
        streams: &[Stream<H>],
        sockets: &SocketSet<'_>,
        half_open_before: Instant,
    ) -> Option<Need> {
        match stream.stage {
            Stage::Free => Some(Need::NONE),
            Stage::Pooled { listener, syn_at } => {
                match sockets.get::<tcp::Socket>(stream.handle?).state() {
                    tcp::State::Listen => Some(match waiting(streams, usize::from(listener)) {
                        0 | 1 => Need::LAST_OF_POOL,
                        many => Need::one_of_pool(many, streams.len()),
                    }),
                    tcp::State::SynReceived => {
                        let syn_at = syn_at.filter(|at| *at <= half_open_before);
                        syn_at.map(Need::half_open)
                    }
                    _ => None,
                }
            }
            Stage::Ending { .. } => is_delivered(stream, sockets).then_some(Need::DELIVERED),
            Stage::Live(_) => None,
        }
    }
}

/// The stream that is needed least, if that is `most` or less, and its socket, closed.
fn least_needed<'s, 'a, H>(
    streams: &[Stream<H>],
    sockets: &'s mut SocketSet<'a>,
    most: Need,
    half_open_before: Instant,
) -> Option<(usize, &'s mut tcp::Socket<'a>)> {
    let mut found: Option<(Need, usize)> = None;
    for (slot, stream) in streams.iter().enumerate() {
        if let Some(need) = Need::of(stream, streams, sockets, half_open_before)
            && need <= most
            && found.is_none_or(|(least, _)| need < least)
        {
            found = Some((need, slot));
        }
    }
    let (_, slot) = found?;
    let socket = sockets.get_mut::<tcp::Socket>(streams[slot].handle?);
    if socket.is_open() {
        socket.abort();
    }
    Some((slot, socket))
}

/// Takes streams out of the pool of the listener at `place`, or of all: those in a handshake are
/// reset, until `deadline`.
pub(crate) fn empty_pools<H>(
    streams: &mut [Stream<H>],
    sockets: &mut SocketSet<'_>,
    place: Option<usize>,
    deadline: Instant,
) {
    for stream in streams {
        let (Stage::Pooled { listener, .. }, Some(handle)) = (&stream.stage, stream.handle) else {
            continue;
        };
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        let listens = socket.state() == tcp::State::Listen;
        match place {
            Some(place) if usize::from(*listener) != place => continue,
            // To be shared out anew: one in a handshake stays.
            None if !listens => continue,
            _ => {}
        }
        socket.abort();
        stream.stage = if listens {
            Stage::Free
        } else {
            Stage::Ending { deadline }
        };
    }
}
