//! Certificates and keys in files.

use crate::error::Error;
use crate::provider::provider;
use crate::server::{ClientHello, ConfigSource};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// A configuration of a server with the certificate chain and the private key in these files (PEM),
/// which asks no client for a certificate.
pub fn server_config(
    certificate: impl AsRef<Path>,
    key: impl AsRef<Path>,
) -> Result<Arc<ServerConfig>, Error> {
    let chain = certificates(certificate.as_ref())?;
    let key_der = PrivateKeyDer::from_pem_file(&key)
        .map_err(|error| file_error(key.as_ref(), error, "it has no private key (PEM)"))?;
    let config = ServerConfig::builder_with_provider(provider()?)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)?;
    Ok(Arc::new(config))
}

/// A configuration that is read from files, and read again when the application says so. Clones are
/// the same.
#[derive(Clone)]
pub struct CertificateFiles(Arc<Files>);

struct Files {
    certificate: PathBuf,
    key: PathBuf,
    change: Box<Change>,
    config: RwLock<Arc<ServerConfig>>,
}

type Change = dyn Fn(ServerConfig) -> ServerConfig + Send + Sync;

impl CertificateFiles {
    /// The certificate chain and the private key in these files (PEM).
    pub fn load(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, Error> {
        CertificateFiles::load_with(certificate, key, |config| config)
    }

    /// The same, with changes to the configuration that is made of them, such as protocols (ALPN).
    /// They are made again at each [`reload`](CertificateFiles::reload).
    pub fn load_with(
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        change: impl Fn(ServerConfig) -> ServerConfig + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let (certificate, key) = (certificate.into(), key.into());
        let config = read(&certificate, &key, &change)?;
        Ok(CertificateFiles(Arc::new(Files {
            certificate,
            key,
            change: Box::new(change),
            config: RwLock::new(config),
        })))
    }

    /// Reads the files again. Connections that begin from now on get what is in them; those that are
    /// there keep what they have. If the files cannot be used, nothing changes.
    ///
    /// Blocks while it reads: not to be called in a callback.
    pub fn reload(&self) -> Result<(), Error> {
        let files = &self.0;
        let config = read(&files.certificate, &files.key, &files.change)?;
        *files.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }
}

fn read(
    certificate: &Path,
    key: &Path,
    change: &impl Fn(ServerConfig) -> ServerConfig,
) -> Result<Arc<ServerConfig>, Error> {
    let config = server_config(certificate, key)?;
    Ok(Arc::new(change(Arc::unwrap_or_clone(config))))
}

impl ConfigSource for CertificateFiles {
    fn config(&self, _hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let config = self.0.config.read();
        Some(Arc::clone(&config.unwrap_or_else(PoisonError::into_inner)))
    }
}

impl fmt::Debug for CertificateFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateFiles")
            .field("certificate", &self.0.certificate)
            .field("key", &self.0.key)
            .finish_non_exhaustive()
    }
}

/// The certificates in a file, of which there is at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let none = "it has no certificate (PEM)";
    let read = CertificateDer::pem_file_iter(path);
    let certificates: Result<Vec<_>, _> = read.and_then(Iterator::collect);
    let certificates = certificates.map_err(|error| file_error(path, error, none))?;
    if certificates.is_empty() {
        return Err(file_error(path, pem::Error::NoItemsFound, none));
    }
    Ok(certificates)
}

/// The authorities in a file.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn file_error(path: &Path, error: pem::Error, none: &str) -> Error {
    let source = match error {
        pem::Error::Io(error) => error,
        pem::Error::NoItemsFound => io::Error::new(io::ErrorKind::InvalidData, none),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    };
    Error::File {
        path: path.to_owned(),
        source,
    }
}
