//! Hostile images and neighbours. The names carry the advisories the tests stand for.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;

use serde_json::json;

use super::bundle::{Bundle, eventually, ready};

/// A host directory an image tries to reach; unchanged at the end.
fn canary(bundle: &Bundle) -> std::path::PathBuf {
    let path = bundle.dir.path().join("canary");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("file"), "alive").unwrap();
    path
}

#[track_caller]
fn assert_untouched(canary: &std::path::Path) {
    let names: Vec<_> = std::fs::read_dir(canary)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["file"]);
    assert_eq!(
        std::fs::read_to_string(canary.join("file")).unwrap(),
        "alive"
    );
}

/// Opens the host's root and hands it to the runtime without close-on-exec, as a careless caller would.
fn leak_host_directories() -> Vec<std::fs::File> {
    (0..20)
        .map(|_| {
            let file = std::fs::File::open("/").unwrap();
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
            file
        })
        .collect()
}

#[test]
fn privileged_cve_2024_21626_leaked_descriptors_and_working_directory() {
    if !ready() {
        return;
    }
    let leaked = leak_host_directories();
    let highest = leaked.iter().map(AsRawFd::as_raw_fd).max().unwrap() + 4;
    let running = Bundle::new("ls -l /proc/self/fd; sleep 1000");
    running.create().ok();
    running.start().ok();
    eventually("output", || running.output().lines().count() >= 5);
    // Three streams, and the directory that ls reads.
    assert_eq!(running.output().lines().count(), 5, "{}", running.output());
    for fd in 3..highest {
        for cwd in [
            format!("/proc/self/fd/{fd}"),
            format!("/proc/self/fd/{fd}/../.."),
        ] {
            let mut bundle = Bundle::new("pwd; ls /");
            bundle.set("/process/cwd", json!(cwd));
            bundle.create().fails(1, "/proc/self/fd");
            bundle.assert_gone();
            running
                .call(&["exec", "--cwd", &cwd, &running.id, "true"])
                .fails(255, "/proc/self/fd");
        }
    }
    symlink("/proc/self/fd/7", running.rootfs().join("link")).unwrap();
    running
        .call(&["exec", "--cwd", "/link", &running.id, "true"])
        .fails(255, "/link");
    drop(leaked);
}

#[test]
fn privileged_a_created_container_holds_only_what_it_needs() {
    if !ready() {
        return;
    }
    let leaked = leak_host_directories();
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    let mut targets: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", bundle.pid()))
        .unwrap()
        .map(|e| {
            std::fs::read_link(e.unwrap().path())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    targets.sort();
    // Standard streams, and the socket start connects to.
    assert_eq!(targets.len(), 4, "{targets:?}");
    assert_eq!(
        targets.iter().filter(|t| t.starts_with("socket:")).count(),
        1,
        "{targets:?}"
    );
    assert!(targets.contains(&"/dev/null".to_owned()));
    drop(leaked);
}

#[test]
fn privileged_preserved_descriptors_arrive() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("cat <&3");
    std::fs::write(bundle.dir.path().join("three"), "third").unwrap();
    bundle.write();
    let command = format!(
        "exec 3<three; exec '{}' --root state run --preserve-fds 1 {}",
        super::bundle::runtime().display(),
        bundle.id
    );
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &command])
        .current_dir(bundle.dir.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "third",
        "{output:?}"
    );
}

#[test]
fn privileged_cve_2019_5736_the_runtime_cannot_be_overwritten() {
    if !ready() {
        return;
    }
    let before = std::fs::read(super::bundle::runtime()).unwrap();
    let bundle = Bundle::new("sleep 1000");
    // The first create finds no directory for the overlay and runs from a copy, the second from the overlay.
    for kind in ["memfd:", "/runc-lite"] {
        bundle.create().ok();
        // Held across the process's end, as the attack does: then nothing executes the file any more.
        let exe = std::fs::File::open(format!("/proc/{}/exe", bundle.pid())).unwrap();
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        let again = format!("/proc/self/fd/{}", exe.as_raw_fd());
        let link = std::fs::read_link(&again).unwrap();
        assert!(link.to_str().unwrap().contains(kind), "{link:?}");
        assert!(before == std::fs::read(&again).unwrap());
        // Refused or not, it must change nothing.
        let _ = runc_lite::sys::mount_setattr(
            exe.as_fd(),
            c"",
            false,
            runc_lite::sys::MountAttributes {
                clear: runc_lite::sys::MountAttributes::RDONLY,
                ..Default::default()
            },
        );
        // Even the host's root cannot write to it, however it is opened.
        for options in [
            std::fs::OpenOptions::new().write(true),
            std::fs::OpenOptions::new().append(true),
            std::fs::OpenOptions::new().write(true).truncate(true),
        ] {
            let refused = options.open(&again).and_then(|file| file.set_len(0));
            let errno = refused.unwrap_err().raw_os_error();
            let readonly = matches!(errno, Some(libc::EROFS | libc::EPERM));
            assert!(readonly, "{kind} {errno:?}");
        }
    }
    let mut bundle = Bundle::new("");
    let script = bundle.rootfs().join("evil");
    std::fs::write(&script, "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bundle.set("/process/args", json!(["/evil"]));
    bundle.run();
    assert!(
        std::fs::read(super::bundle::runtime()).unwrap() == before,
        "the runtime was changed"
    );
}

#[test]
fn privileged_cve_2019_19921_proc_and_sys_must_be_plain_directories() {
    if !ready() {
        return;
    }
    for name in ["proc", "sys"] {
        for target in ["/tmp", "/", "/not/there", "../../canary"] {
            let bundle = Bundle::new("true");
            let canary = canary(&bundle);
            symlink(target, bundle.rootfs().join(name)).unwrap();
            bundle.create().fails(1, "ordinary directory");
            assert_untouched(&canary);
            bundle.assert_gone();
        }
    }
}

#[test]
fn privileged_cve_2026_41579_dev_as_a_link() {
    if !ready() {
        return;
    }
    for target in ["../../../../../../..", "/canary", "CANARY"] {
        let mut bundle = Bundle::new("true");
        let canary = canary(&bundle);
        let target = target.replace("CANARY", canary.to_str().unwrap());
        symlink(&target, bundle.rootfs().join("dev")).unwrap();
        // Nothing mounted there, so that nodes and links would be made through the link.
        bundle.config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
        bundle.create().fails(1, "ordinary directory");
        assert_untouched(&canary);
    }
}

#[test]
fn privileged_mount_targets_stay_inside_the_root() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("ls /in; cat /in/mark");
    let canary = canary(&bundle);
    let volume = bundle.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("mark"), "mounted").unwrap();
    // Absolute, and more dots than there are directories: both lead to the container's own root.
    let inside = "../../../../../../../../../../in";
    symlink(inside, bundle.rootfs().join("link")).unwrap();
    std::fs::create_dir(bundle.rootfs().join("in")).unwrap();
    symlink(&canary, bundle.rootfs().join("out")).unwrap();
    bundle.set(
        "/mounts/-",
        json!({"destination": "/link", "type": "bind", "source": volume,
                                   "options": ["bind"]}),
    );
    assert_eq!(bundle.run().ok(), "mark\nmounted");
    bundle.set(
        "/mounts/-",
        json!({"destination": "/out/new/dir", "type": "tmpfs"}),
    );
    bundle.create().fails(1, "/out");
    assert_untouched(&canary);
}

