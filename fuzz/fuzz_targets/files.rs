//! Several files of one policy, of both formats and of packages too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nsctl_fuzz::files(bytes));
