//! The server side.

use crate::error::layer_error;
use crate::layer::Tls;
use cubenet_core::{Ends, Identity, Instant, Layer, LayerError, LayerState, MakeLayer};
use rustls::ServerConfig;
use rustls::server::{Acceptor, UnbufferedServerConnection};
use std::fmt;
use std::sync::Arc;

/// What a client asks for, before it is answered.
#[derive(Debug)]
#[non_exhaustive]
pub struct ClientHello<'h> {
    server_name: Option<&'h str>,
    alpn: Vec<&'h [u8]>,
}

impl<'h> ClientHello<'h> {
    /// The name of the server (SNI), if the client says one.
    pub fn server_name(&self) -> Option<&'h str> {
        self.server_name
    }

    /// The application protocols that the client speaks (ALPN), those that it prefers first.
    pub fn alpn(&self) -> &[&'h [u8]] {
        &self.alpn
    }
}

/// Says which configuration a connection gets. Called on the driver's threads, so it must not block,
/// and with a lock of that connection held, of which the application has no handle yet.
pub trait ConfigSource: Send + Sync {
    /// The configuration for a client that asks for this; `None` refuses it, with the alert
    /// `unrecognized_name`.
    fn config(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>>;
}

impl<F: Fn(&ClientHello<'_>) -> Option<Arc<ServerConfig>> + Send + Sync> ConfigSource for F {
    fn config(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        self(hello)
    }
}

/// TLS for a listener, to be given to `ListenOptions::layer`.
#[derive(Clone)]
pub struct Server(Arc<dyn ConfigSource>);

impl Server {
    /// The same configuration for all connections.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Server::with_source(move |_: &ClientHello<'_>| Some(Arc::clone(&config)))
    }

    /// A configuration for each connection, from a source.
    pub fn with_source(source: impl ConfigSource + 'static) -> Self {
        Server(Arc::new(source))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl MakeLayer for Server {
    fn make_layer(&self, _ends: Ends) -> Box<dyn Layer> {
        Box::new(ServerLayer {
            stage: Stage::Hello(Box::new(Hello {
                source: Arc::clone(&self.0),
                acceptor: Acceptor::default(),
                arrived: Vec::new(),
            })),
            server_name: None,
        })
    }
}

struct ServerLayer {
    stage: Stage,
    server_name: Option<Box<str>>,
}

enum Stage {
    /// The client has not said all of what it asks for.
    Hello(Box<Hello>),
    Tls(Box<Tls<UnbufferedServerConnection>>),
    Failed(LayerError),
}

/// What has arrived of a `ClientHello`.
struct Hello {
    source: Arc<dyn ConfigSource>,
    acceptor: Acceptor,
    /// Everything, for the connection that is to come.
    arrived: Vec<u8>,
}

/// A client has said what it asks for, and has got its configuration.
struct Asked {
    side: UnbufferedServerConnection,
    server_name: Option<Box<str>>,
}

/// The alert `unrecognized_name`, fatal, in a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// The alert `internal_error`, the same way.
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

impl Hello {
    /// Bytes have arrived. Returns the connection, and the name that the client asks for, once it has
    /// said everything.
    fn handle_input(
        &mut self,
        input: &[u8],
        wire: &mut Vec<u8>,
    ) -> Result<Option<Asked>, LayerError> {
        self.arrived.extend_from_slice(input);
        let mut rest = input;
        loop {
            let read = self.acceptor.read_tls(&mut rest);
            let read = read.map_err(|error| LayerError::new(error.to_string()))?;
            let accepted = self.acceptor.accept().map_err(|(error, mut alert)| {
                // Into memory, which takes everything.
                let _ = alert.write_all(wire);
                layer_error(&error)
            })?;
            if let Some(accepted) = accepted {
                let hello = accepted.client_hello();
                let server_name = hello.server_name();
                let alpn = hello.alpn().map_or_else(Vec::new, Iterator::collect);
                let asked = ClientHello { server_name, alpn };
                let Some(config) = self.source.config(&asked) else {
                    wire.extend(UNRECOGNIZED_NAME);
                    let name = server_name.unwrap_or("without a name");
                    let problem = format!("the server that the peer asks for is refused: {name}");
                    return Err(LayerError::new(problem));
                };
                let side = UnbufferedServerConnection::new(config).map_err(|error| {
                    wire.extend(INTERNAL_ERROR);
                    layer_error(&error)
                })?;
                return Ok(Some(Asked {
                    side,
                    server_name: server_name.map(Into::into),
                }));
            }
            if read == 0 || rest.is_empty() {
                return Ok(None);
            }
        }
    }
}

impl Layer for ServerLayer {
    fn begin(&mut self, _now: Instant, _wire: &mut Vec<u8>) {}

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>) {
        match &mut self.stage {
            Stage::Tls(tls) => tls.handle_input(input, stream, wire),
            Stage::Failed(_) => {}
            Stage::Hello(hello) => match hello.handle_input(input, wire) {
                Ok(None) => {}
                Ok(Some(Asked { side, server_name })) => {
                    let mut arrived = std::mem::take(&mut hello.arrived);
                    let mut tls = Box::new(Tls::new(side));
                    tls.handle_input(&mut arrived, stream, wire);
                    self.server_name = server_name;
                    self.stage = Stage::Tls(tls);
                }
                Err(error) => self.stage = Stage::Failed(error),
            },
        }
    }

    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        if let Stage::Tls(tls) = &mut self.stage {
            tls.handle_output(stream, wire);
        }
    }

    fn handle_close(&mut self, wire: &mut Vec<u8>) {
        if let Stage::Tls(tls) = &mut self.stage {
            tls.handle_close(wire);
        }
    }

    fn is_established(&self) -> bool {
        matches!(&self.stage, Stage::Tls(tls) if tls.is_established())
    }

    fn state(&self) -> LayerState<'_> {
        match &self.stage {
            Stage::Hello(_) => LayerState::Handshaking,
            Stage::Tls(tls) => tls.state(),
            Stage::Failed(error) => LayerState::Failed(error),
        }
    }

    fn held(&self) -> usize {
        match &self.stage {
            Stage::Hello(hello) => hello.arrived.capacity(),
            Stage::Tls(tls) => tls.held(),
            Stage::Failed(_) => 0,
        }
    }

    fn identify(&self, identity: &mut Identity) {
        identity.set_server_name(self.server_name.as_deref().map(str::to_owned));
        if let Stage::Tls(tls) = &self.stage {
            tls.identify(identity);
        }
    }
}
