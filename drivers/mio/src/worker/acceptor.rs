//! The acceptor: one thread that takes connections off the listeners and hands each to the
//! worker that has the fewest.

use crate::conn::permit::Permit;
use crate::log::{debug, warn_limited};
use crate::network::shared::{NetworkShared, NoRoom};
use crate::sys;
use crate::tcp::layers::HandshakePermit;
use crate::tcp::listener::StreamListener;
use crate::worker::mailbox::{Accepted, Command, Target};
use crate::worker::thread::enter_network_thread;
use cubenet_core::Transport;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const WAKER: Token = Token(usize::MAX);
/// How long to wait before trying again what failed for lack of descriptors or memory.
const RETRY: Duration = Duration::from_millis(20);

/// How other threads reach the acceptor.
pub(crate) struct AcceptorHandle {
    registry: Registry,
    waker: Waker,
    /// `None` once the acceptor has ended.
    mailbox: Mutex<Option<Vec<Order>>>,
}

/// What other threads ask of the acceptor.
pub(crate) enum Order {
    /// Accept on this listener, which is registered.
    Listen(Arc<StreamListener>),
    /// A listener was closed.
    Forget(u64),
    /// End.
    Stop,
}

impl AcceptorHandle {
    pub(crate) fn new(poll: &Poll) -> io::Result<Arc<Self>> {
        Ok(Arc::new(AcceptorHandle {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKER)?,
            mailbox: Mutex::new(Some(Vec::new())),
        }))
    }

    /// Registers the socket of a listener, under its number.
    pub(crate) fn register(&self, number: u64, socket: &mut TcpListener) -> io::Result<()> {
        let token = Token(number as usize);
        self.registry.register(socket, token, Interest::READABLE)?;
        #[cfg(cubenet_faults)]
        {
            let raw = std::os::fd::AsRawFd::as_raw_fd(socket);
            sys::faults::registered(raw, &self.registry, token, Interest::READABLE);
        }
        Ok(())
    }

    /// Leaves `order` for the acceptor. Gives it back if that has ended.
    pub(crate) fn post(&self, order: Order) -> Result<(), Order> {
        match &mut *self.mailbox() {
            Some(orders) => orders.push(order),
            None => return Err(order),
        }
        // If the wake-up fails, the next one delivers the order; no thread waits for it.
        let _ = self.waker.wake();
        Ok(())
    }

    fn mailbox(&self) -> MutexGuard<'_, Option<Vec<Order>>> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Acceptor {
    poll: Poll,
    handle: Arc<AcceptorHandle>,
    network: Arc<NetworkShared>,
    listeners: HashMap<u64, Listener>,
}

struct Listener {
    shared: Arc<StreamListener>,
    /// More may wait in the kernel: try again, then.
    again: Option<Instant>,
}

impl Acceptor {
    pub(crate) fn new(
        poll: Poll,
        handle: Arc<AcceptorHandle>,
        network: Arc<NetworkShared>,
    ) -> Self {
        Acceptor {
            poll,
            handle,
            network,
            listeners: HashMap::new(),
        }
    }

    /// Accepts until the network stops. The listeners close with it.
    pub(crate) fn run(mut self) {
        enter_network_thread();
        let mut events = Events::with_capacity(64);
        loop {
            if let Err(error) = self.poll.poll(&mut events, self.poll_timeout())
                && error.kind() != io::ErrorKind::Interrupted
            {
                warn_limited!(%error, "poll failed");
            }
            for event in &events {
                let number = event.token().0 as u64;
                // A listener that waits to try again goes on waiting when another connection arrives.
                if let Some(listener) = self.listeners.get_mut(&number)
                    && listener.again.is_none()
                {
                    listener.again = Some(Instant::now());
                }
            }
            if self.handle_mailbox() {
                return self.close();
            }
            let now = Instant::now();
            for listener in self.listeners.values_mut() {
                if listener.again.is_some_and(|again| again <= now) {
                    listener.again = listener.accept_some(&self.network);
                }
            }
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        let listeners = self.listeners.values();
        let again = listeners.filter_map(|listener| listener.again);
        Some(again.min()?.saturating_duration_since(Instant::now()))
    }

    /// Returns whether the network stops.
    fn handle_mailbox(&mut self) -> bool {
        let orders = self.handle.mailbox().replace(Vec::new());
        let mut stops = false;
        for order in orders.into_iter().flatten() {
            match order {
                Order::Listen(shared) => {
                    let again = Some(Instant::now());
                    let number = shared.number;
                    self.listeners.insert(number, Listener { shared, again });
                }
                Order::Forget(number) => drop(self.listeners.remove(&number)),
                Order::Stop => stops = true,
            }
        }
        stops
    }

    /// Closes the listeners, those included that are still in an order.
    fn close(self) {
        let orders = self.handle.mailbox().take();
        for order in orders.into_iter().flatten() {
            if let Order::Listen(shared) = order {
                shared.close();
            }
        }
        for listener in self.listeners.values() {
            listener.shared.close();
        }
    }
}

impl Listener {
    /// Accepts within the budget of an iteration. Returns when to try again, if not at the next
    /// event.
    fn accept_some(&self, network: &Arc<NetworkShared>) -> Option<Instant> {
        let mut progress = false;
        for _ in 0..network.budgets.accepts() {
            let accepted = match &*self.shared.socket() {
                Some(socket) => sys::accept(socket),
                // It was closed; word of that is on its way.
                None => return None,
            };
            match accepted {
                Ok((stream, peer)) => {
                    progress = true;
                    let Target { home, mailbox } = Target::least_loaded(&self.shared.targets);
                    let listening = &self.shared.listening;
                    let permits = Permit::take(home, Transport::Tcp, Some(peer.ip()));
                    let permits = permits.and_then(|permit| {
                        let handshake = listening
                            .has_layer()
                            .then(|| HandshakePermit::take(network).ok_or(NoRoom::Handshakes));
                        Ok((permit, handshake.transpose()?))
                    });
                    let (permit, handshake) = match permits {
                        Ok(permits) => permits,
                        Err(reason) => {
                            // The socket is closed first: a subscriber may take its time.
                            drop(stream);
                            network.refused(peer, reason);
                            continue;
                        }
                    };
                    let accepted = Accepted {
                        stream,
                        peer,
                        home: Arc::clone(home),
                        listening: Arc::clone(listening),
                        permit,
                        handshake,
                    };
                    // A worker that has ended closes it.
                    let _ = mailbox.post(Command::Accept(accepted));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return None,
                    io::ErrorKind::Interrupted => {}
                    _ if sys::out_of_resources(&error) => {
                        // What waits stays in the kernel, and no event will tell of it.
                        network.totals.accept_failed.fetch_add(1, Relaxed);
                        warn_limited!(%error, "cannot accept; trying again");
                        return Some(Instant::now() + RETRY);
                    }
                    // The peer gave up while it waited: that is about it alone.
                    _ => {
                        debug!(%error, "a connection ended before it was accepted");
                    }
                },
            }
        }
        // An iteration of nothing but errors is no reason to spin.
        let pause = if progress { Duration::ZERO } else { RETRY };
        Some(Instant::now() + pause)
    }
}
