//! See `guestmnt_fuzz::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::frames::run(bytes));
