//! What a demultiplexer knows a peer by: its address, or a hash of that.

use core::hash::{Hash, Hasher};
use core::num::NonZeroU32;
use siphasher::sip::SipHasher13;

/// What peers are known by. Any address that can be hashed is one; a [`Fingerprint`] is one, too.
pub trait Key: Copy + Eq {
    /// A hash that cannot be foreseen without `key`.
    fn hash(&self, key: (u64, u64)) -> u64;
}

impl<P: Copy + Eq + Hash> Key for P {
    #[inline]
    fn hash(&self, key: (u64, u64)) -> u64 {
        sip(self, key)
    }
}

/// The hash of an address, in the place of the address. For a driver that has the addresses elsewhere:
/// a slot takes eight bytes for it.
///
/// Two addresses have the same one once in 2⁶⁴ pairs, and such a pair cannot be found without the key.
/// Even so the driver compares the address of the connection that a datagram is said to be for, and
/// drops the datagram if it is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    low: NonZeroU32,
    high: u32,
}

impl Fingerprint {
    /// That of `address`. `key` must be unknown to peers: draw it at random.
    #[inline]
    pub fn of(address: &impl Hash, key: (u64, u64)) -> Self {
        let hash = sip(address, key);
        Fingerprint {
            low: NonZeroU32::new(hash as u32).unwrap_or(NonZeroU32::MIN),
            high: (hash >> 32) as u32,
        }
    }
}

impl Key for Fingerprint {
    /// It is a hash.
    #[inline]
    fn hash(&self, _key: (u64, u64)) -> u64 {
        u64::from(self.low.get()) << 32 | u64::from(self.high)
    }
}

#[inline]
fn sip(value: &impl Hash, (low, high): (u64, u64)) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(low, high);
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_hash_of_an_address_under_a_key() {
        let of = |address: u32, key| Fingerprint::of(&address, key);
        assert_eq!(of(7, (1, 2)), of(7, (1, 2)));
        assert_ne!(of(7, (1, 2)), of(8, (1, 2)));
        assert_ne!(of(7, (1, 2)), of(7, (1, 3)));
        assert_eq!(size_of::<Option<Fingerprint>>(), 8);
    }
}
