//! One policy in TOML.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nsctl_fuzz::toml(bytes));
