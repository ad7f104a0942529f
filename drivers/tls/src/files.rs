//! Certificates and keys in files.

use crate::error::Error;
use crate::provider::provider;
use crate::server::{ClientHello, ConfigSource};
use crate::tickets::TicketKeys;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
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
    let config = read(certificate.as_ref(), key.as_ref(), None)?;
    Ok(Arc::new(config))
}

fn read(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<ServerConfig, Error> {
    let provider = provider()?;
    let (chain, key) = identity(certificate, key)?;
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let config = match client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let authorities = Arc::new(roots(path)?);
            let verifier =
                WebPkiClientVerifier::builder_with_provider(authorities, provider).build();
            let verifier = verifier.map_err(|error| Error::Config {
                problem: error.to_string(),
            })?;
            config.with_client_cert_verifier(verifier)
        }
    };
    Ok(config.with_single_cert(chain, key)?)
}

/// The certificate chain and the private key in these files.
pub(crate) fn identity(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| file_error(key, error, "it has no private key (PEM)"))?;
    Ok((chain, key))
}

/// A configuration that is read from files, and read again when the application says so. Clones are
/// the same.
#[derive(Clone)]
pub struct CertificateFiles(Arc<Files>);

struct Files {
    paths: CertificateFilesBuilder,
    config: RwLock<Arc<ServerConfig>>,
}

/// Which files, and what is made of them; [`CertificateFiles::builder`] begins one.
pub struct CertificateFilesBuilder {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    tickets: Option<TicketKeys>,
    change: Option<Box<Change>>,
}

type Change = dyn Fn(&mut ServerConfig) + Send + Sync;

impl CertificateFilesBuilder {
    /// Clients must show a certificate of one of the authorities in this file (PEM).
    #[must_use]
    pub fn client_ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.client_ca = Some(path.into());
        self
    }

    /// Seals sessions into tickets with these keys. A ticket is good wherever the keys are, and the
    /// file of [`client_ca`](Self::client_ca) has the same authorities.
    #[must_use]
    pub fn tickets(mut self, keys: TicketKeys) -> Self {
        self.tickets = Some(keys);
        self
    }

    /// Changes the configuration that is made of the files, each time they are read: for instance
    /// protocols (ALPN).
    #[must_use]
    pub fn change(mut self, change: impl Fn(&mut ServerConfig) + Send + Sync + 'static) -> Self {
        self.change = Some(Box::new(change));
        self
    }

    /// Reads the files.
    pub fn load(self) -> Result<CertificateFiles, Error> {
        let config = RwLock::new(self.read()?);
        let paths = self;
        Ok(CertificateFiles(Arc::new(Files { paths, config })))
    }

    fn read(&self) -> Result<Arc<ServerConfig>, Error> {
        let mut config = read(&self.certificate, &self.key, self.client_ca.as_deref())?;
        if let Some(keys) = &self.tickets {
            let mut scope = Vec::new();
            if let Some(path) = &self.client_ca {
                scope.push(1);
                for authority in certificates(path)? {
                    scope.extend_from_slice(&authority);
                }
            }
            keys.seal_sessions(&mut config, scope);
        }
        if let Some(change) = &self.change {
            change(&mut config);
        }
        Ok(Arc::new(config))
    }
}

impl CertificateFiles {
    /// The certificate chain and the private key in these files (PEM).
    pub fn load(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, Error> {
        CertificateFiles::builder(certificate, key).load()
    }

    /// The same, with more to say.
    pub fn builder(
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> CertificateFilesBuilder {
        CertificateFilesBuilder {
            certificate: certificate.into(),
            key: key.into(),
            client_ca: None,
            tickets: None,
            change: None,
        }
    }

    /// Reads the files again. Connections that begin from now on get what is in them; those that are
    /// there keep what they have. If the files cannot be used, nothing changes.
    ///
    /// Blocks while it reads: not to be called in a callback.
    pub fn reload(&self) -> Result<(), Error> {
        let config = self.0.paths.read()?;
        *self
            .0
            .config
            .write()
            .unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }
}

impl ConfigSource for CertificateFiles {
    fn config(&self, _hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let config = self.0.config.read();
        Some(Arc::clone(&config.unwrap_or_else(PoisonError::into_inner)))
    }
}

impl fmt::Debug for CertificateFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.paths.fmt(f)
    }
}

impl fmt::Debug for CertificateFilesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateFiles")
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .field("client_ca", &self.client_ca)
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
