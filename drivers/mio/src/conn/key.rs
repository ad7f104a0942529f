//! How a worker finds a connection.

/// Where a worker finds a connection: under its token or, if it carries datagrams, under that of
/// its socket and in a slot there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnKey {
    pub(crate) token: u32,
    pub(crate) slot: u32,
}
