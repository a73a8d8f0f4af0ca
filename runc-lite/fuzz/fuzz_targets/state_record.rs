//! Fuzzes `state_record`; what it checks is in `runc-lite/src/fuzzing.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| runc_lite::fuzzing::state_record(bytes));
