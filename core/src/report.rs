//! An error with its causes.

use core::error::Error;
use core::fmt;

/// An error and all its causes in one line, to be shown to people.
///
/// What an error of this library says about itself does not repeat its
/// [`source`](core::error::Error::source). This says both:
///
/// ```
/// use cubenet_core::{CloseReason, ConnectError, ConnectionId, Report, Transport};
///
/// let (id, peer) = (ConnectionId::from_u64(1), ([127, 0, 0, 1], 7000).into());
/// let error = ConnectError::new(id, Transport::Tcp, peer, CloseReason::Refused);
/// # #[cfg(feature = "alloc")] {
/// let error = error.with_source("os error 111");
/// let what = "cannot connect to tcp 127.0.0.1:7000: no socket listens there";
/// assert_eq!(error.to_string(), what);
/// assert_eq!(Report::new(&error).to_string(), format!("{what}: os error 111"));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Report<'a>(&'a dyn Error);

impl<'a> Report<'a> {
    /// A report on this error.
    pub const fn new(error: &'a dyn Error) -> Self {
        Report(error)
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
