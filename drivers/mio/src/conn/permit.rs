//! The accounting of connections: one among all of its network, of its peer's address, and of its
//! worker. A permit is given back when it is dropped, so a count cannot leak.

use crate::conn::home::Home;
use crate::conn::info::Conn;
use crate::network::shared::NoRoom;
use crate::sync::atomic::Ordering::Relaxed;
use cubenet_core::Transport;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// The permit to make a connection.
pub(crate) struct Permit(Option<Taken>);

struct Taken {
    home: Arc<Home>,
    transport: Transport,
    /// It counts among all connections, or will take over the permit of another.
    counts: bool,
    /// The peer's address, if that is counted: it opened the connection.
    peer: Option<IpAddr>,
}

impl Permit {
    /// A permit at `home`; `peer` is the address that opens the connection, if that is limited.
    pub(crate) fn take(
        home: &Arc<Home>,
        transport: Transport,
        peer: Option<IpAddr>,
    ) -> Result<Self, NoRoom> {
        home.worker.load.fetch_add(1, Relaxed);
        Permit::take_loaded(home, transport, peer)
    }

    /// The same where the connection is among the load of its worker already.
    pub(crate) fn take_loaded(
        home: &Arc<Home>,
        transport: Transport,
        peer: Option<IpAddr>,
    ) -> Result<Self, NoRoom> {
        let network = home.network();
        if !network.reserve(transport) {
            home.worker.load.fetch_sub(1, Relaxed);
            return Err(NoRoom::Connections);
        }
        home.counts.open.add(1);
        let mut permit = Permit(Some(Taken {
            home: Arc::clone(home),
            transport,
            counts: true,
            peer: None,
        }));
        if let (Some(peer), Some(taken)) = (peer, &mut permit.0) {
            network.reserve_address(peer, transport)?;
            taken.peer = Some(peer);
        }
        Ok(permit)
    }

    /// One that is to [take over](Permit::take_over) from another connection.
    pub(crate) fn of_evicted(
        home: &Arc<Home>,
        transport: Transport,
        peer: Option<IpAddr>,
    ) -> Result<Self, NoRoom> {
        if let Some(peer) = peer {
            home.network().reserve_address(peer, transport)?;
        }
        Ok(Permit(Some(Taken {
            home: Arc::clone(home),
            transport,
            counts: false,
            peer,
        })))
    }

    /// Takes over the count of a connection of the same socket, which is about to be closed.
    pub(crate) fn take_over<C: Conn>(&mut self, evicted: &Owned<C>) {
        if let Some(taken) = &mut self.0
            && !taken.counts
        {
            let flags = &evicted.info().permit;
            taken.counts = flags.fetch_and(!COUNTS, Relaxed) & COUNTS != 0;
        }
    }

    /// Makes it the permit of this connection.
    pub(crate) fn attach<C: Conn>(mut self, conn: Arc<C>) -> Owned<C> {
        if let Some(taken) = self.0.take() {
            let counts = if taken.counts { COUNTS } else { 0 };
            let address = if taken.peer.is_some() { ADDRESS } else { 0 };
            conn.info().permit.store(counts | address, Relaxed);
        }
        Owned(conn)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(taken) = self.0.take() {
            release(&taken.home, taken.transport, taken.counts, taken.peer);
        }
    }
}

fn release(home: &Home, transport: Transport, counts: bool, peer: Option<IpAddr>) {
    if counts {
        home.worker.load.fetch_sub(1, Relaxed);
        home.counts.open.sub(1);
        home.network().release(transport);
    }
    if let Some(peer) = peer {
        home.network().release_address(peer, transport);
    }
}

/// What the permit of a connection stands for: flags that lie with the connection, where a byte
/// is free. It counts among all connections.
const COUNTS: u8 = 1;
/// Its peer's address is counted.
const ADDRESS: u8 = 2;

/// A connection as its worker owns it: the only strong reference that lasts, and its permit.
pub(crate) struct Owned<C: Conn>(Arc<C>);

impl<C: Conn> Owned<C> {
    /// Gives the permit back, now and not when this is dropped.
    pub(crate) fn release(&self) {
        let flags = self.info().permit.swap(0, Relaxed);
        let address = || std::net::SocketAddr::from(self.info().raw_peer()).ip();
        let peer = (flags & ADDRESS != 0).then(address);
        release(self.home(), C::TRANSPORT, flags & COUNTS != 0, peer);
    }
}

impl<C: Conn> Drop for Owned<C> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<C: Conn> Deref for Owned<C> {
    type Target = Arc<C>;

    fn deref(&self) -> &Arc<C> {
        &self.0
    }
}

impl<C: Conn> DerefMut for Owned<C> {
    fn deref_mut(&mut self) -> &mut Arc<C> {
        &mut self.0
    }
}
