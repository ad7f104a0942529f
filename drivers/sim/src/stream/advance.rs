//! What is next for a stream, as the core says; and how it closes.

use crate::conn_info::{ConnInfo, ConnKey};
use crate::job::{Call, Callback, Job};
use crate::kernel::{Key, Notice};
use crate::owner::Owner;
use crate::world::{NOWHERE, World};
use cubenet_core::{Action, CloseReason, ConnectionId, Transport};

impl World {
    /// Does what the core says is next, after anything has happened.
    pub(crate) fn advance_stream(&mut self, socket: Key) -> Option<Box<Call>> {
        let (stream, kernel, network, _) = self.stream(socket)?;
        if stream.follow_reading(socket, kernel) {
            stream.layers_delivered(socket, kernel, network);
            self.count_held(socket, false);
        }
        let (stream, kernel, network, timers) = self.stream(socket)?;
        let mut action = stream.send.poll_action(stream.queued());
        if action == Action::SendFin {
            action = if stream.close_layers(socket, kernel, network) {
                // A layer may have panicked over it.
                stream.send.poll_action(stream.queued())
            } else {
                Action::Wait
            };
        }
        match action {
            Action::Wait => {}
            Action::SendFin => {
                kernel.shutdown(socket);
                stream.send.handle_fin_sent();
                kernel.notify(socket, Notice::Readable);
            }
            // A callback that runs must return first; its job advances the stream again.
            Action::Close(_) | Action::Reset(_)
                if stream.handler.is_none() && !stream.is_unasked() =>
            {
                return None;
            }
            Action::Close(reason) => return self.close_stream(socket, reason, false),
            Action::Reset(reason) => return self.close_stream(socket, reason, true),
        }
        let deadline = stream.poll_timeout(&network.limits).max(kernel.now);
        timers.arm(socket, &mut stream.armed, deadline);
        None
    }

    /// A stream has closed: its socket goes, and `closed` or `connect_failed` is due.
    fn close_stream(&mut self, socket: Key, reason: CloseReason, reset: bool) -> Option<Box<Call>> {
        let (stream, kernel, network, _) = self.stream(socket)?;
        if !reset {
            // What the socket does not take of it is lost.
            stream.close_layers(socket, kernel, network);
        }
        let id = stream.id;
        let info = self.stream_info(socket, id);
        let Owner::Stream(mut stream) = self.owners.remove(socket)? else {
            return None;
        };
        let network = self.network(stream.network);
        network.queued_bytes -= stream.queued();
        network.held_bytes -= stream.held.bytes();
        network.count_closed(Transport::Tcp, reason);
        let (identity, mut layers) = (stream.identity(), stream.layers.take());
        let failed = layers.as_mut().and_then(|layers| {
            layers.end_handshake(network);
            layers.error()
        });
        let handler = stream.handler.take();
        let callback = if stream.send.was_open() {
            Callback::Closed(reason)
        } else {
            // One that the application was not asked about has no handler.
            network.metrics.connect_failed += u64::from(handler.is_some());
            Callback::ConnectFailed(reason, failed)
        };
        self.kernel.close(socket, reset);
        if layers.is_some() {
            // It is the application's.
            self.drop_later(layers);
        }
        let mut call = self.call(info, stream.network, Some(handler?), callback);
        call.identity = identity;
        Some(call)
    }

    /// A callback of a stream, which is without its handler while that runs.
    pub(super) fn call_stream(&mut self, socket: Key, callback: Callback) -> Option<Box<Call>> {
        let stream = self.owners.stream(socket)?;
        let (id, network) = (stream.id, stream.network);
        let identity = stream.identity();
        let handler = stream.handler.take()?;
        let info = self.stream_info(socket, id);
        let mut call = self.call(info, network, Some(handler), callback);
        call.identity = identity;
        Some(call)
    }

    /// A callback of a stream has returned.
    pub(crate) fn stream_returned(&mut self, call: &mut Call, panicked: bool, job: &mut Job) {
        if let Callback::Accepted(_) = call.callback {
            return self.stream_accepted(call, job);
        }
        let socket = call.info.key.socket;
        if let Some(stream) = self.owners.stream(socket) {
            stream.handler = call.handler.take();
            if panicked {
                stream.send.abort(CloseReason::Panicked);
            }
        }
        match &mut call.callback {
            Callback::ReceivedBytes(input) => {
                if let Some(input) = input.take() {
                    self.delivered(socket, call.network, input, job);
                }
            }
            Callback::Connected => self.network(call.network).metrics.connected += 1,
            _ => {}
        }
    }

    pub(super) fn stream_info(&mut self, socket: Key, id: ConnectionId) -> ConnInfo {
        let (local_addr, peer_addr) = self.kernel.ends(socket).unwrap_or(NOWHERE);
        ConnInfo {
            key: ConnKey {
                socket,
                slot: 0,
                id,
            },
            transport: Transport::Tcp,
            local_addr,
            peer_addr,
        }
    }
}
