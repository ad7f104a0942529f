//! The addresses that are listened on, and the sockets that wait there for callers.
//!
//! smoltcp has no backlog: a caller is answered by a socket that listens, or refused. So every
//! stream that carries no connection listens somewhere, shared out evenly among the listeners,
//! and it does so again as soon as its connection has ended. While none is left for a listener,
//! its callers get no answer, rather than a refusal: they will try again.

use crate::common::Accepted;
use crate::stack::overlap;
use crate::stream::{Stage, Stream};
use cubenet_core::Instant;
use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp;
use smoltcp::wire::IpListenEndpoint;

/// An address that is listened on. A place for one is `None` until then.
pub struct Listening<'a, H> {
    pub(crate) endpoint: IpListenEndpoint,
    pub(crate) accepted: Accepted<'a, H>,
    /// Tells it from those that were there before.
    pub(crate) generation: u32,
}

/// The places for listeners.
pub(crate) struct Listeners<'a, H> {
    pub(crate) places: &'a mut [Option<Listening<'a, H>>],
    /// Which of them are in use, a bit for each.
    pub(crate) used: u32,
}

impl<'a, H> Listeners<'a, H> {
    pub(crate) fn accepted(&self, place: usize) -> Option<Accepted<'a, H>> {
        Some(self.places.get(place)?.as_ref()?.accepted)
    }

    /// Whether one of them has this address, though its pool may be empty.
    pub(crate) fn has(&self, address: IpListenEndpoint) -> bool {
        let mut used = self.places.iter().flatten();
        used.any(|listening| overlap(listening.endpoint, address))
    }

    /// Whether no stream waits for callers of this port, but will again: a bit of `pooled` says
    /// of each place whether one does.
    pub(crate) fn is_dry(&self, pooled: u32, port: u16) -> bool {
        let places = self.places.iter().enumerate();
        let of_port = places.filter(|(_, place)| {
            let is_this = |listening: &Listening<'_, H>| listening.endpoint.port == port;
            place.as_ref().is_some_and(is_this)
        });
        let (mut any, mut waits) = (false, false);
        for (place, _) in of_port {
            any = true;
            waits |= pooled >> place & 1 != 0;
        }
        any && !waits
    }

    /// Sees which places are in use, after one has changed.
    pub(crate) fn count(&mut self) {
        let used = self.places.iter().map(Option::is_some);
        self.used = used.rfold(0, |bits, used| bits << 1 | u32::from(used));
    }
}

/// Whether all is delivered, and confirmed, that a stream whose connection is over had to
/// tell: it would only wait for the peer's end, or for late segments.
pub(crate) fn is_spent<H>(stream: &Stream<'_, H>, sockets: &SocketSet<'_>) -> bool {
    let Some(handle) = stream.handle else {
        return false;
    };
    let state = sockets.get::<tcp::Socket>(handle).state();
    matches!(stream.stage, Stage::Ending { .. })
        && matches!(state, tcp::State::FinWait2 | tcp::State::TimeWait)
}

/// Puts the streams that are free into the pools of the listeners. A listener whose pool is
/// empty gets one that would only wait. Returns a bit for each place that got one.
pub(crate) fn arm<'a, H>(
    streams: &mut [Stream<'a, H>],
    sockets: &mut SocketSet<'a>,
    listeners: &Listeners<'a, H>,
) -> u32 {
    let mut armed = 0;
    while let Some((place, waiting)) = poorest(streams, listeners) {
        let is_to_be_had = |stream: &Stream<'a, H>| {
            matches!(stream.stage, Stage::Free) || waiting == 0 && is_spent(stream, sockets)
        };
        let stream = streams.iter().position(is_to_be_had);
        let stream = stream.map(|slot| &mut streams[slot]);
        let (Some(stream), Some(listening)) = (stream, &listeners.places[place]) else {
            break;
        };
        let Some(handle) = stream.handle else {
            break;
        };
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        if socket.is_open() {
            socket.abort();
        }
        if socket.listen(listening.endpoint).is_err() {
            break;
        }
        stream.stage = Stage::Pooled {
            listener: place as u8,
            deadline: Instant::NEVER,
        };
        armed |= 1 << place;
    }
    armed
}

/// The listener for which the fewest streams wait, and how many.
fn poorest<H>(streams: &[Stream<'_, H>], listeners: &Listeners<'_, H>) -> Option<(usize, usize)> {
    let places = listeners.places.iter().enumerate();
    let used = places.filter(|(_, listening)| listening.is_some());
    let pools = used.map(|(place, _)| {
        let waiting = streams
            .iter()
            .filter(|stream| stream.waits_at() == Some(place));
        (place, waiting.count())
    });
    pools.min_by_key(|(_, waiting)| *waiting)
}

/// Takes a stream for a call: a free one, one that listens, or one that would only wait.
pub(crate) fn take<'a, H>(
    streams: &mut [Stream<'a, H>],
    sockets: &mut SocketSet<'a>,
) -> Option<usize> {
    let mut taken = None;
    for (slot, stream) in streams.iter().enumerate() {
        let state = sockets.get::<tcp::Socket>(stream.handle?).state();
        let cost = match &stream.stage {
            Stage::Free => 0,
            Stage::Pooled { .. } if state == tcp::State::Listen => 1,
            Stage::Ending { .. } if is_spent(stream, sockets) => 2,
            _ => continue,
        };
        if taken.is_none_or(|(least, _)| cost < least) {
            taken = Some((cost, slot));
        }
    }
    let (_, slot) = taken?;
    let stream = &mut streams[slot];
    stream.stage = Stage::Free;
    let socket = sockets.get_mut::<tcp::Socket>(stream.handle?);
    if socket.is_open() {
        socket.abort();
    }
    Some(slot)
}

/// Takes streams out of the pool of the listener at `place`, or of all: those who have a
/// caller are told that nobody is there.
pub(crate) fn disarm<'a, H>(
    streams: &mut [Stream<'a, H>],
    sockets: &mut SocketSet<'a>,
    place: Option<usize>,
) {
    for stream in streams {
        let (Stage::Pooled { listener, deadline }, Some(handle)) = (&stream.stage, stream.handle)
        else {
            continue;
        };
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        let listens = socket.state() == tcp::State::Listen;
        match place {
            Some(place) if usize::from(*listener) != place => continue,
            // To be shared out anew: who has a caller stays.
            None if !listens => continue,
            _ => {}
        }
        socket.abort();
        stream.stage = if listens {
            Stage::Free
        } else {
            Stage::Ending {
                deadline: *deadline,
            }
        };
    }
}
