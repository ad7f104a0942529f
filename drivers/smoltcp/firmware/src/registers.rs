//! A device's registers.

use core::ptr;

/// Registers of 32 bits from one address on.
#[derive(Clone, Copy)]
pub struct Registers(usize);

impl Registers {
    /// The registers of a device.
    ///
    /// # Safety
    ///
    /// At `base` there is a device, and whatever its registers do does no harm to memory.
    pub const unsafe fn new(base: usize) -> Self {
        Registers(base)
    }

    /// Reads the register at `offset`.
    pub fn read(self, offset: usize) -> u32 {
        // SAFETY: a register of the device that `new` was promised.
        unsafe { ptr::read_volatile((self.0 + offset) as *const u32) }
    }

    /// Writes the register at `offset`.
    pub fn write(self, offset: usize, value: u32) {
        // SAFETY: a register of the device that `new` was promised.
        unsafe { ptr::write_volatile((self.0 + offset) as *mut u32, value) }
    }
}
