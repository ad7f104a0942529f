//! What can go wrong, in the words of those who have to mend it.

use cubenet_core::LayerError;
use rustls::{AlertDescription, CertificateError, PeerIncompatible};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a configuration could not be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[non_exhaustive]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said, or what is wrong with its content.
        source: io::Error,
    },
    /// The certificate, the key and the authorities do not fit each other, or cannot be used.
    #[non_exhaustive]
    Config {
        /// What is wrong.
        problem: String,
    },
    /// What was given is neither a host name nor an IP address.
    #[non_exhaustive]
    ServerName {
        /// What was given.
        given: String,
    },
    /// There is no provider of cryptography: the feature `ring` is off, and none was installed.
    NoProvider,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { path, .. } => write!(f, "cannot use the file {}", path.display()),
            Error::Config { problem } => f.write_str(problem),
            Error::ServerName { given } => write!(
                f,
                "{given:?} is no server name: give a host name such as example.com, or an IP address"
            ),
            Error::NoProvider => f.write_str(
                "there is no provider of cryptography: turn on the feature `ring`, or install one",
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::File { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<rustls::Error> for Error {
    fn from(error: rustls::Error) -> Self {
        Error::Config {
            problem: explain(&error),
        }
    }
}

/// The error of a layer that failed because of this.
pub(crate) fn layer_error(error: &rustls::Error) -> LayerError {
    LayerError::new(explain(error))
}

/// What an error of TLS means for those who run the two sides.
fn explain(error: &rustls::Error) -> String {
    use rustls::Error as Tls;
    let text = match error {
        Tls::InvalidCertificate(problem) => return explain_certificate(problem),
        Tls::NoCertificatesPresented => "the peer has shown no certificate, and one is required",
        Tls::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "the peer does not speak TLS"
        }
        Tls::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic,
        ) => "the two sides have no version of TLS in common",
        Tls::PeerIncompatible(
            PeerIncompatible::NoCipherSuitesInCommon | PeerIncompatible::NoKxGroupsInCommon,
        ) => "the two sides have no cipher suite in common",
        Tls::NoApplicationProtocol => "the two sides have no application protocol (ALPN) in common",
        Tls::DecryptError => "a record of the peer was damaged",
        Tls::AlertReceived(alert) => return explain_alert(*alert),
        _ => return error.to_string(),
    };
    text.to_owned()
}

fn explain_certificate(problem: &CertificateError) -> String {
    let text = match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate of the peer has expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate of the peer is not valid yet"
        }
        CertificateError::UnknownIssuer => {
            "the certificate of the peer is from an authority that is not trusted"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate of the peer is for another name"
        }
        CertificateError::Revoked => "the certificate of the peer was revoked",
        other => return format!("the certificate of the peer cannot be used: {other}"),
    };
    text.to_owned()
}

fn explain_alert(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::CertificateExpired => {
            "the peer refuses our certificate, which has expired"
        }
        AlertDescription::UnknownCA => {
            "the peer refuses our certificate: it does not trust the authority"
        }
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "the peer refuses our certificate"
        }
        AlertDescription::CertificateRequired => "the peer requires a certificate of us",
        AlertDescription::ProtocolVersion => "the two sides have no version of TLS in common",
        AlertDescription::HandshakeFailure => {
            "the peer finds nothing in common: cipher suites, signatures, or a certificate of us"
        }
        AlertDescription::UnrecognisedName => "the peer does not serve the name that we asked for",
        AlertDescription::NoApplicationProtocol => {
            "the two sides have no application protocol (ALPN) in common"
        }
        other => return format!("the peer gave the alert {other:?}"),
    };
    text.to_owned()
}
