//! The Ethernet controllers.

#[cfg(feature = "mps2-an385")]
pub mod lan9118;
#[cfg(feature = "lm3s6965evb")]
pub mod stellaris;

use smoltcp::phy::RxToken;

/// The longest frame, without its check sequence.
pub const MAX_FRAME: usize = 1514;

/// A frame that arrived.
pub struct Received<'a>(pub(crate) &'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Takes the word at `at` out of `bytes`, which may end inside it.
fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    for (byte, of) in word.iter_mut().zip(&bytes[at..]) {
        *byte = *of;
    }
    u32::from_le_bytes(word)
}
