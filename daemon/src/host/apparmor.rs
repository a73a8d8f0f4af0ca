//! AppArmor: the profile that containers have by default, and which profiles the kernel has.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::domain::failure::{Class, Failure};

/// Name of the profile that is the runtime's default.
pub const DEFAULT: &str = "axil-default";

/// The profiles the kernel has: `NAME (MODE)`, one a line.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Where the program that loads profiles may be (`apparmor_parser(8)`).
const PARSERS: [&str; 2] = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"];

/// How long loading may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The default profile (`apparmor.d(5)`). It stands behind the other walls of a container: who got past its
/// capabilities, masks and read-only mounts still cannot mount, write to what the kernel shows of itself, or reach
/// processes outside.
const PROFILE: &str = "\
profile axil-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,

  # Anybody may end a container; it signals and traces its own kind only.
  signal (receive),
  signal (send) peer=axil-default,
  ptrace (read, readby, trace, tracedby) peer=axil-default,

  deny mount,
  deny remount,
  deny pivot_root,

  # Of /proc, what belongs to a process and the sysctls of the network and of IPC.
  deny /proc/* w,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,tty}/** w,
  deny /proc/sys/{abi,crypto,debug,dev,fs,sunrpc,user,vm}/** w,
  deny /proc/sys/kernel/{[^ms],m[^s],s[^eh]}** wklx,
  deny /proc/kcore rwklx,
  deny /proc/{kmem,mem,sysrq-trigger} rwklx,

  # Of /sys, the container's cgroups.
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/{firmware,devices/virtual/powercap,kernel/security}/** rwklx,
}
";

/// Loads the default profile, in place of what an earlier axild left, where AppArmor is on; answers its name. Where
/// that fails containers that ask for no profile have none, and those that ask for the default are refused.
pub async fn load_default(is_on: bool) -> Option<String> {
    if !is_on {
        return None;
    }
    match load(PROFILE).await {
        Ok(()) => Some(DEFAULT.to_owned()),
        Err(failure) => {
            tracing::warn!(
                error = %failure,
                profile = DEFAULT,
                "the default AppArmor profile is not loaded; containers run without one"
            );
            None
        }
    }
}

async fn load(profile: &str) -> Result<(), Failure> {
    let parser = PARSERS
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file());
    let parser = parser.ok_or_else(|| {
        Failure::precondition("apparmor_parser is not installed (package apparmor)")
    })?;
    let what = parser.display().to_string();
    let child = Command::new(&parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| Failure::io(&what, &error))?;
    let stdin = child.stdin.take();
    let run = async {
        if let Some(mut stdin) = stdin {
            // Ignored: a parser that does not read says why when it ends.
            let _written = stdin.write_all(profile.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PATIENCE, run).await.map_err(|_| {
        let message = format!("{what}: no end within {PATIENCE:?}");
        Failure::new(Class::DeadlineExceeded, message)
    })?;
    let output = output.map_err(|error| Failure::io(&what, &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message = format!("{what}: {}: {}", output.status, said.trim());
    Err(Failure::new(Class::Internal, message))
}

/// Checks that the kernel has a profile of the node, so that a container that cannot start is not made. Where the
/// list cannot be read the OCI runtime finds out.
///
/// # Errors
/// `FailedPrecondition`: it is not loaded.
pub async fn check_loaded(profile: &str) -> Result<(), Failure> {
    let Ok(loaded) = tokio::fs::read_to_string(LOADED).await else {
        return Ok(());
    };
    if is_loaded(profile, &loaded) {
        return Ok(());
    }
    let message = format!("apparmor profile {profile:?} is not loaded on this node");
    Err(Failure::precondition(message))
}

/// Whether every profile of a stack (`A//&B`) is in the list. Those of other namespaces (`:ns:name`) are not listed.
fn is_loaded(profile: &str, loaded: &str) -> bool {
    let names = || {
        let name = |line: &str| line.rsplit_once(" (").map(|(name, _)| name.to_owned());
        loaded.lines().filter_map(name)
    };
    let mut parts = profile.split("//&");
    parts
        .all(|part| part.starts_with(':') || part == "unconfined" || names().any(|one| one == part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_found_by_their_whole_names() {
        let loaded =
            "web (enforce)\n/usr/bin/man (complain)\nodd (name) (enforce)\nweb//child (kill)\n";
        for known in [
            "web",
            "/usr/bin/man",
            "odd (name)",
            "web//child",
            "web//&/usr/bin/man",
        ] {
            assert!(is_loaded(known, loaded), "{known}");
        }
        assert!(is_loaded(":other:web", loaded));
        for unknown in ["we", "web (enforce)", "man", "web//&x", "", "web\n"] {
            assert!(!is_loaded(unknown, loaded), "{unknown:?}");
        }
    }

    #[test]
    fn the_profile_has_the_name_it_is_asked_for_by() {
        assert!(PROFILE.starts_with(&format!("profile {DEFAULT} ")));
        assert!(PROFILE.contains(&format!("signal (send) peer={DEFAULT},")));
    }

    #[tokio::test]
    async fn nothing_is_loaded_where_apparmor_is_off() {
        assert_eq!(load_default(false).await, None);
    }
}
