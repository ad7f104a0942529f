//! What an application may say about one connect.

use super::MakeLayer;
use alloc::sync::Arc;
use core::fmt;

/// What a connect has of its own: a layer, such as TLS.
#[derive(Clone, Default)]
pub struct ConnectOptions {
    layer: Option<Arc<dyn MakeLayer>>,
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

    /// For a driver: what makes the layer, if there is to be one.
    pub fn maker(&self) -> Option<&dyn MakeLayer> {
        self.layer.as_deref()
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layer = self.layer.is_some();
        f.debug_struct("ConnectOptions")
            .field("layer", &layer)
            .finish()
    }
}
