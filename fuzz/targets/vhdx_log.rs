//! See `guestmnt_fuzz::vhdx_log`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestmnt_fuzz::vhdx_log::run(bytes));
