//! `/dev` of the image and the devices of the host: tests 11, 25, 26 and 27.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use serde_json::json;

use super::arena::{Canary, bind, empower, names, without_mounts};
use crate::bundle::{Bundle, ready};

#[test]
fn privileged_cve_2026_41579_dev_as_a_link() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for target in ["../../../../../../..", "/canary", "CANARY", "/"] {
        let target = target.replace("CANARY", canary.path().to_str().unwrap());
        // Once with a file system for it, once with nodes and links made straight through the link.
        for mounted in [true, false] {
            let mut bundle = Bundle::new("true");
            symlink(&target, bundle.rootfs().join("dev")).unwrap();
            if !mounted {
                without_mounts(&mut bundle, "/dev");
            }
            let done = bundle.create();
            assert_eq!(done.code, 1, "{target}: {done:?}");
            if !mounted {
                assert!(
                    done.err.contains("ordinary directory"),
                    "{target}: {done:?}"
                );
            }
            bundle.assert_gone();
            canary.assert_alive();
        }
    }
}

/// CVE-2026-47766: names below /dev that the image made into links.
#[test]
fn privileged_cve_2026_47766_links_below_dev_lead_to_nothing_of_the_host() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let hostile = canary.path();
    for name in ["pts", "shm", "mqueue", "net"] {
        for target in [
            "/",
            "../../../..",
            hostile.to_str().unwrap(),
            "/proc/self/root",
        ] {
            let mut bundle = Bundle::new("true");
            without_mounts(&mut bundle, "/dev");
            let dev = bundle.rootfs().join("dev");
            fs::create_dir(&dev).unwrap();
            symlink(target, dev.join(name)).unwrap();
            bundle.set(
                "/mounts/-",
                json!({"destination": format!("/dev/{name}/inner"), "type": "tmpfs"}),
            );
            let device =
                json!({"path": format!("/dev/{name}/tun"), "type": "c", "major": 10, "minor": 200});
            bundle.set("/linux/devices", json!([device]));
            // Inside its own root it may do what it likes.
            bundle.create();
            bundle.call(&["delete", "--force", &bundle.id]).ok();
            canary.assert_alive();
        }
    }
}

#[test]
fn privileged_a_device_goes_through_no_link_into_a_volume() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("true");
    without_mounts(&mut bundle, "/dev");
    let volume = bundle.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let dev = bundle.rootfs().join("dev");
    fs::create_dir(&dev).unwrap();
    symlink("/volume", dev.join("net")).unwrap();
    bind(&mut bundle, &volume, "/volume", &[]);
    let device = json!({"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200});
    bundle.set("/linux/devices", json!([device]));
    bundle.create().fails(1, "ordinary directory");
    assert_eq!(names(&volume), Vec::<String>::new());
    canary.assert_alive();
}

/// Without a terminal; the variant with one is in `console`.
#[test]
fn privileged_cve_2026_88264_a_console_link_makes_no_file_on_the_host() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for name in ["console", "ptmx", "fd", "stdin", "stdout", "stderr", "core"] {
        let mut bundle = Bundle::new("true");
        without_mounts(&mut bundle, "/dev");
        let dev = bundle.rootfs().join("dev");
        fs::create_dir(&dev).unwrap();
        symlink(canary.path().join("made"), dev.join(name)).unwrap();
        bundle.run().ok();
        canary.assert_alive();
    }
}

