//! See `cubenet_fuzz::lifecycle`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cubenet_fuzz::lifecycle::check(data));
