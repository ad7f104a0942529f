//! How a network stops.

use super::Network;
use crate::tcp::pool;
use crate::tcp::stream::{Stage, Stream};
use core::time::Duration;
use cubenet_core::{Handler, Instant};
use smoltcp::phy::Device;

impl<D: Device, H: Handler> Network<'_, D, H> {
    /// Stops at `now`: accepts no more, connects no more, and closes every connection, which delivers
    /// what was sent on it; what is not delivered after `timeout` is lost. Go on with
    /// [`Network::poll`] until [`Network::is_stopped`].
    pub fn stop(&mut self, timeout: Duration, now: Instant) {
        if self.stops_at.is_some() {
            return;
        }
        self.shared.advance(now);
        let stops_at = self.shared.now.after(timeout);
        self.stops_at = Some(stops_at);
        self.next_timeout = self.next_timeout.min(stops_at);
        self.listeners.places.fill_with(|| None);
        self.listeners.count();
        for place in 0..self.listeners.places.len() {
            self.empty_pools(Some(place));
        }
        self.close_all(true);
    }

    /// Whether it was stopped, every connection has ended, and every stream's peer has FIN or RST.
    pub fn is_stopped(&self) -> bool {
        let is_ended = |stream: &Stream<H>| {
            matches!(stream.stage, Stage::Free) || pool::is_delivered(stream, &self.stack.sockets)
        };
        let Some(stops_at) = self.stops_at.filter(|_| self.shared.open.total() == 0) else {
            return false;
        };
        let mut ports = self.ports.iter().flatten();
        let all_left = ports.all(|port| port.is_drained(&self.stack.sockets));
        self.streams.iter().all(is_ended) && (all_left || self.shared.now >= stops_at)
    }

    pub(super) fn stop_in_time(&mut self) {
        if self.stops_at.is_some_and(|at| self.shared.now >= at) && self.shared.open.total() > 0 {
            self.close_all(false);
        }
    }

    /// Closes every connection, or gives it up.
    fn close_all(&mut self, in_order: bool) {
        for stream in &mut *self.streams {
            stream.close(in_order, self.shared.now);
        }
        for port in self.ports.iter_mut().flatten() {
            port.close_all(in_order);
        }
        self.shared.poll_again = true;
    }
}
