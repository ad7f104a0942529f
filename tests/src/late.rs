//! A connect whose handler is made by a closure once its outcome is known.

use cubenet_core::{CloseReason, ConnectError, Handle, Handler, Link, Message, TransportError};

/// Asks a closure for the handler once the connect is complete, and hands everything on to it.
pub struct Late<C, F, H> {
    connected: Option<F>,
    connection: C,
    handler: Option<H>,
}

/// What `connect` takes, from a closure that gets how the connect went, and returns the handler;
/// `None` closes the connection.
pub fn late<C, F, H>(connected: F) -> impl FnOnce(&C) -> Late<C, F, H>
where
    C: Handle,
    F: FnOnce(Result<&C, ConnectError>) -> Option<H>,
{
    |connection| Late {
        connected: Some(connected),
        connection: connection.clone(),
        handler: None,
    }
}

impl<C, F, H> Handler for Late<C, F, H>
where
    C: Handle,
    F: FnOnce(Result<&C, ConnectError>) -> Option<H>,
    H: Handler,
{
    fn connected(&mut self, link: &mut dyn Link) {
        if let Some(connected) = self.connected.take() {
            self.handler = connected(Ok(&self.connection));
        }
        if self.handler.is_none() {
            link.close();
        }
    }

    fn connect_failed(&mut self, error: ConnectError) {
        if let Some(connected) = self.connected.take() {
            connected(Err(error));
        }
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if let Some(handler) = &mut self.handler {
            handler.received(link, message);
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        if let Some(handler) = &mut self.handler {
            handler.writable(link);
        }
    }

    fn error(&mut self, link: &mut dyn Link, error: TransportError) {
        if let Some(handler) = &mut self.handler {
            handler.error(link, error);
        }
    }

    fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
        if let Some(handler) = &mut self.handler {
            handler.closed(link, reason);
        }
    }
}
