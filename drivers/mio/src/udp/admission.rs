//! How a new datagram peer gets in: what the hook says, a place, and what the application says.

use crate::address::{CompactAddr, canonical};
use crate::conn::info::Conn;
use crate::conn::permit::Permit;
use crate::connection::Connection;
use crate::log::{debug, error_limited, warn_limited};
use crate::network::listening::Listening;
use crate::network::shared::NoRoom;
use crate::sys::Datagram;
use crate::udp::peers::{Peer, Peers};
use crate::udp::socket::PeerShared;
use crate::user::catch_panic;
use crate::user_callback::run_callback;
use crate::worker::resources::WorkerResources;
use cubenet_core::demux::Admission;
use cubenet_core::{Arrival, CloseReason, Instant, Transport};
use std::net::SocketAddr;
use std::sync::Arc;

impl Peers {
    /// A datagram of a new peer arrived, and the demultiplexer says what to do with one that no hook
    /// recognises.
    #[cold]
    #[inline(never)]
    pub(super) fn newcomer(
        &mut self,
        datagram: &Datagram<'_>,
        mut arrival: Arrival,
        resources: &mut WorkerResources,
    ) {
        let from = datagram.from;
        let mut recognised = false;
        if let Some(listening) = self.listening.as_ref().filter(|one| one.has_hook()) {
            match self.ask_hook(listening, datagram) {
                Admission::Admit => {}
                Admission::Recognise => {
                    recognised = true;
                    let has_room =
                        self.socket.has_room(true) && resources.network.has_room(Transport::Udp);
                    arrival = self.demux.newcomer(true, has_room, resources.now);
                }
                _ => {
                    self.counts().dropped_not_admitted.count();
                    return;
                }
            }
        }
        match arrival {
            Arrival::Admit => self.admit(datagram, recognised, None, resources),
            Arrival::Evict(slot) => self.admit(datagram, recognised, Some(slot), resources),
            _ => {
                self.counts().dropped_table_full.count();
                if resources.network.has_room(Transport::Udp) {
                    self.counts().refused.count();
                    self.counts().refused_by_limit.count();
                    warn_limited!(peer = %from, "datagram dropped: the table of peers is full");
                } else {
                    let counts = self.counts();
                    let reason = NoRoom::Connections;
                    resources.network.refused(from.into(), reason, counts);
                }
            }
        }
    }

    /// Asks the application about a new peer, and delivers its first datagram. `evicted` has
    /// to make way for it, once the application wants it.
    fn admit(
        &mut self,
        datagram: &Datagram<'_>,
        recognised: bool,
        evicted: Option<usize>,
        resources: &mut WorkerResources,
    ) {
        let from = datagram.from;
        let listening = match &self.listening {
            Some(listening) if self.socket.is_open() => Arc::clone(listening),
            _ => {
                self.counts().dropped_not_admitted.count();
                return;
            }
        };
        // The address of a peer that the application recognises is not forged, nor limited.
        let limited = (!recognised).then(|| SocketAddr::from(from).ip());
        let home = &self.socket.home;
        let permit = match evicted {
            None => Permit::take(home, Transport::Udp, limited),
            // It takes over that of the evicted, if the application admits it.
            Some(_) => Permit::of_evicted(home, Transport::Udp, limited),
        };
        let mut permit = match permit {
            Ok(permit) => permit,
            Err(reason) => {
                self.counts().dropped_table_full.count();
                let counts = self.counts();
                resources.network.refused(from.into(), reason, counts);
                return;
            }
        };
        // The handle that the application is shown must know its slot: that of the evicted, or a
        // new one.
        let slot = evicted.or_else(|| self.add_peer(from, recognised, resources.now));
        let Some(slot) = slot else {
            self.counts().dropped_table_full.count();
            return;
        };
        let shared = PeerShared::new(&self.socket, from, datagram.local, slot as u32);
        let id = shared.info().id;
        let connection = Connection::datagrams(&shared);
        resources.batch.borrow_mut().begin_callback();
        let handler = run_callback("accepted", id, &self.socket.home.counts, || {
            listening.accept(&connection)
        });
        let Some(handler) = handler.flatten() else {
            resources.batch.borrow_mut().discard_datagrams(&shared);
            self.counts().refused.count();
            self.counts().dropped_not_admitted.count();
            if evicted.is_none() {
                self.demux.remove(slot);
                self.socket.remove_peer();
            }
            shared.abort(CloseReason::Local);
            self.socket.forget(&shared);
            return;
        };
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        if let Some(evicted) = self.slots[slot].take() {
            permit.take_over(&evicted.shared);
            let peer = self.fingerprint(&from);
            self.demux.replace(slot, peer, resources.now);
            evicted.shared.abort(CloseReason::Overflow);
            self.finish_peer(evicted, resources);
        }
        debug!(connection = %id, peer = %from, "accepted a datagram peer");
        self.counts().accepted.count();
        self.slots[slot] = Some(Peer::new(permit.attach(shared), handler));
        self.after_io(slot, resources);
        self.deliver(slot, datagram.bytes, resources);
    }

    /// Takes a place for a peer, among those of the listener and here, if there is one.
    fn add_peer(&mut self, from: CompactAddr, recognised: bool, now: Instant) -> Option<usize> {
        // Other workers do the same at the same time.
        let group = &self.socket.group;
        if !group.add_peer(self.socket.home.limits.peer_places(recognised)) {
            return None;
        }
        let peer = self.fingerprint(&from);
        let slot = self.demux.insert(peer, now);
        if slot.is_none() {
            self.socket.remove_peer();
        }
        slot
    }

    /// Asks the admission hook of a listener about a datagram from a new peer. A hook that panics
    /// refuses.
    fn ask_hook(&self, listening: &Listening, datagram: &Datagram<'_>) -> Admission {
        match catch_panic(|| listening.admit(canonical(datagram.from.into()), datagram.bytes)) {
            Ok(admission) => admission,
            Err(panic) => {
                self.counts().panics.count();
                let text = panic.text();
                error_limited!(peer = %datagram.from, panic = text, "the admission hook panicked; its datagram is dropped");
                Admission::Refuse
            }
        }
    }
}
