//! Fuzzes `whiteout_names`; what it checks is in `snapshotter/src/fuzzing.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| axil_snapshotter::fuzzing::whiteout_names(bytes));
