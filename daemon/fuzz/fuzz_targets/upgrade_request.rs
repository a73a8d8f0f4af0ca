//! Requests to the streaming server, up to their upgrade.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| axild::fuzzing::upgrade_request(bytes));
