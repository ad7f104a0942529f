//! What the program was started with, which QEMU tells by semihosting.

use core::str::FromStr;
use cortex_m_semihosting::{nr, syscall1};

/// The words of the command line, the program's name first.
pub struct Arguments {
    line: heapless::String<128>,
}

impl Arguments {
    /// Asks for them.
    pub fn ask() -> Self {
        let mut buffer = [0_u8; 128];
        let mut block = [buffer.as_mut_ptr() as usize, buffer.len()];
        // SAFETY: the block tells where the buffer is and how long; both live until after the
        // call, which fills the buffer and puts the length of the line beside it.
        let failed = unsafe { syscall1(nr::GET_CMDLINE, block.as_mut_ptr() as usize) } != 0;
        let len = if failed {
            0
        } else {
            block[1].min(buffer.len())
        };
        let mut line = heapless::String::new();
        for byte in &buffer[..len] {
            let _ = line.push(char::from(*byte));
        }
        Arguments { line }
    }

    /// The `nth` word; panics, which ends the program, if it is not as it has to be.
    pub fn get<T: FromStr>(&self, nth: usize, what: &str) -> T {
        let mut words = self.line.split_ascii_whitespace();
        let word = words.nth(nth).and_then(|word| word.parse().ok());
        word.unwrap_or_else(|| panic!("argument {nth} has to be {what}: {}", self.line))
    }
}
