//! What the application may say about one connect.

use cubenet_core::MakeLayer;
use std::fmt;
use std::sync::Arc;

/// What a connect has of its own: a layer, such as TLS.
#[derive(Clone, Default)]
pub struct ConnectOptions {
    pub(crate) layer: Option<Arc<dyn MakeLayer>>,
}

impl ConnectOptions {
    /// No layer.
    pub fn new() -> Self {
        ConnectOptions::default()
    }

    /// A layer between the socket and the messages of the connection. For streams only.
    #[must_use]
    pub fn layer(mut self, layer: impl MakeLayer + 'static) -> Self {
        self.layer = Some(Arc::new(layer));
        self
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("layer", &self.layer.is_some())
            .finish()
    }
}
