//! The client side.

use crate::error::{Error, layer_error};
use crate::files;
use crate::layer::Tls;
use crate::provider::provider;
use cubenet_core::{Ends, Identity, Instant, Layer, LayerError, LayerState, MakeLayer};
use rustls::client::{UnbufferedClientConnection, WantsClientCert};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ConfigBuilder};
use std::path::Path;
use std::sync::Arc;

/// TLS for connects, to be given to `ConnectOptions::layer`.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    /// Connects with this configuration to the server of this name, or IP address. The certificate
    /// that it shows must be for that.
    pub fn new(config: Arc<ClientConfig>, server_name: &str) -> Result<Self, Error> {
        let name = ServerName::try_from(server_name.to_owned()).map_err(|_| Error::ServerName {
            given: server_name.to_owned(),
        })?;
        Ok(Client { config, name })
    }
}

impl MakeLayer for Client {
    fn make_layer(&self, _ends: Ends) -> Box<dyn Layer> {
        let config = Arc::clone(&self.config);
        match UnbufferedClientConnection::new(config, self.name.clone()) {
            Ok(side) => Box::new(ClientLayer(Tls::new(side))),
            Err(error) => Box::new(Failed(layer_error(&error))),
        }
    }
}

struct ClientLayer(Tls<UnbufferedClientConnection>);

impl Layer for ClientLayer {
    fn begin(&mut self, _now: Instant, wire: &mut Vec<u8>) {
        self.0.begin(wire);
    }

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>) {
        self.0.handle_input(input, stream, wire);
    }

    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        self.0.handle_output(stream, wire);
    }

    fn handle_close(&mut self, wire: &mut Vec<u8>) {
        self.0.handle_close(wire);
    }

    fn is_established(&self) -> bool {
        self.0.is_established()
    }

    fn state(&self) -> LayerState<'_> {
        self.0.state()
    }

    fn held(&self) -> usize {
        self.0.held()
    }

    fn identify(&self, identity: &mut Identity) {
        self.0.identify(identity);
    }
}

/// A layer that could not even begin.
struct Failed(LayerError);

impl Layer for Failed {
    fn begin(&mut self, _now: Instant, _wire: &mut Vec<u8>) {}

    fn handle_input(&mut self, _input: &mut [u8], _stream: &mut Vec<u8>, _wire: &mut Vec<u8>) {}

    fn handle_output(&mut self, _stream: &[&[u8]], _wire: &mut Vec<u8>) {}

    fn handle_close(&mut self, _wire: &mut Vec<u8>) {}

    fn is_established(&self) -> bool {
        false
    }

    fn state(&self) -> LayerState<'_> {
        LayerState::Failed(&self.0)
    }
}

/// A configuration that trusts the authorities that the platform trusts, and shows no certificate.
#[cfg(feature = "platform")]
pub fn client_config() -> Result<Arc<ClientConfig>, Error> {
    use rustls_platform_verifier::BuilderVerifierExt;
    let config = ClientConfig::builder_with_provider(provider()?)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A configuration that trusts the authorities in a file (PEM), and shows no certificate.
pub fn client_config_with_ca(path: impl AsRef<Path>) -> Result<Arc<ClientConfig>, Error> {
    Ok(Arc::new(trusting(path.as_ref())?.with_no_client_auth()))
}

/// A configuration that trusts the authorities in the file `ca`, and shows the certificate in these
/// files (PEM) to a server that asks for one.
pub fn client_config_with_certificate(
    ca: impl AsRef<Path>,
    certificate: impl AsRef<Path>,
    key: impl AsRef<Path>,
) -> Result<Arc<ClientConfig>, Error> {
    let (chain, key) = files::identity(certificate.as_ref(), key.as_ref())?;
    let config = trusting(ca.as_ref())?.with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

fn trusting(ca: &Path) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    Ok(ClientConfig::builder_with_provider(provider()?)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(files::roots(ca)?))
}
