//! One policy in JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nsctl_fuzz::json(bytes));
