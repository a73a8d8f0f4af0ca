//! Frames of SPDY, as a client of the streaming server sends them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| axild::fuzzing::spdy_frames(bytes));
