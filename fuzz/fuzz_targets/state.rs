//! What is recorded in the state directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nsctl_fuzz::state(bytes));
