//! See `guestmnt_fuzz::image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::image::run(bytes));