#[test]
fn privileged_cve_2025_31133_masks_need_no_null_device_of_the_image() {
    if !ready() {
        return;
    }
    let before = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for mounted in [true, false] {
        let mut bundle = Bundle::new("cat /secret; echo x > /secret");
        let dev = bundle.rootfs().join("dev");
        std::fs::create_dir(&dev).unwrap();
        symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
        std::fs::write(bundle.rootfs().join("secret"), "hidden").unwrap();
        bundle.set("/linux/maskedPaths", json!(["/secret"]));
        if mounted {
            assert_eq!(bundle.run().ok(), "");
        } else {
            bundle.config["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
            bundle.create().fails(1, "is not the device it should be");
        }
        assert_eq!(
            std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
            before
        );
        assert_eq!(
            std::fs::read_to_string(bundle.rootfs().join("secret")).unwrap(),
            "hidden"
        );
    }
}

#[test]
fn privileged_cve_2019_16884_nothing_covers_proc() {
    if !ready() {
        return;
    }
    for destination in [
        "/proc",
        "/proc/self/attr",
        "/proc/sys/net",
        "/elsewhere/self",
    ] {
        let mut bundle = Bundle::new("true");
        let volume = bundle.dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        symlink("proc", bundle.rootfs().join("elsewhere")).unwrap();
        bundle.set(
            "/mounts/-",
            json!({"destination": destination, "type": "bind", "source": volume,
                                       "options": ["bind"]}),
        );
        bundle.create().fails(1, "proc");
        bundle.assert_gone();
    }
    let mut bundle = Bundle::new("cat /proc/uptime");
    let file = bundle.dir.path().join("uptime");
    std::fs::write(&file, "covered").unwrap();
    bundle.set(
        "/mounts/-",
        json!({"destination": "/proc/uptime", "type": "bind", "source": file,
                                   "options": ["bind", "ro"]}),
    );
    assert_eq!(bundle.run().ok(), "covered");
}

#[test]
fn privileged_cve_2026_88265_host_files_keep_their_owner() {
    use std::os::unix::fs::MetadataExt;
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("id -u");
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    bundle.create().ok();
    for name in ["out", "err"] {
        assert_eq!(
            std::fs::metadata(bundle.dir.path().join(name))
                .unwrap()
                .uid(),
            0
        );
    }
    assert_eq!(std::fs::metadata("/dev/null").unwrap().uid(), 0);
}

#[test]
fn privileged_cve_2024_45310_a_racing_neighbour_makes_nothing_on_the_host() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    let volume = bundle.dir.path().join("volume");
    let canary = canary(&bundle);
    std::fs::create_dir_all(volume.join("a/b")).unwrap();
    symlink(&canary, volume.join("link")).unwrap();
    bundle.set(
        "/mounts/-",
        json!({"destination": "/mnt", "type": "bind", "source": volume,
                                   "options": ["rbind"]}),
    );
    bundle.set(
        "/mounts/-",
        json!({"destination": "/mnt/a/b/c/d", "type": "tmpfs"}),
    );
    bundle.write();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let racer = {
        let (stop, volume) = (stop.clone(), volume.clone());
        std::thread::spawn(move || {
            let (a, link) = (volume.join("a"), volume.join("link"));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                let _ = rustix::fs::renameat_with(cwd, &a, cwd, &link, flags);
            }
        })
    };
    for _ in 0..40 {
        // It works or it fails; it never reaches the canary.
        bundle.call(&["run", &bundle.id]);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    racer.join().unwrap();
    assert_untouched(&canary);
}
