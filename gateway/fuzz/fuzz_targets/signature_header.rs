//! Feeds arbitrary bytes to `hayloft_gateway::s3::fuzzing::signature_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hayloft_gateway::s3::fuzzing::signature_header(bytes));
