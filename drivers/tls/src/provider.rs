//! The provider of cryptography.

use crate::error::Error;
use rustls::crypto::CryptoProvider;
use std::sync::Arc;

/// The provider that the application has installed, or else the one of a feature.
pub(crate) fn provider() -> Result<Arc<CryptoProvider>, Error> {
    #[cfg(feature = "ring")]
    let of_feature = || Some(Arc::new(rustls::crypto::ring::default_provider()));
    #[cfg(not(feature = "ring"))]
    let of_feature = || None;
    let installed = CryptoProvider::get_default().cloned();
    installed.or_else(of_feature).ok_or(Error::NoProvider)
}
