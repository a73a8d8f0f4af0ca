//! Filters, their cache, and no_new_privs: tests 32 and 33 as far as the runtime decides them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::arena::{Canary, arm, armed};
use crate::bundle::{Bundle, ready};

fn forbidding() -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
           "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]})
}

/// A bundle whose filter forbids mkdir, run once so that the cache has its entry.
fn cached() -> (Bundle, PathBuf) {
    let mut bundle = Bundle::new("mkdir /tmp/x");
    bundle.set("/linux/seccomp", forbidding());
    assert!(bundle.run().err.contains("No space left"));
    let cache = bundle.state_root().join(".seccomp-cache");
    let entries: Vec<PathBuf> = fs::read_dir(&cache)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    let entry = entries.into_iter().next().unwrap();
    (bundle, entry)
}

/// Errno 28 in the return values of the filter's program.
const FORBID: [u8; 8] = [6, 0, 0, 0, 28, 0, 5, 0];
const ALLOW: [u8; 8] = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];

/// `bytes` with every "return errno 28" of its program as "return allow".
fn opened(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = (0..bytes.len() - 8)
        .filter(|at| bytes[*at..at + 8] == FORBID)
        .collect();
    assert!(
        !places.is_empty(),
        "the entry does not hold the program as it is loaded"
    );
    for at in places {
        bytes[at..at + 8].copy_from_slice(&ALLOW);
    }
    bytes
}

/// The entry at `path` opened, with the right checksum: whoever may write here can write this.
fn well_formed_but_open(path: &Path) -> Vec<u8> {
    let mut bytes = opened(&fs::read(path).unwrap());
    let content = bytes.len() - 32;
    let checksum = Sha256::digest(&bytes[..content]);
    bytes[content..].copy_from_slice(&checksum);
    bytes
}

/// That such an entry opens the filter where nothing speaks against it, or the tests below test nothing.
#[test]
fn privileged_a_cached_filter_of_the_caller_s_own_is_the_one_loaded() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let (bundle, entry) = cached();
    fs::write(&entry, well_formed_but_open(&entry)).unwrap();
    bundle.run().ok();
    canary.assert_alive();
}

#[test]
fn privileged_a_cached_filter_that_others_could_write_is_not_believed() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for hostile in ["owner", "mode", "second name", "link", "fifo", "damaged"] {
        let (bundle, entry) = cached();
        let open = well_formed_but_open(&entry);
        match hostile {
            "owner" => {
                fs::write(&entry, open).unwrap();
                chown(&entry, Some(1000), Some(1000)).unwrap();
            }
            "mode" => {
                fs::write(&entry, open).unwrap();
                fs::set_permissions(&entry, PermissionsExt::from_mode(0o622)).unwrap();
            }
            "second name" => {
                fs::write(&entry, open).unwrap();
                fs::hard_link(&entry, bundle.dir.path().join("second")).unwrap();
            }
            "link" => {
                let elsewhere = bundle.dir.path().join("elsewhere");
                fs::write(&elsewhere, open).unwrap();
                fs::set_permissions(&elsewhere, PermissionsExt::from_mode(0o600)).unwrap();
                fs::remove_file(&entry).unwrap();
                symlink(&elsewhere, &entry).unwrap();
            }
            "fifo" => {
                fs::remove_file(&entry).unwrap();
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &entry, kind, 0o600.into(), 0).unwrap();
            }
            _ => {
                fs::write(&entry, opened(&fs::read(&entry).unwrap())).unwrap();
            }
        }
        let done = bundle.run();
        assert!(done.err.contains("No space left"), "{hostile}: {done:?}");
    }
    canary.assert_alive();
}

#[test]
fn privileged_a_cache_that_others_could_write_is_not_used() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for hostile in ["owner", "mode", "link"] {
        let (bundle, entry) = cached();
        let directory = entry.parent().unwrap();
        fs::write(&entry, well_formed_but_open(&entry)).unwrap();
        match hostile {
            "owner" => chown(directory, Some(1000), Some(1000)).unwrap(),
            "mode" => fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap(),
            _ => {
                let elsewhere = bundle.dir.path().join("elsewhere");
                fs::rename(directory, &elsewhere).unwrap();
                symlink(&elsewhere, directory).unwrap();
            }
        }
        let done = bundle.run();
        assert!(done.err.contains("No space left"), "{hostile}: {done:?}");
    }
    canary.assert_alive();
}

/// CVE-2023-2431 at the runtime's level: a profile that says nothing is an error, not a container without
/// a filter.
#[test]
fn privileged_cve_2023_2431_an_empty_profile_is_no_profile() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for profile in [
        json!({}),
        json!({"defaultAction": ""}),
        json!({"defaultAction": "SCMP_ACT_NOTHING"}),
        json!({"syscalls": []}),
        json!([]),
        json!("unconfined"),
        json!(""),
    ] {
        let mut bundle = Bundle::new("echo GOT to run");
        bundle.set("/linux/seccomp", profile.clone());
        let done = bundle.run();
        assert_eq!(
            (done.code, done.out.as_str()),
            (1, ""),
            "{profile}: {done:?}"
        );
        bundle.assert_gone();
    }
    canary.assert_alive();
}

/// The calls of CVE-2022-0185, CVE-2022-0492, CVE-2026-31431 and kin, from init and from exec, with and
/// without no_new_privs. That the daemon's default profile names them is tested there.
#[test]
fn privileged_cve_2022_0185_a_filter_holds_for_every_process_from_its_first_instruction() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let names = [
        "unshare",
        "clone3",
        "mount",
        "io_uring_setup",
        "bpf",
        "userfaultfd",
        "keyctl",
        "open_by_handle_at",
        "kexec_load",
        "perf_event_open",
    ];
    // A number no kernel would answer by itself.
    let errno = 99;
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno,
             "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno,
             "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]}]});
    for no_new_privileges in [true, false] {
        let mut bundle = armed(&["calls"]);
        bundle.set("/linux/seccomp", profile.clone());
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        let out = bundle.run().ok();
        assert_eq!(out.matches(&format!("errno {errno}")).count(), 12, "{out}");
        bundle.set("/process/args", json!(["sleep", "1000"]));
        bundle.create().ok();
        bundle.start().ok();
        let out = bundle.exec(&["/attacker", "calls"]).ok();
        assert_eq!(out.matches(&format!("errno {errno}")).count(), 12, "{out}");
        let status = bundle.exec(&["grep", "Seccomp:", "/proc/self/status", "/proc/1/status"]);
        assert_eq!(status.ok().matches("Seccomp:\t2").count(), 2);
        bundle.call(&["delete", "--force", &bundle.id]).ok();
    }
    canary.assert_alive();
}

#[test]
fn privileged_no_new_privs_is_on_before_the_program() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for (no_new_privileges, effective) in [(true, "1000"), (false, "0")] {
        let script = "/attacker-as-root who; grep NoNewPrivs /proc/self/status";
        let mut bundle = Bundle::new(script);
        arm(&bundle);
        // Root by its mode.
        let program = bundle.rootfs().join("attacker-as-root");
        fs::rename(bundle.rootfs().join("attacker"), &program).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
        bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        let expected = format!("{effective}\nNoNewPrivs:\t{}", u8::from(no_new_privileges));
        assert_eq!(bundle.run().ok(), expected);
        bundle.set("/process/args", json!(["sleep", "1000"]));
        bundle.create().ok();
        bundle.start().ok();
        assert_eq!(bundle.exec(&["sh", "-c", script]).ok(), expected);
    }
    canary.assert_alive();
}
