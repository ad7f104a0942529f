//! The place that a connection takes among all connections of its network, of its peer's
//! address, and of its worker. It is given back when it is dropped, so it cannot be lost.

use crate::common::NoRoom;
use crate::listening::Home;
use crate::shared::Shared;
use crate::sync::atomic::{AtomicU8, Ordering::Relaxed};
use cubenet_core::Transport;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A place for a connection that is about to be made.
pub(crate) struct Permit(Option<Taken>);

struct Taken {
    home: Arc<Home>,
    transport: Transport,
    /// Whether it has a place among all connections, or will take that of another.
    has_place: bool,
    /// The peer's address, if that is counted: it opened the connection.
    peer: Option<IpAddr>,
}

impl Permit {
    /// A place at `home`; `peer` is the address that opens the connection, if that is limited.
    pub(crate) fn take(
        home: &Arc<Home>,
        transport: Transport,
        peer: Option<IpAddr>,
    ) -> Result<Self, NoRoom> {
        let common = &home.worker.common;
        if !common.reserve(transport) {
            return Err(NoRoom::Connections);
        }
        home.worker.load.fetch_add(1, Relaxed);
        let mut permit = Permit(Some(Taken {
            home: Arc::clone(home),
            transport,
            has_place: true,
            peer: None,
        }));
        if let (Some(peer), Some(taken)) = (peer, &mut permit.0) {
            common.reserve_address(peer, transport)?;
            taken.peer = Some(peer);
        }
        Ok(permit)
    }

    /// One that is to [take the place](Permit::take_place_of) of another connection.
    pub(crate) fn without_place(
        home: &Arc<Home>,
        transport: Transport,
        peer: Option<IpAddr>,
    ) -> Result<Self, NoRoom> {
        if let Some(peer) = peer {
            home.worker.common.reserve_address(peer, transport)?;
        }
        Ok(Permit(Some(Taken {
            home: Arc::clone(home),
            transport,
            has_place: false,
            peer,
        })))
    }

    /// Takes the place of a connection of the same socket, which is about to be closed.
    pub(crate) fn take_place_of(&mut self, evicted: &Seat) {
        if let Some(taken) = &mut self.0
            && !taken.has_place
        {
            taken.has_place = evicted.core.seat.give_up_place();
        }
    }

    /// Makes it the place of this connection.
    pub(crate) fn seat(mut self, shared: Arc<Shared>) -> Seat {
        if let Some(taken) = self.0.take() {
            shared.core.seat.take(taken.has_place, taken.peer.is_some());
        }
        Seat(shared)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(taken) = self.0.take() {
            release(&taken.home, taken.transport, taken.has_place, taken.peer);
        }
    }
}

fn release(home: &Home, transport: Transport, has_place: bool, peer: Option<IpAddr>) {
    let worker = &home.worker;
    if has_place {
        worker.load.fetch_sub(1, Relaxed);
        worker.common.release(transport);
    }
    if let Some(peer) = peer {
        worker.common.release_address(peer, transport);
    }
}

/// What a connection takes up: flags that lie with it, where a byte is free.
pub(crate) struct SeatState(AtomicU8);

impl SeatState {
    /// It has a place among all connections.
    const PLACE: u8 = 1;
    /// Its peer's address is counted.
    const ADDRESS: u8 = 2;
    /// It was aborted; what waits of it is not to be sent, and is counted no more.
    const LOST: u8 = 4;

    pub(crate) fn new() -> Self {
        SeatState(AtomicU8::new(0))
    }

    fn take(&self, place: bool, address: bool) {
        let place = if place { SeatState::PLACE } else { 0 };
        let address = if address { SeatState::ADDRESS } else { 0 };
        self.0.store(place | address, Relaxed);
    }

    /// What waits of it is not to be sent.
    pub(crate) fn lose(&self) {
        self.0.fetch_or(SeatState::LOST, Relaxed);
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.0.load(Relaxed) & SeatState::LOST != 0
    }

    /// Returns whether it had a place.
    fn give_up_place(&self) -> bool {
        self.0.fetch_and(!SeatState::PLACE, Relaxed) & SeatState::PLACE != 0
    }
}

/// A connection as its worker holds it: the only strong reference that lasts, and its place.
pub(crate) struct Seat(Arc<Shared>);

impl Seat {
    /// Gives the place back, now and not when this is dropped.
    pub(crate) fn leave(&self) {
        let core = &self.0.core;
        let taken = core.seat.0.fetch_and(SeatState::LOST, Relaxed);
        let counted = taken & SeatState::ADDRESS != 0;
        let peer = counted.then(|| core.raw_peer().ip());
        let has_place = taken & SeatState::PLACE != 0;
        release(core.home(), core.transport(), has_place, peer);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Deref for Seat {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl DerefMut for Seat {
    fn deref_mut(&mut self) -> &mut Arc<Shared> {
        &mut self.0
    }
}