#[test]
fn privileged_cve_2026_88265_a_null_device_that_is_a_link_is_refused() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("true");
    without_mounts(&mut bundle, "/dev");
    let dev = bundle.rootfs().join("dev");
    fs::create_dir(&dev).unwrap();
    fs::create_dir_all(bundle.rootfs().join("mnt")).unwrap();
    bind(&mut bundle, &canary.path(), "/mnt", &[]);
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    for hostile in ["link", "file", "other device"] {
        let null = dev.join("null");
        let _ = fs::remove_file(&null);
        match hostile {
            "link" => symlink("/mnt/file", &null).unwrap(),
            "file" => fs::write(&null, "").unwrap(),
            _ => {
                let zero = rustix::fs::makedev(1, 5);
                let (kind, mode) = (rustix::fs::FileType::CharacterDevice, 0o666.into());
                rustix::fs::mknodat(rustix::fs::CWD, &null, kind, mode, zero).unwrap();
            }
        }
        bundle.write();
        // Streams as pipes, and as one end of a socket pair.
        let mut piped = bundle.command(&["run", &bundle.id]);
        let done = piped
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            error.contains("is not the device it should be"),
            "{hostile}: {error}"
        );
        let (_here, there) = UnixStream::pair().unwrap();
        let there = std::os::fd::OwnedFd::from(there);
        let mut socket = bundle.command(&["run", &bundle.id]);
        let status = socket
            .stdin(there.try_clone().unwrap())
            .stdout(there)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success(), "{hostile}");
        canary.assert_alive();
    }
}

#[test]
fn privileged_cve_2026_88265_host_files_and_devices_keep_their_owner() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("id -u");
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    bundle.create().ok();
    for name in ["out", "err"] {
        let meta = fs::metadata(bundle.dir.path().join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (0, 0));
    }
    bundle.start().ok();
    // Later processes do the same with their streams: here files, a device and a socket.
    let running = Bundle::new("sleep 1000");
    running.create().ok();
    running.start().ok();
    let (here, there) = UnixStream::pair().unwrap();
    let out = fs::File::create(bundle.dir.path().join("exec")).unwrap();
    let mut exec = running.command(&["exec", "--user", "1000:1000", &running.id, "id", "-u"]);
    exec.stdin(std::os::fd::OwnedFd::from(there)).stdout(out);
    assert!(exec.status().unwrap().success());
    assert_eq!(rustix::fs::fstat(&here).unwrap().st_uid, 0);
    let meta = fs::metadata(bundle.dir.path().join("exec")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
    // The host's /dev/null, with its owner, is part of the canary.
    canary.assert_alive();
}

/// GHSA-g54h-m393-cpwq: a list of devices is what is allowed, not what is denied.
#[test]
fn privileged_ghsa_g54h_m393_cpwq_an_unlisted_device_is_out_of_reach() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let block = fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let text = fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = text.trim().split_once(':')?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
    // The kernel log, and a disk of the host where there is one.
    let mut devices = vec![("c", 1, 11), ("c", 1, 1)];
    devices.extend(block.map(|(major, minor)| ("b", major, minor)));
    for rules in [
        json!([]),
        json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]),
        json!([{"allow": true, "type": "c", "major": 1, "minor": 3},
               {"allow": false, "type": "c", "major": 5, "minor": 1}]),
    ] {
        for (kind, major, minor) in &devices {
            let script = format!(
                "/bin/busybox mknod /tmp/own {kind} {major} {minor}; \
                 head -c 1 /tmp/own >/dev/null && echo GOT own; \
                 head -c 1 /dev/given >/dev/null && echo GOT given; true"
            );
            let mut bundle = Bundle::new(&script);
            empower(&mut bundle, &["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
            bundle.set("/linux/resources/devices", rules.clone());
            let given = json!({"path": "/dev/given", "type": kind, "major": major, "minor": minor});
            bundle.set("/linux/devices", json!([given]));
            let done = bundle.run();
            assert!(
                !done.out.contains("GOT"),
                "{kind} {major}:{minor} {rules}: {done:?}"
            );
            assert!(
                done.err.matches("Operation not permitted").count() >= 2,
                "{kind} {major}:{minor} {rules}: {done:?}"
            );
        }
    }
    canary.assert_alive();
}

/// The nodes of a container are its own: what it does to them is not done to the host's.
#[test]
fn privileged_devices_of_a_container_are_not_those_of_the_host() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle =
        Bundle::new("for d in null zero full random urandom tty; do chmod 0 /dev/$d; done");
    empower(
        &mut bundle,
        &["CAP_FOWNER", "CAP_CHOWN", "CAP_DAC_OVERRIDE"],
    );
    bundle.run().ok();
    assert!(
        fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    canary.assert_alive();
}
