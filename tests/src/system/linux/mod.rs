//! Network namespaces, where the kernel's network stack meets a device.

mod kernel;
mod namespace;
pub mod tap;

pub use namespace::{in_namespace, ip, tc};
pub use tap::have_taps;

use super::Device;
use crate::harness::Harness;

/// A device and a kernel in one namespace. It takes the thread that makes it into the namespace
/// for good.
pub fn device_and_kernel(device: Device) -> Box<dyn Harness> {
    Box::new(kernel::Harness::new(device))
}
