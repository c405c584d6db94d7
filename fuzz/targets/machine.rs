//! See `guestmnt_fuzz::machine`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::machine::run(bytes));
