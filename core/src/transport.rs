//! What carries a connection.

use core::fmt;

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// A stream of frames; messages arrive whole, in order, once.
    Tcp,
    /// Datagrams; each arrives whole or not at all, perhaps twice, in any order.
    Udp,
}

impl Transport {
    /// Whether messages arrive whole, in order and once, as long as the connection lives.
    pub const fn is_reliable(self) -> bool {
        match self {
            Transport::Tcp => true,
            Transport::Udp => false,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_stream_is_reliable_and_a_datagram_is_not() {
        assert!(Transport::Tcp.is_reliable() && !Transport::Udp.is_reliable());
    }

    #[test]
    fn it_is_written_as_in_an_address() {
        let written = [Transport::Tcp, Transport::Udp].map(|transport| transport.to_string());
        assert_eq!(written, ["tcp", "udp"]);
    }
}
