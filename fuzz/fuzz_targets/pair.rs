//! See `cubenet_fuzz::pair`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cubenet_fuzz::pair::check(data));
