//! Fuzzes `unpack_report`; what it checks is in `snapshotter/src/fuzzing.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| axil_snapshotter::fuzzing::unpack_report(bytes));
