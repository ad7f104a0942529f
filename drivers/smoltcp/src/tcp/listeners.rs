//! The addresses that are listened on.

use crate::network::shared::Accepted;
use crate::stack::overlap;
use smoltcp::wire::IpListenEndpoint;

/// An address that is listened on. A place for one is `None` until then.
pub struct Listening<'a, H> {
    pub(crate) endpoint: IpListenEndpoint,
    pub(crate) accepted: Accepted<'a, H>,
    /// Tells it from those that were there before.
    pub(crate) generation: u32,
    #[expect(dead_code, reason = "it is there for its place")]
    pub(crate) used: Used,
}

/// Is never zero, so a place that is not used is, and takes no room in flash.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Used {
    Yes = 1,
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

    /// Whether no stream waits for peers of this port, but will again: a bit of `pooled` says
    /// of each place whether one does.
    pub(crate) fn is_exhausted(&self, pooled: u32, port: u16) -> bool {
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
