//! The runtime's own executable: test 2.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;

use super::arena::{Canary, arm, armed, assert_nothing_got, digest, empower, let_loose};
use crate::bundle::{Bundle, ready, runtime};

/// The runtime as a file that may be lost, should an attack get through.
pub(super) fn own_copy(bundle: &Bundle) -> std::path::PathBuf {
    let copy = bundle.dir.path().join("runtime");
    fs::copy(runtime(), &copy).unwrap();
    copy
}

/// The command line of `bundle` with another binary.
pub(super) fn by(binary: &std::path::Path, bundle: &Bundle, args: &[&str]) -> Command {
    let plain = bundle.command(args);
    let mut command = Command::new(binary);
    command
        .args(plain.get_args())
        .current_dir(bundle.dir.path())
        .stdin(std::process::Stdio::null());
    command
}

/// Execs and runs while the container's init tries to write to every executable it sees.
pub(super) fn entries_under_attack(execs: usize) -> String {
    let mut bundle = armed(&["overwrite", "600"]);
    // With every power over the newcomers that a container may have.
    empower(
        &mut bundle,
        &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_FOWNER"],
    );
    let copy = own_copy(&bundle);
    let before = digest(&copy);
    let_loose(&bundle);
    let seconds = std::time::Instant::now();
    let mut done = 0;
    while done < execs || (tried_so_far(&bundle) == 0 && seconds.elapsed().as_secs() < 10) {
        by(&copy, &bundle, &["exec", &bundle.id, "sleep", "0.01"])
            .output()
            .unwrap();
        done += 1;
    }
    // The handles stay: what was busy while it ran is not any more.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(digest(&copy) == before, "the runtime was overwritten");
    bundle.output()
}

fn tried_so_far(bundle: &Bundle) -> usize {
    bundle.output().matches("SEEN").count()
}

#[test]
fn privileged_cve_2019_5736_a_held_handle_of_the_runtime_cannot_be_written() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let out = entries_under_attack(20);
    assert_nothing_got(&out);
    assert!(
        out.lines().any(|line| line.starts_with("SEEN")),
        "the attacker never saw the runtime: {out}"
    );
    canary.assert_alive();
}

#[test]
fn privileged_cve_2019_5736_the_executable_of_init_outlives_it_unwritten() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let before = digest(&runtime());
    let bundle = Bundle::new("sleep 1000");
    // The first create finds no directory for the overlay and runs from a copy, the second from the overlay.
    for kind in ["memfd:", "/runc-lite"] {
        bundle.create().ok();
        // Held across the process's end, as the attack does: then nothing executes the file any more.
        let exe = File::open(format!("/proc/{}/exe", bundle.pid())).unwrap();
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        let again = format!("/proc/self/fd/{}", exe.as_raw_fd());
        let link = fs::read_link(&again).unwrap();
        assert!(link.to_str().unwrap().contains(kind), "{link:?}");
        assert!(before == digest(again.as_ref()));
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
            fs::OpenOptions::new().write(true),
            fs::OpenOptions::new().append(true),
            fs::OpenOptions::new().write(true).truncate(true),
        ] {
            let refused = options.open(&again).and_then(|file| file.set_len(0));
            let errno = refused.unwrap_err().raw_os_error();
            let readonly = matches!(errno, Some(libc::EROFS | libc::EPERM));
            assert!(readonly, "{kind} {errno:?}");
        }
    }
    canary.assert_alive();
}

#[test]
fn privileged_cve_2019_5736_the_runtime_as_its_own_entrypoint_changes_nothing() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("");
    arm(&bundle);
    let copy = own_copy(&bundle);
    let before = digest(&copy);
    let script = bundle.rootfs().join("evil");
    fs::write(&script, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    bundle.set("/process/args", json!(["/evil", "--version"]));
    bundle.write();
    // Whatever it does with these arguments, it does inside, from memory that nobody can write.
    by(&copy, &bundle, &["run", &bundle.id]).output().unwrap();
    assert!(digest(&copy) == before, "the runtime was changed");
    canary.assert_alive();
}
