//! Fuzzes `registry_challenge`; what it checks is in `daemon/src/fuzzing.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| axild::fuzzing::registry_challenge(bytes));
