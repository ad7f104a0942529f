//! How a stream opens: it is accepted from a listener, or the peer answers its SYN.

use super::layers::{Layers, make_layer};
use super::state::Stream;
use crate::job::{AcceptFn, BoxedHandler, Call, Callback, Job, Task};
use crate::kernel::{Key, Notice};
use crate::network_state::NetworkId;
use crate::owner::Owner;
use crate::world::{ACCEPT_RETRY, NOWHERE, World};
use bytes::Bytes;
use cubenet_core::{Action, Ends, Layer, MakeLayer, Transport, connection};
use std::sync::Arc;

impl World {
    /// Takes the next connection from a listener.
    pub(crate) fn accept_stream(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let now = self.kernel.now;
        let listener = self.owners.listener(socket)?;
        if listener.retry_at > now || !self.kernel.iteration.goes_on() {
            return None;
        }
        let (id, accept) = (listener.network, Arc::clone(&listener.accept));
        let layer = listener.layer.clone();
        let network = &mut self.networks[id.0 as usize];
        let Ok(accepted) = self.kernel.accept(socket) else {
            network.metrics.accept_failed += 1;
            listener.retry_at = now.after(ACCEPT_RETRY);
            let at = listener.retry_at;
            self.kernel.notify_at(at, socket, Notice::Acceptable);
            return None;
        };
        let accepted = accepted?;
        self.kernel.iteration.messages -= 1;
        job.push(Task::Accept(socket));
        if !network.reserve(Transport::Tcp) {
            network.metrics.refused += 1;
            network.metrics.refused_by_limit += 1;
            self.kernel.close(accepted, false);
            return None;
        }
        let limits = Arc::clone(&network.limits);
        if let Some(layer) = layer {
            self.begin_handshake(accepted, id, &*layer, accept);
            return self.established(accepted, &Bytes::new(), job);
        }
        let stream = Stream::accepted(self.next_id(), id, &limits, now);
        let info = self.stream_info(accepted, stream.id);
        self.owners
            .insert(accepted, Owner::Stream(Box::new(stream)));
        Some(self.call(info, id, None, Callback::Accepted(accept)))
    }

    /// A stream was accepted whose layers come first.
    fn begin_handshake(
        &mut self,
        accepted: Key,
        id: NetworkId,
        layer: &dyn MakeLayer,
        accept: Arc<AcceptFn>,
    ) {
        let network = &mut self.networks[id.0 as usize];
        let limits = Arc::clone(&network.limits);
        let (local_addr, peer_addr) = self.kernel.ends(accepted).unwrap_or(NOWHERE);
        let layer = if network.may_handshake() {
            let layer = make_layer(layer, Ends::new(peer_addr, local_addr));
            network.metrics.accept_failed += u64::from(layer.is_none());
            layer
        } else {
            network.metrics.refused += 1;
            network.metrics.refused_by_handshakes += 1;
            None
        };
        let Some(layer) = layer else {
            network.open.remove(Transport::Tcp);
            return self.kernel.close(accepted, false);
        };
        let layers = Layers::new(layer, Some(accept), network);
        let now = self.kernel.now;
        let stream = Stream::handshaking(self.next_id(), id, &limits, now, layers);
        let owner = Owner::Stream(Box::new(stream));
        self.owners.insert(accepted, owner);
        if let Some((stream, kernel, network, _)) = self.stream(accepted) {
            stream.begin_layers(accepted, kernel, network);
            kernel.notify(accepted, Notice::Readable);
        }
    }

    /// The application has decided about an accepted stream.
    pub(super) fn stream_accepted(&mut self, call: &mut Call, job: &mut Job) {
        let socket = call.info.key.socket;
        let network = &mut self.networks[call.network.0 as usize];
        if let Some(handler) = call.handler.take() {
            network.metrics.accepted += 1;
            self.give_stream_handler(socket, handler);
            return job.push(Task::AdvanceStream(socket));
        }
        network.metrics.refused += 1;
        // Unless its host crashed meanwhile.
        if let Some((stream, kernel, network, _)) = self.stream(socket) {
            network.open.remove(Transport::Tcp);
            let reset = matches!(stream.send.turn_away(stream.queued()), Action::Reset(_));
            if !reset {
                stream.close_layers(socket, kernel, network);
            }
            network.queued_bytes -= stream.queued();
            network.held_bytes -= stream.held.bytes();
            kernel.close(socket, reset);
            let owner = self.owners.remove(socket);
            self.drop_later(owner);
        }
    }

    /// The application has made the handler of a stream. Its worker serves it from now on.
    pub(crate) fn give_stream_handler(&mut self, socket: Key, handler: BoxedHandler) {
        let Some(stream) = self.owners.stream(socket) else {
            return self.drop_later(handler);
        };
        stream.handler = Some(handler);
        if stream.send.state().is_connecting() && self.kernel.is_established(socket) {
            self.kernel.notify(socket, Notice::Connected);
        }
        // What has happened meanwhile has not been seen.
        self.kernel.notify(socket, Notice::Writable);
        self.kernel.notify(socket, Notice::Readable);
    }

    /// The peer has answered the SYN.
    pub(crate) fn stream_connected(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let stream = self.owners.stream(socket)?;
        if !stream.send.state().is_connecting() || stream.handler.is_none() {
            return None;
        }
        if stream.layers.is_some() {
            let (stream, kernel, network, _) = self.stream(socket)?;
            stream.send.handle_transport_connected(kernel.now);
            stream.begin_layers(socket, kernel, network);
            job.push(Task::Read(socket));
            job.push(Task::Flush(socket));
            return self.established(socket, &Bytes::new(), job);
        }
        let is_open = match &mut stream.recv {
            Some(recv) => connection::handle_connected(recv, &mut stream.send, self.kernel.now),
            None => stream.send.handle_connected(),
        };
        if is_open {
            job.push(Task::Read(socket));
        }
        job.push(Task::Flush(socket));
        is_open.then(|| self.call_stream(socket, Callback::Connected))?
    }

    /// The application has made the layer of a stream that connects.
    pub(crate) fn give_layer(&mut self, socket: Key, layer: Box<dyn Layer>) {
        match self.stream(socket) {
            Some((stream, _, network, _)) => {
                stream.layers = Some(Box::new(Layers::new(layer, None, network)));
            }
            None => self.drop_later(layer),
        }
    }

    /// If the handshake of the layers has just been completed: keeps what came behind it, and asks
    /// the application about a stream that was accepted, or tells it of one that was connected.
    pub(super) fn established(
        &mut self,
        socket: Key,
        bytes: &Bytes,
        job: &mut Job,
    ) -> Option<Box<Call>> {
        let stream = self.owners.stream(socket)?;
        let layers = stream.layers.as_mut()?;
        if !layers.poll_opened() {
            return None;
        }
        let (id, network) = (stream.id, stream.network);
        let accept = layers.accept.take();
        // None, too: the layers may have ended or failed behind that.
        stream.undelivered = Some(Box::new(bytes.clone()));
        job.push(Task::AdvanceStream(socket));
        // What waited for the handshake has made room.
        job.push(Task::Flush(socket));
        self.count_held(socket, false);
        match accept {
            None => self.call_stream(socket, Callback::Connected),
            Some(accept) => {
                let info = self.stream_info(socket, id);
                Some(self.call(info, network, None, Callback::Accepted(accept)))
            }
        }
    }
}
