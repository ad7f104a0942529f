//! What a network does for its peers beside serving them: rotation on a full device, questions for
//! hosts, and the end of connections whose address is gone.

use super::Network;
use crate::tcp::stream::Stream;
use crate::udp::port::{NEIGHBOUR_TIMEOUT, Port};
use cubenet_core::{Handler, Instant, Limits};
use smoltcp::phy::Device;
use smoltcp::socket::tcp;

impl<D: Device, H: Handler> Network<'_, D, H> {
    /// The device takes no more frames. smoltcp serves the sockets in their order, so that the
    /// first might be served alone: another that may have something to send takes its place.
    #[cold]
    #[inline(never)]
    pub(super) fn rotate_sockets(&mut self) {
        let (streams, ports) = (self.streams.len(), self.ports.len());
        let Some(first) = self.first_socket else {
            return;
        };
        for _ in 0..streams + ports {
            self.served_first = (self.served_first + 1) % (streams + ports);
            let handle = match self.served_first.checked_sub(streams) {
                None => self.streams[self.served_first].with_output(&self.stack.sockets),
                Some(port) => {
                    let port = self.ports[port].as_ref();
                    port.and_then(|port| port.with_output(&self.stack.sockets))
                }
            };
            let Some(second) = handle.filter(|handle| *handle != first) else {
                continue;
            };
            self.stack.swap(first, second);
            for stream in &mut *self.streams {
                stream.swap(first, second);
            }
            for port in self.ports.iter_mut().flatten() {
                port.swap(first, second);
            }
            return;
        }
    }

    /// Asks for hosts that smoltcp does not ask for, and takes those for missing that have not
    /// answered.
    #[cold]
    #[inline(never)]
    pub(super) fn resolve_neighbours(&mut self) {
        let now = self.shared.now;
        // What waited for it can leave.
        self.shared.poll_again |= self.stack.give_up_missing(now);
        if !self.stack.begin_round(now) {
            return;
        }
        let streams = self.streams.len();
        for nth in self.asked_of..streams + self.ports.len() {
            let host = match nth.checked_sub(streams) {
                None => {
                    let stream = &self.streams[nth];
                    let handle = stream.handle;
                    let socket = handle.map(|handle| self.stack.sockets.get::<tcp::Socket>(handle));
                    socket.and_then(|socket| stream.peer_to_resolve(socket))
                }
                Some(port) => self.ports[port].as_ref().and_then(Port::peer_to_resolve),
            };
            if host.is_some_and(|host| !self.stack.ask(host, now)) {
                // The device has no room: the round goes on from here.
                self.asked_of = nth;
                return self.stack.interrupt_round(now);
            }
        }
        self.asked_of = 0;
        if self.streams.iter().any(Stream::is_connecting) {
            self.stack.connect_begins(now);
        }
    }

    /// Whether the interface has lost the local address of a connection, or the way to a datagram
    /// peer.
    #[cold]
    #[inline(never)]
    pub(super) fn has_lost_an_address(&mut self) -> bool {
        let (interface, shared) = (&mut self.stack.interface, &self.shared);
        let mut streams = self.streams.iter();
        let mut ports = self.ports.iter().flatten();
        streams.any(|stream| stream.has_lost_its_address(interface))
            || ports.any(|port| port.has_lost_an_address(interface, shared))
    }

    /// Ends the connections whose local addresses the interface has lost.
    #[cold]
    #[inline(never)]
    pub(super) fn check_addresses(&mut self) {
        let interface = &mut self.stack.interface;
        for stream in &mut *self.streams {
            stream.check_address(interface);
        }
        for port in self.ports.iter_mut().flatten() {
            port.check_addresses(interface, &mut self.stack.sockets, &mut self.shared);
        }
        self.shared.poll_again = true;
    }
}

/// The shortest time that a clock is set to, in microseconds.
pub(super) fn shortest_timeout(limits: &Limits) -> u64 {
    let shortest = limits.shortest_timeout().min(NEIGHBOUR_TIMEOUT);
    Instant::ZERO.after(shortest).as_micros()
}
