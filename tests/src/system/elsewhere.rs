//! There are network namespaces on Linux only.

use super::Device;
use crate::harness::Harness;

/// Whether this process may make namespaces and taps: says that there are none.
pub fn have_taps() -> bool {
    super::skipped("smoltcp against the kernel: there are no network namespaces but on Linux");
    false
}

/// A device and a kernel in one namespace.
///
/// # Panics
///
/// Always; see [`have_taps`].
pub fn device_and_kernel(_device: Device) -> Box<dyn Harness> {
    unreachable!("there are no taps")
}
