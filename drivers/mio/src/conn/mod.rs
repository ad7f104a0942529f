//! What every connection has, whatever carries it.

pub(crate) mod home;
pub(crate) mod info;
pub(crate) mod key;
pub(crate) mod permit;
