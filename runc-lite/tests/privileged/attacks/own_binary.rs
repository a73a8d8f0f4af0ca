//! The runtime's own executable: test 2.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use super::arena::{Canary, arm, digest};
use super::loops::{by, executables_under_attack, own_copy};
use crate::bundle::{Bundle, ready, runtime};

#[test]
fn privileged_cve_2019_5736_a_held_handle_of_the_runtime_cannot_be_written() {
    if !ready() {
        return;
    }
    let tried = executables_under_attack(20);
    assert!(
        tried[1].0 > 0,
        "the attacker never saw the runtime: {tried:?}"
    );
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

/// What a caller says of the executable is not believed: neither a mark of another process nor one with the right
/// number, when the executable is not one that nobody can write.
#[test]
fn privileged_cve_2019_5736_a_mark_in_the_environment_seals_nothing() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    // Empty stands for the number of the process that becomes the runtime.
    for value in ["1", ""] {
        let bundle = Bundle::new("sleep 1000");
        bundle.write();
        let create = bundle.command(&["create", "--pid-file", "pid", &bundle.id]);
        let script = "export _RUNC_LITE_SEALED=\"${0:-$$}\"; exec \"$@\" >out 2>err";
        let created = std::process::Command::new("/bin/sh")
            .args(["-c", script, value])
            .arg(create.get_program())
            .args(create.get_args())
            .current_dir(bundle.dir.path())
            .stdin(std::process::Stdio::null())
            .status()
            .unwrap();
        let said = fs::read_to_string(bundle.dir.path().join("err")).unwrap();
        assert!(created.success(), "{value}: {created}: {said}");
        let exe = File::open(format!("/proc/{}/exe", bundle.pid())).unwrap();
        let own = fs::metadata(runtime()).unwrap();
        let same_file_system = exe.metadata().unwrap().dev() == own.dev();
        assert!(!same_file_system, "{value}: init runs the installed binary");
    }
    canary.assert_alive();
}
