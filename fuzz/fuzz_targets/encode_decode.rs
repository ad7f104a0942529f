//! See `cubenet_fuzz::encode_decode`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cubenet_fuzz::encode_decode::check(data));
