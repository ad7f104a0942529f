//! The addresses that are listened on, and the sockets that wait there for callers.
//!
//! smoltcp has no backlog: a caller is answered by a socket that listens, or refused. So every
//! stream that carries no connection listens somewhere, shared out evenly among the listeners,
//! and it does so again as soon as its connection has ended.

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

    /// Which places are in use, a bit for each.
    pub(crate) fn used(&self) -> u32 {
        let used = self.places.iter().map(Option::is_some);
        used.rfold(0, |bits, used| bits << 1 | u32::from(used))
    }
}

/// Puts the streams that are free into the pools of the listeners. A listener whose pool is
/// empty gets one that would only wait for late segments of a connection that has ended.
pub(crate) fn arm<'a, H>(
    streams: &mut [Stream<'a, H>],
    sockets: &mut SocketSet<'a>,
    listeners: &Listeners<'a, H>,
) {
    while let Some((place, pooled)) = poorest(streams, listeners) {
        let stream = streams.iter_mut().find(|stream| match &stream.stage {
            Stage::Free => true,
            Stage::Ending { .. } if pooled == 0 => stream.handle.is_some_and(|handle| {
                sockets.get::<tcp::Socket>(handle).state() == tcp::State::TimeWait
            }),
            _ => false,
        });
        let (Some(stream), Some(listening)) = (stream, &listeners.places[place]) else {
            return;
        };
        let Some(handle) = stream.handle else {
            return;
        };
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        if socket.listen(listening.endpoint).is_err() {
            return;
        }
        stream.stage = Stage::Pooled {
            listener: place as u8,
            deadline: Instant::NEVER,
        };
    }
}

/// The listener with the smallest pool, and how small that is.
fn poorest<H>(streams: &[Stream<'_, H>], listeners: &Listeners<'_, H>) -> Option<(usize, usize)> {
    let places = listeners.places.iter().enumerate();
    let used = places.filter(|(_, listening)| listening.is_some());
    let pools = used.map(|(place, _)| {
        let pooled = streams.iter().filter(|stream| {
            matches!(&stream.stage, Stage::Pooled { listener, .. } if usize::from(*listener) == place)
        });
        (place, pooled.count())
    });
    pools.min_by_key(|(_, pooled)| *pooled)
}

/// Takes a stream for a call: a free one, one that listens, or one that would only wait for
/// late segments.
pub(crate) fn take<'a, H>(
    streams: &mut [Stream<'a, H>],
    sockets: &mut SocketSet<'a>,
) -> Option<usize> {
    let mut taken = None;
    for (slot, stream) in streams.iter().enumerate() {
        let state = sockets.get::<tcp::Socket>(stream.handle?).state();
        let cost = match (&stream.stage, state) {
            (Stage::Free, _) => 0,
            (Stage::Pooled { .. }, tcp::State::Listen) => 1,
            (Stage::Ending { .. }, tcp::State::TimeWait) => 2,
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
    if socket.state() == tcp::State::Listen {
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
