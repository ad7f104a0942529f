//! How many connections are open, of each transport.

use crate::limits::Limits;
use crate::transport::Transport;

/// Whether one more connection may be opened, where `open` of its transport are.
#[inline]
pub const fn may_open(open: usize, limits: &Limits) -> bool {
    open < limits.max_connections()
}

/// How many connections of a network are open, those included that are connecting. For a driver
/// that changes it from one thread at a time.
///
/// ```
/// use cubenet_core::{Limits, OpenConnections, Transport};
/// let limits = Limits::new().with_max_connections(1);
/// let mut open = OpenConnections::default();
/// assert!(open.try_add(Transport::Tcp, &limits));
/// assert!(!open.try_add(Transport::Tcp, &limits));
/// // The limit is one for each transport.
/// assert!(open.try_add(Transport::Udp, &limits));
/// open.remove(Transport::Tcp);
/// assert_eq!(open.total(), 1);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenConnections {
    streams: usize,
    datagrams: usize,
}

impl OpenConnections {
    /// How many there are.
    pub const fn total(&self) -> usize {
        self.streams + self.datagrams
    }

    /// How many there are of one transport.
    pub const fn of(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => self.streams,
            Transport::Udp => self.datagrams,
        }
    }

    /// Whether there is room for one more.
    pub const fn has_room(&self, transport: Transport, limits: &Limits) -> bool {
        may_open(self.of(transport), limits)
    }

    /// Counts one more, if there is room. Returns whether there was.
    pub fn try_add(&mut self, transport: Transport, limits: &Limits) -> bool {
        let has_room = self.has_room(transport, limits);
        if has_room {
            self.add(transport);
        }
        has_room
    }

    /// Counts one more, whose place another is about to leave.
    pub fn add(&mut self, transport: Transport) {
        *self.count(transport) += 1;
    }

    /// One has closed.
    pub fn remove(&mut self, transport: Transport) {
        let count = self.count(transport);
        debug_assert!(*count > 0, "a connection was removed twice");
        *count -= 1;
    }

    fn count(&mut self, transport: Transport) -> &mut usize {
        match transport {
            Transport::Tcp => &mut self.streams,
            Transport::Udp => &mut self.datagrams,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_takes_the_place_of_another_is_counted_over_the_limit() {
        let limits = Limits::new().with_max_connections(1);
        let mut open = OpenConnections::default();
        assert!(open.try_add(Transport::Udp, &limits));
        open.add(Transport::Udp);
        assert_eq!(open.of(Transport::Udp), 2);
        open.remove(Transport::Udp);
        assert!(!open.has_room(Transport::Udp, &limits));
        open.remove(Transport::Udp);
        assert!(open.has_room(Transport::Udp, &limits));
        assert_eq!((open.of(Transport::Tcp), open.total()), (0, 0));
    }
}
