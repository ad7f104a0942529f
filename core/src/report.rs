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
/// let what = "cannot connect to tcp 127.0.0.1:7000: no socket listens at the peer's address";
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[derive(Debug)]
    struct Layer(&'static str, Option<&'static Layer>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self.1?)
        }
    }

    #[test]
    fn a_report_has_the_error_and_every_cause() {
        const CAUSE: Layer = Layer("the socket failed", Some(&Layer("os error 5", None)));
        let error = Layer("cannot send", Some(&CAUSE));
        let report = Report::new(&error).to_string();
        assert_eq!(report, "cannot send: the socket failed: os error 5");
    }
}
