//! A small web server, for what looks at a node from outside: health checks, Prometheus, a browser.
//!
//! It has a thread of its own and shares nothing with the network.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode, header};
use axum::{Router, routing};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

/// What is asked for.
pub struct Asked<'a> {
    pub path: &'a str,
    /// The types of content that the client takes.
    pub accept: &'a str,
}

/// An answer: its status, the type of its content, and that.
pub struct Page {
    pub status: u16,
    pub kind: &'static str,
    pub body: String,
}

impl Page {
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        let kind = "text/plain; charset=utf-8";
        let body = body.into();
        Page { status, kind, body }
    }
}

/// Serves pages on this address until the process ends. Returns the address, with the port
/// that the system chose if it was to.
pub fn serve(
    address: SocketAddr,
    page: impl Fn(&Asked<'_>) -> Option<Page> + Send + Sync + 'static,
) -> io::Result<SocketAddr> {
    let in_use = |error| {
        let problem = format!("cannot show metrics at {address}: {error}");
        io::Error::new(io::Error::kind(&error), problem)
    };
    let listener = bind(address).map_err(in_use)?;
    listener.set_nonblocking(true)?;
    let local = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let page = Arc::new(page);
    let app = Router::new().fallback(routing::get(move |request: Request| {
        let accept = request.headers().get(header::ACCEPT);
        let accept = accept.and_then(|accept| accept.to_str().ok());
        let page = page(&Asked {
            path: request.uri().path(),
            accept: accept.unwrap_or_default(),
        });
        async { respond(page) }
    }));
    let serve = move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, app).await
        })
    };
    let thread = thread::Builder::new().name("web".to_owned());
    thread.spawn(serve).map(|_| local)
}

/// Binds the address beside a process that has it, if this one is to replace that.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    #[cfg(unix)]
    {
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(64)?;
    Ok(socket.into())
}

fn respond(page: Option<Page>) -> Response<Body> {
    let page = page.unwrap_or_else(|| Page::text(404, "there is no such page\n"));
    let mut response = Response::new(Body::from(page.body));
    *response.status_mut() = StatusCode::from_u16(page.status).unwrap_or(StatusCode::OK);
    let kind = header::HeaderValue::from_static(page.kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
