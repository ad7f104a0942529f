//! How a stream that was accepted becomes a connection.

use crate::address::canonical;
use crate::conn::info::Conn;
use crate::conn::permit::Owned;
use crate::connection::Connection;
use crate::log::{debug, error_limited};
use crate::network::listening::Listening;
use crate::tcp::layers::Layers;
use crate::tcp::shared::StreamShared;
use crate::user::catch_panic;
use crate::user_callback::run_callback;
use crate::worker::mailbox::{Accepted, BoxedHandler};
use crate::worker::resources::WorkerResources;
use cubenet_core::{Action, Ends, SendHalf};
use std::io;
use std::sync::Arc;

impl Accepted {
    /// Takes the stream over into a worker.
    pub(super) fn adopt(
        self,
        resources: &WorkerResources,
    ) -> io::Result<(Owned<StreamShared>, Arc<Listening>)> {
        let Accepted {
            stream,
            peer,
            home,
            listening,
            permit,
            handshake,
        } = self;
        resources.network.options.adopt_stream(&stream)?;
        let layers = match handshake {
            Some(permit) => {
                let ends = Ends::new(canonical(peer), canonical(stream.local_addr()?));
                let layer = catch_panic(|| listening.make_layer(ends)).map_err(|panic| {
                    let text = panic.text();
                    error_limited!(%peer, panic = text, "a layer panicked as it was made");
                    io::Error::other("the layer could not be made")
                })?;
                layer.map(|layer| Layers::new(layer, permit))
            }
            None => None,
        };
        let half = match layers {
            Some(_) => SendHalf::handshaking(resources.now),
            None => SendHalf::accepted(),
        };
        let shared = StreamShared::new(&home, stream, peer, half, layers)?;
        Ok((permit.attach(shared), listening))
    }
}

/// Asks the application about a stream that was accepted. If it does not want it, that is closed and
/// counted.
pub(crate) fn accept(
    shared: &Arc<StreamShared>,
    listening: &Listening,
    resources: &mut WorkerResources,
) -> Option<BoxedHandler> {
    let id = shared.info().id;
    let connection = Connection::stream(shared);
    let counts = &shared.home().counts;
    resources.tick();
    let began = resources.now;
    resources.batch.borrow_mut().begin(id.as_u64());
    let handler = run_callback("accepted", id, counts, || listening.accept(&connection));
    let mut batch = resources.batch.borrow_mut();
    batch.end();
    let Some(handler) = handler.flatten() else {
        // It may have sent something that is not delivered now, or aborted by itself.
        let gathered = batch.gathered();
        batch.discard_frames(shared);
        drop(batch);
        counts.refused.count();
        if let Action::Reset(_) = shared.turn_away(gathered) {
            shared.reset();
        }
        resources.tick();
        counts.handler_time.record(began, resources.now);
        return None;
    };
    batch.flush_frames(shared);
    drop(batch);
    resources.tick();
    counts.handler_time.record(began, resources.now);
    debug!(connection = %id, peer = %shared.info().peer_addr(), "accepted");
    counts.accepted.count();
    Some(handler)
}
