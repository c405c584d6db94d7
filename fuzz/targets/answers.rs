//! See `guestmnt_fuzz::answers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::answers::run(bytes));
