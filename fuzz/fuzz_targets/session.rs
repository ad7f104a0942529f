//! See `cubenet_fuzz::session`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cubenet_fuzz::session::check(data));
