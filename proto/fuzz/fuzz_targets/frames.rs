//! Feeds arbitrary bytes to `hayloft_proto::fuzzing::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hayloft_proto::fuzzing::frames(bytes));
