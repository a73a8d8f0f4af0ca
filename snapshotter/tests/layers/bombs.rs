//! What layers that are made to cost take of memory: of the unpack process, and of the process that wants it.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use axil_snapshotter::{Compression, Digest, ErrorClass, Limits};

use crate::archive::{Archive, Head};
use crate::world::{Layer, World, can_run};

/// Most resident memory either process may ever have, in KiB.
const MOST: u64 = 128 << 10;

/// The most memory a process ever had, from `/proc/<pid>/status`; 0 when it is gone.
fn peak_kib(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// Unpack processes of this one.
fn workers() -> Vec<String> {
    let own = std::process::id().to_string();
    let is_worker = |pid: &String| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        command == b"axil-unpack\0" && status.contains(&format!("PPid:\t{own}\n"))
    };
    let names = fs::read_dir("/proc").unwrap();
    names
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .filter(is_worker)
        .collect()
}

/// Runs `work` and returns the peak of the unpack process, looked at all the while.
pub(crate) fn watching<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let peak = AtomicU64::new(0);
    let is_done = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                for pid in workers() {
                    peak.fetch_max(peak_kib(&pid), Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_done.store(true, Ordering::Relaxed);
        outcome
    });
    let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    (outcome, peak.into_inner())
}

/// A layer with the largest window there may be and more names than may be remembered.
#[test]
fn privileged_cve_2017_14992_windows_and_names_together_stay_below_128_mib() {
    if !can_run() {
        return;
    }
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..40 << 20)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect();
    let mut archive = Archive::new().file("noise", &noise);
    drop(noise);
    let long = vec!["n".repeat(250); 15].join("/");
    for number in 0..20_000 {
        let link = format!("l{number}");
        archive = archive.pax(&[("linkpath", long.as_bytes())]).node(Head {
            link: b"t".to_vec(),
            ..Head::new(&link, b'1')
        });
    }
    let archive = archive.finish();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(25).unwrap();
    encoder.write_all(&archive).unwrap();
    let blob = encoder.finish().unwrap();
    let mut layer = Layer::compressed(None, b"", Compression::Zstd);
    layer.request.blob = Digest::sha256_of(&blob);
    layer.request.size = blob.len() as u64;
    layer.request.diff_id = Digest::sha256_of(&archive);
    layer.request.chain = axil_snapshotter::ChainId::first(&layer.request.diff_id);
    drop(archive);
    layer.blob = blob;
    assert_eq!(layer.request.limits, Limits::default());
    let world = World::new();
    let before = peak_kib("self");
    let (staged, peak) = watching(|| world.stage(&layer));
    let error = staged.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Exhausted, "{error:?}");
    println!(
        "unpack process {peak} KiB, this one {} KiB more",
        peak_kib("self") - before
    );
    assert!(peak > 32 << 10, "{peak} KiB: the window was not used");
    assert!(peak < MOST, "{peak} KiB");
    assert!(peak_kib("self") - before < 16 << 10);
    world.assert_empty();
}
