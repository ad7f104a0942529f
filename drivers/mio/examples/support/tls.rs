//! TLS and the PROXY protocol, as the command line asks for them.

use super::system::End;
use cubenet_mio::{ConnectOptions, ListenOptions, MakeLayer, Prefix, Report, Transport};
use cubenet_proxy::AcceptProxy;
use cubenet_tls::{
    CertificateFiles, Client, Error, Server, client_config, client_config_with_ca,
    client_config_with_certificate,
};
use std::path::PathBuf;

/// What a server offers over TCP.
#[derive(clap::Args)]
pub struct ServerOptions {
    /// The certificate chain of the server (PEM): TCP connections have TLS. The files are read again
    /// on SIGHUP.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Clients must show a certificate of an authority in this file (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// TCP connections come by way of a proxy with an address of this prefix, such as 10.0.0.0/8, and
    /// begin with a header of the PROXY protocol. Can be given several times.
    #[arg(long, value_name = "PREFIX")]
    proxy_protocol: Vec<Prefix>,
}

/// The same, with the files read.
#[derive(Clone)]
pub struct Offered {
    files: Option<CertificateFiles>,
    proxies: Option<AcceptProxy>,
}

impl ServerOptions {
    /// Whether there is to be TLS, or a proxy.
    pub fn is_asked(&self) -> bool {
        self.tls_cert.is_some() || !self.proxy_protocol.is_empty()
    }

    /// Reads the files. `alpn`: the protocols that the server speaks; if there are any, a client that
    /// asks for others only is refused.
    pub fn load(&self, alpn: &'static [&str]) -> Result<Offered, Error> {
        let files = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let mut files = CertificateFiles::builder(certificate, key).change(move |config| {
                    config.alpn_protocols = alpn.iter().map(|name| (*name).into()).collect();
                });
                if let Some(path) = &self.tls_client_ca {
                    files = files.client_ca(path);
                }
                Some(files.load()?)
            }
            _ => None,
        };
        let proxies = self.proxy_protocol.iter().copied();
        let proxies = (proxies.len() > 0).then(|| AcceptProxy::new(proxies));
        Ok(Offered { files, proxies })
    }
}

impl Offered {
    /// The options of a listener, with the layers that it is to have.
    pub fn layers(&self, options: ListenOptions, transport: Transport) -> ListenOptions {
        if transport != Transport::Tcp {
            return options;
        }
        let tls = self.files.clone().map(Server::with_source);
        match (self.proxies.clone(), tls) {
            (Some(proxies), Some(tls)) => options.layer(proxies.then(tls)),
            (Some(proxies), None) => options.layer(proxies),
            (None, Some(tls)) => options.layer(tls),
            (None, None) => options,
        }
    }

    /// From now on SIGHUP has the files read again.
    pub fn reload_on_hangup(&self, end: &End) {
        if let Some(files) = self.files.clone() {
            end.on_hangup(move || match files.reload() {
                Ok(()) => complain!("the certificate was read again"),
                Err(error) => {
                    complain!("{}; the one before stays", Report::new(&error));
                }
            });
        }
    }
}

/// What a client asks for over TCP.
#[derive(clap::Args)]
pub struct ClientOptions {
    /// The name of the server, which its certificate must have: TCP connections have TLS.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// The authorities to trust (PEM); by default those of the system.
    #[arg(long, value_name = "FILE", requires = "server_name")]
    tls_ca: Option<PathBuf>,
    /// The certificate chain to show to a server that asks for one (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl ClientOptions {
    /// Whether there is to be TLS.
    pub fn have_tls(&self) -> bool {
        self.server_name.is_some()
    }

    /// The options of a connect.
    pub fn load(&self) -> Result<ConnectOptions, Error> {
        let Some(name) = &self.server_name else {
            return Ok(ConnectOptions::new());
        };
        let config = match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (Some(ca), Some(certificate), Some(key)) => {
                client_config_with_certificate(ca, certificate, key)?
            }
            (Some(ca), ..) => client_config_with_ca(ca)?,
            _ => client_config()?,
        };
        Ok(ConnectOptions::new().layer(Client::new(config, name)?))
    }
}

/// Both sides of TLS with a certificate that is made now, for this process alone.
pub fn of_our_own() -> Result<(Server, Client), Box<dyn std::error::Error>> {
    let name = "localhost";
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed([name.to_owned()])?;
    // A folder that no other user can read.
    let folder = tempfile::tempdir()?;
    let [certificate, key] = ["cert.pem", "key.pem"].map(|file| folder.path().join(file));
    std::fs::write(&certificate, cert.pem())?;
    std::fs::write(&key, signing_key.serialize_pem())?;
    let files = CertificateFiles::load(&certificate, key);
    let config = client_config_with_ca(&certificate);
    let client = Client::new(config?, name)?;
    Ok((Server::with_source(files?), client))
}
