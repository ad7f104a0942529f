//! Prints what a connection takes on this board, beside its socket and its rings.

#![no_std]
#![no_main]

use core::mem::size_of;
use cortex_m_rt::entry;
use cubenet_firmware::{board, exit, println};
use cubenet_smoltcp::{Handler, Link, Message, PortMemory, Stream};

/// A handler that keeps nothing.
struct Nothing;

impl Handler for Nothing {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

#[entry]
fn main() -> ! {
    board::start();
    println!("stream {}", size_of::<Stream<Nothing>>());
    // Over many, so that what is rounded up does not count.
    const MORE: usize = 16;
    let (one, many) = (
        size_of::<PortMemory<Nothing, 1, 0>>(),
        size_of::<PortMemory<Nothing, { 1 + MORE }, 0>>(),
    );
    println!("peer {}", (many - one) / MORE);
    exit::success()
}
