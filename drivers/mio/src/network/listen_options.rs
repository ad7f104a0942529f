//! What the application may say about one listener.

use crate::error::Error;
use crate::network::listening::AdmitFn;
use cubenet_core::demux::Admission;
use cubenet_core::{Limits, MakeLayer};
use std::fmt;
use std::net::SocketAddr;

/// What a listener has of its own: limits, and a hook that sees datagrams from new peers before
/// anything is built for them.
///
/// ```
/// use cubenet_mio::{Admission, Limits, ListenOptions};
/// let options = ListenOptions::new()
///     .limits(Limits::new().with_max_datagram(1_200).with_reserved_peers(1_000))
///     .admit(|_peer, datagram| match datagram {
///         [b'h', b'i', ..] => Admission::Admit,
///         _ => Admission::Refuse,
///     });
/// ```
#[derive(Default)]
pub struct ListenOptions {
    pub(crate) limits: Option<Limits>,
    pub(crate) admit: Option<Box<AdmitFn>>,
    pub(crate) layer: Option<Box<dyn MakeLayer>>,
}

impl ListenOptions {
    /// The limits of the network, and no hook.
    pub fn new() -> Self {
        ListenOptions::default()
    }

    /// Limits for this listener's connections: lengths, queues, timeouts, peers. What bounds the
    /// whole network (`max_connections`, `max_queued_total`,
    /// `max_held_total`) stays as the network was given it.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// A hook that is called with each datagram from an address that has no connection, before
    /// anything is built for it, and says what to do. It is for listeners on the open internet,
    /// where source addresses can be forged: look for something in the datagram that a
    /// forger cannot have, such as a token that was handed out over TLS, and
    /// [refuse](Admission::Refuse) what has none. It runs on the workers' threads, on
    /// several at once, for every such datagram, so it should be quick. Streams are not shown to it.
    #[must_use]
    pub fn admit(
        mut self,
        hook: impl Fn(SocketAddr, &[u8]) -> Admission + Send + Sync + 'static,
    ) -> Self {
        self.admit = Some(Box::new(hook));
        self
    }

    /// A layer between the socket and the messages of each connection, such as TLS. `accepted` is
    /// called once its handshake is complete, and [`Connection::identity`] says what that has shown.
    /// For streams only.
    ///
    /// [`Connection::identity`]: crate::Connection::identity
    #[must_use]
    pub fn layer(mut self, layer: impl MakeLayer + 'static) -> Self {
        self.layer = Some(Box::new(layer));
        self
    }
}

impl fmt::Debug for ListenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenOptions")
            .field("limits", &self.limits)
            .field("admit", &self.admit.is_some())
            .field("layer", &self.layer.is_some())
            .finish()
    }
}

/// The limits of a listener, if they fit each other and the network's.
pub(crate) fn limits_of_listener(limits: &Limits, network: &Limits) -> Result<Limits, Error> {
    let limits = limits
        .clone()
        .with_max_connections(network.max_connections())
        .with_max_queued_total(network.max_queued_total())
        .with_max_held_total(network.max_held_total());
    limits.validate().map_err(Error::Limits)?;
    Ok(limits)
}
