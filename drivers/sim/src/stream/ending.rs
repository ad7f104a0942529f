//! How a stream ends.

use super::link;
use crate::kernel::Key;
use crate::owners::Owner;
use crate::trace::Record;
use crate::world::{Guard, Shared};
use cubenet_core::{CloseReason, ConnectError, Link, Transport};

/// A stream has closed: tells the application, and lets everything go.
pub(super) fn finish<'a>(
    shared: &'a Shared,
    mut world: Guard<'a>,
    key: Key,
    reason: CloseReason,
    reset: bool,
) -> Guard<'a> {
    let Some((stream, ..)) = world.stream(key) else {
        return world;
    };
    let (id, network) = (stream.id, stream.network);
    let queued = stream.queued();
    let mut link = link(shared, &mut world, key, id);
    let Some(Owner::Stream(mut stream)) = world.owners.remove(key) else {
        return world;
    };
    world.network(network).queued_bytes -= queued;
    world.network(network).held_bytes -= stream.held;
    world.count_closed(network, Transport::Tcp, reason);
    world.kernel.close(key, reset);
    let Some(mut handler) = stream.inside.take().and_then(|inside| inside.handler) else {
        return world;
    };
    let what = (Record::Closed, id);
    if stream.is_told {
        (_, world) = shared.callback(world, network, what, move || {
            handler.closed(&mut link, reason);
        });
    } else {
        world.network(network).metrics.connect_failed += 1;
        let error = ConnectError::new(id, Transport::Tcp, link.peer_addr(), reason);
        (_, world) = shared.callback(world, network, what, move || {
            handler.connect_failed(error);
        });
    }
    world
}
