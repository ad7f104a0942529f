//! See `cubenet_fuzz::demux`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cubenet_fuzz::demux::check(data));
