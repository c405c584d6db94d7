//! See `guestmnt_fuzz::wof`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::wof::run(bytes));
