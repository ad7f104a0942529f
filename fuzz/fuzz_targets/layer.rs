//! See `cubenet_fuzz::layer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cubenet_fuzz::layer::check(data));
