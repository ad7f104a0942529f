//! See `cubenet_fuzz::traffic`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cubenet_fuzz::traffic::check(data));
