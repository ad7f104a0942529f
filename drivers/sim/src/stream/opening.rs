//! How a stream becomes a connection: it is accepted, or its call is answered, and the
//! application gives it a handler.

use super::{NOWHERE, Stream, flush, link, read, settle};
use crate::connection::Connection;
use crate::kernel::{Key, Notice};
use crate::owners::Owner;
use crate::trace::Record;
use crate::world::{AcceptFn, BoxedHandler, Guard, NetworkId, Place, Shared};
use cubenet_core::{Action, CloseReason, ConnectionId, State, Transport, connection};
use std::sync::Arc;

/// A call that was taken off its listener: the application decides whether it becomes a
/// connection.
pub(crate) fn accepted<'a>(
    shared: &'a Arc<Shared>,
    mut world: Guard<'a>,
    network: NetworkId,
    accept: &AcceptFn,
    key: Key,
) -> Guard<'a> {
    if !world.network(network).reserve(Transport::Tcp) {
        world.network(network).metrics.refused += 1;
        world.kernel.close(key, false);
        return world;
    }
    let id = world.next_id();
    let now = world.now();
    let limits = Arc::clone(&world.network(network).limits);
    let stream = Stream::accepted(id, network, &limits, now);
    world.owners.insert(key, Owner::Stream(Box::new(stream)));
    let connection = handle(shared, &mut world, key, id);
    let what = (Record::Accepted, id);
    let (handler, mut world) = shared.callback(world, network, what, || accept(&connection));
    let metrics = &mut world.network(network).metrics;
    let Some(handler) = handler.flatten() else {
        metrics.refused += 1;
        // Unless its host crashed meanwhile.
        if let Some(Owner::Stream(mut stream)) = world.owners.remove(key) {
            let network = world.network(network);
            network.release(Transport::Tcp);
            let queued = stream.queued();
            network.queued_bytes -= queued;
            let reset = matches!(stream.send.turn_away(queued), Action::Reset(_));
            world.kernel.close(key, reset);
        }
        return world;
    };
    metrics.accepted += 1;
    give_handler(shared, world, key, handler)
}

/// The application has made the handler of a stream, which begins to be served.
pub(crate) fn give_handler<'a>(
    shared: &'a Arc<Shared>,
    mut world: Guard<'a>,
    key: Key,
    handler: BoxedHandler,
) -> Guard<'a> {
    let inside = world.stream(key).and_then(|(stream, kernel, ..)| {
        stream.accepting = false;
        if std::mem::take(&mut stream.answered) {
            kernel.notify(key, Notice::Connected);
        }
        stream.inside.as_mut()
    });
    match inside {
        Some(inside) => inside.handler = Some(handler),
        None => world.bury(handler),
    }
    // What has happened meanwhile has not been seen.
    world.kernel.notify(key, Notice::Writable);
    world.kernel.notify(key, Notice::Readable);
    settle(shared, world, key)
}

fn handle(shared: &Arc<Shared>, world: &mut Guard<'_>, key: Key, id: ConnectionId) -> Connection {
    let ends = world.kernel.ends(key).unwrap_or(NOWHERE);
    let place = Place::of_stream(key);
    Connection::new(shared, place, id, Transport::Tcp, ends)
}

/// Our call was answered.
pub(crate) fn connected<'a>(shared: &'a Arc<Shared>, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    let Some((stream, kernel, ..)) = world.stream(key) else {
        return world;
    };
    if stream.accepting {
        stream.answered = true;
        return world;
    }
    if !stream.calling {
        return world;
    }
    stream.calling = false;
    match &mut stream.inside {
        Some(inside) => {
            connection::handle_connected(&mut inside.recv, &mut stream.send, kernel.now);
        }
        None => stream.send.handle_connected(),
    }
    let (id, network) = (stream.id, stream.network);
    // A call that was closed meanwhile only delivers what it was given.
    if stream.send.state() != State::Open {
        return flush(shared, world, key);
    }
    let Some(mut inside) = stream.inside.take() else {
        return flush(shared, world, key);
    };
    stream.is_told = true;
    let mut link = link(shared, &mut world, key, id);
    let what = (Record::Connected, id);
    let (done, mut world) = shared.callback(world, network, what, || {
        if let Some(handler) = &mut inside.handler {
            handler.connected(&mut link);
        }
    });
    world.network(network).metrics.connected += 1;
    let Some((stream, ..)) = world.stream(key) else {
        world.bury(inside);
        return world;
    };
    stream.inside = Some(inside);
    if done.is_none() {
        stream.send.abort(CloseReason::Panicked);
    }
    let world = flush(shared, world, key);
    read(shared, world, key)
}
