//! See `guestmnt_fuzz::descriptor`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::descriptor::run(bytes));
