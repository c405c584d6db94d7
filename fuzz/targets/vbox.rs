//! See `guestmnt_fuzz::vbox`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::vbox::run(bytes));
