//! See `guestmnt_fuzz::extent`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::extent::run(bytes));
