//! What the application may say about one listener.

use cubenet_core::MakeLayer;
use std::fmt;
use std::sync::Arc;

/// What a listener has of its own: a layer, such as TLS.
#[derive(Clone, Default)]
pub struct ListenOptions {
    pub(crate) layer: Option<Arc<dyn MakeLayer>>,
}

impl ListenOptions {
    /// No layer.
    pub fn new() -> Self {
        ListenOptions::default()
    }

    /// A layer between the socket and the messages of each connection, such as TLS. `accepted` is
    /// called once its handshake is complete, and [`Connection::identity`] says what that has shown.
    /// For streams only.
    ///
    /// The layer runs under the lock of the simulation, so it must not use that.
    ///
    /// [`Connection::identity`]: crate::Connection::identity
    #[must_use]
    pub fn layer(mut self, layer: impl MakeLayer + 'static) -> Self {
        self.layer = Some(Arc::new(layer));
        self
    }
}

impl fmt::Debug for ListenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenOptions")
            .field("layer", &self.layer.is_some())
            .finish()
    }
}
