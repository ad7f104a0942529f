//! This machine's addresses that the peers of a socket send to. There are few, and many peers: so each
//! peer has the number of one.

use crate::sys::Source;
use std::sync::OnceLock;

/// Addresses in one piece of the list.
const PIECE: usize = 16;

/// A list that grows while other threads read it, without a lock.
#[derive(Default)]
pub(super) struct Sources {
    known: [OnceLock<Source>; PIECE],
    more: OnceLock<Box<Sources>>,
}

/// The number of an address; or that the system chooses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceNumber(u16);

impl SourceNumber {
    pub(super) const NONE: SourceNumber = SourceNumber(u16::MAX);
}

impl Sources {
    /// The number of an address, which is added if it is new. If there are too many of them, the
    /// system chooses.
    pub(super) fn number(&self, source: Source) -> SourceNumber {
        let (mut list, mut first) = (self, 0);
        loop {
            for (nth, known) in list.known.iter().enumerate() {
                if *known.get_or_init(|| source) == source {
                    let number = u16::try_from(first + nth).unwrap_or(u16::MAX);
                    return SourceNumber(number);
                }
            }
            first += PIECE;
            if first > usize::from(u16::MAX) {
                return SourceNumber::NONE;
            }
            list = list.more.get_or_init(Box::default);
        }
    }

    /// The address of this number.
    pub(super) fn get(&self, SourceNumber(number): SourceNumber) -> Option<Source> {
        if number == u16::MAX {
            return None;
        }
        let (mut list, mut nth) = (self, usize::from(number));
        while nth >= PIECE {
            list = list.more.get()?;
            nth -= PIECE;
        }
        list.known[nth].get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_number() {
        let sources = Sources::default();
        let source = |n: u8| Source {
            ip: [10, 0, 0, n].into(),
            scope: 0,
        };
        let numbers: Vec<_> = (0..60).map(|n| sources.number(source(n))).collect();
        for (n, number) in (0..60).zip(&numbers) {
            assert_eq!(sources.get(*number), Some(source(n)));
            assert_eq!(sources.number(source(n)), *number);
        }
        assert_eq!(sources.get(SourceNumber::NONE), None);
        assert_eq!(sources.get(SourceNumber(500)), None);
    }
}
