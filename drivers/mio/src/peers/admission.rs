//! How a new datagram peer gets in: what the hook says, a place, and what the application says.

use super::{Peer, Peers};
use crate::acceptor::refused;
use crate::callback::guarded;
use crate::common::NoRoom;
use crate::connection::Connection;
use crate::listening::Listening;
use crate::log::{debug, error_limited};
use crate::seat::Permit;
use crate::shared::{Half, OnSocket, Shared, Wire, canonical};
use crate::sync::atomic::AtomicU16;
use crate::sys::{Datagram, Source};
use crate::user::catch_panic;
use crate::worker::Context;
use cubenet_core::demux::Admission;
use cubenet_core::{CloseReason, DatagramHalf, Transport};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

impl Peers {
    /// Asks the application about a new peer, and delivers its first datagram. `evicted` has
    /// to make way for it, once the application wants it.
    pub(super) fn admit(
        &mut self,
        datagram: &Datagram<'_>,
        recognised: bool,
        evicted: Option<usize>,
        context: &mut Context,
    ) {
        let from = datagram.from;
        let listening = match &self.listening {
            Some(listening) if self.socket.is_open() => Arc::clone(listening),
            _ => {
                context.tally.dropped_not_admitted += 1;
                return;
            }
        };
        // The address of a peer that the application recognises is not forged, nor limited.
        let limited = (!recognised).then(|| from.ip());
        let (mut permit, evicted) = match self.permit(limited, evicted, context) {
            Ok(permit) => permit,
            Err(reason) => {
                context.tally.dropped_table_full += 1;
                refused(&context.common, from, reason);
                return;
            }
        };
        // The handle that the application is shown must know its slot: that of the evicted, or a
        // new one.
        let slot = evicted.or_else(|| self.demux.insert(from, context.now));
        let Some(slot) = slot else {
            context.tally.dropped_table_full += 1;
            return;
        };
        let shared = self.shared(from, datagram.local, slot);
        let id = shared.core.id;
        let connection = Connection::new(&shared);
        context.output.borrow_mut().begin_callback();
        let handler = guarded("accepted", id, &mut context.tally, || {
            listening.accept(&connection)
        });
        let Some(handler) = handler.flatten() else {
            context.output.borrow_mut().discard(&shared);
            context.tally.refused += 1;
            context.tally.dropped_not_admitted += 1;
            if evicted.is_none() {
                self.demux.remove(slot);
            }
            shared.abort(CloseReason::Local);
            self.socket.forget(&shared);
            return;
        };
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        if let Some(evicted) = self.slots[slot].take() {
            permit.take_place_of(&evicted.shared);
            self.demux.replace(slot, from, context.now);
            evicted.shared.abort(CloseReason::Overflow);
            self.finish_peer(evicted, context);
        }
        debug!(connection = %id, peer = %from, "accepted a datagram peer");
        context.tally.accepted += 1;
        self.slots[slot] = Some(Peer::new(permit.seat(shared), handler));
        self.settle(slot, context);
        self.deliver(slot, datagram.bytes, context);
    }

    /// A place for a new peer: one of its own, or that of `evicted`, or, if there is none left
    /// among all connections, of whoever may be evicted. Returns who is to be evicted.
    fn permit(
        &self,
        limited: Option<IpAddr>,
        evicted: Option<usize>,
        context: &Context,
    ) -> Result<(Permit, Option<usize>), NoRoom> {
        let home = &self.socket.home;
        let evicted = match evicted {
            Some(evicted) => evicted,
            None => match Permit::take(home, Transport::Udp, limited) {
                Ok(permit) => return Ok((permit, None)),
                Err(NoRoom::Connections) => {
                    let evictable = self.demux.evictable(context.now);
                    evictable.ok_or(NoRoom::Connections)?
                }
                Err(reason) => return Err(reason),
            },
        };
        let permit = Permit::without_place(home, Transport::Udp, limited)?;
        Ok((permit, Some(evicted)))
    }

    fn shared(&self, peer: SocketAddr, source: Option<Source>, slot: usize) -> Arc<Shared> {
        let wire = Wire::Datagrams(Box::new(OnSocket {
            socket: Arc::clone(&self.socket),
            source,
            max_segment: AtomicU16::new(self.socket.max_segment()),
        }));
        let half = Half::Datagrams(DatagramHalf::new());
        Shared::new(wire, peer, slot as u32, half)
    }
}

/// Asks the admission hook of a listener about a datagram from a new peer. A hook that panics
/// refuses.
pub(super) fn ask_hook(
    listening: &Listening,
    datagram: &Datagram<'_>,
    context: &mut Context,
) -> Admission {
    match catch_panic(|| listening.admit(canonical(datagram.from), datagram.bytes)) {
        Ok(admission) => admission,
        Err(panic) => {
            context.tally.panics += 1;
            let text = panic.text();
            error_limited!(peer = %datagram.from, panic = text, "the admission hook panicked; its datagram is dropped");
            Admission::Refuse
        }
    }
}
