//! How much work one connection may cause before the others are served.

use crate::limits::LimitError;
use core::time::Duration;

crate::settings! {
    /// The bounds on the work of one iteration of a driver's loop. They keep one busy connection
    /// from starving the others; what is left over is done in the next iteration. Not every
    /// driver has all of them.
    ///
    /// ```
    /// use cubenet_core::Budgets;
    /// let budgets = Budgets::new().with_messages(100);
    /// assert_eq!(budgets.messages(), 100);
    /// ```
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Budgets;

    /// Connections accepted on one listener. Default 256.
    accepts, with_accepts: usize = 256;

    /// Bytes read from one stream. Default 256 KiB: two reads of 128 KiB.
    read_bytes, with_read_bytes: usize = 1 << 18;

    /// Messages delivered from one stream. Default 4,096: empty frames are two bytes, so a bound
    /// on bytes does not bound callbacks.
    messages, with_messages: usize = 4_096;

    /// Datagrams read from, or sent on, one socket. Default 1,024.
    datagrams, with_datagrams: usize = 1_024;

    /// How long callbacks of one stream, or of one datagram socket, may run. Looked at between
    /// callbacks: one that is running is not interrupted. Default 1 ms.
    time, with_time: Duration = Duration::from_millis(1);
}

impl Budgets {
    /// Whether every budget allows any work at all. Drivers ask before they start.
    pub fn validate(&self) -> Result<(), LimitError> {
        let counts = [
            ("accepts", self.accepts),
            ("read_bytes", self.read_bytes),
            ("messages", self.messages),
            ("datagrams", self.datagrams),
        ];
        for (limit, count) in counts {
            if count == 0 {
                let problem = "it must be at least 1";
                return Err(LimitError { limit, problem });
            }
        }
        // The core counts time in microseconds.
        if self.time < Duration::from_micros(1) {
            let (limit, problem) = ("time", "it must be at least a microsecond");
            return Err(LimitError { limit, problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_that_allows_nothing_is_named() {
        assert_eq!(Budgets::new().validate(), Ok(()));
        let cases = [
            ("accepts", Budgets::new().with_accepts(0)),
            ("read_bytes", Budgets::new().with_read_bytes(0)),
            ("messages", Budgets::new().with_messages(0)),
            ("datagrams", Budgets::new().with_datagrams(0)),
            ("time", Budgets::new().with_time(Duration::from_nanos(999))),
        ];
        for (name, budgets) in cases {
            assert_eq!(budgets.validate().unwrap_err().limit, name);
        }
        let least = Budgets::new().with_time(Duration::from_micros(1));
        assert_eq!(least.validate(), Ok(()));
    }

    #[test]
    fn the_defaults_are_what_is_documented() {
        let budgets = Budgets::default();
        assert_eq!(budgets.accepts(), 256);
        assert_eq!(budgets.read_bytes(), 262_144);
        assert_eq!(budgets.messages(), 4_096);
        assert_eq!(budgets.datagrams(), 1_024);
        assert_eq!(budgets.time(), Duration::from_millis(1));
    }
}
