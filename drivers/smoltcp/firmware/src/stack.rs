//! How deep the stack has been: what `cortex-m-rt` painted before `main` and is still painted
//! was never used.

use core::ptr;

unsafe extern "C" {
    static _stack_end: u32;
    static _stack_start: u32;
}

/// What an unused word holds.
const PAINT: u32 = 0xcccc_cccc;

/// The most bytes of stack that were in use at once.
pub fn deepest() -> usize {
    let (end, start) = (&raw const _stack_end, &raw const _stack_start);
    let mut at = end;
    // SAFETY: the linker reserved all words between the two for the stack.
    while at < start && unsafe { ptr::read_volatile(at) } == PAINT {
        at = at.wrapping_add(1);
    }
    start as usize - at as usize
}
