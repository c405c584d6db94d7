//! See `guestmnt_fuzz::requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::requests::run(bytes));
