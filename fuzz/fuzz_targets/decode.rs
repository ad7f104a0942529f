//! See `cubenet_fuzz::decode`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cubenet_fuzz::decode::check(data));
