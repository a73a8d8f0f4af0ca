//! Whether a privileged test can run here: run, skip with a printed reason, or fail when it must run.
//!
//! What only some machines can have, such as AppArmor, is a reason to skip also where tests must run, unless
//! [`HAS`] says that this machine has it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::say;

/// Environment variable that turns a skip into a failure (`1`).
pub const REQUIRE: &str = "AXIL_TEST_REQUIRE";

/// Environment variable with what this machine has beyond others, with commas between: `apparmor`, `selinux`.
pub const HAS: &str = "AXIL_TEST_HAS";

/// Something a test cannot do without.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// An effective user id of zero.
    Root,
    /// A program on the search path or in a system directory.
    Program(&'static str),
    /// A file or directory.
    Path(&'static str),
    /// An active AppArmor and the program that loads profiles.
    AppArmor,
    /// SELinux with a policy.
    Selinux,
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Self::Root => {
                (!nix::unistd::geteuid().is_root()).then(|| "it needs to run as root".to_owned())
            }
            Self::Program(name) => find_program(name)
                .is_none()
                .then(|| format!("program {name} is not installed")),
            Self::Path(path) => {
                (!Path::new(path).exists()).then(|| format!("{path} does not exist"))
            }
            Self::Selinux => (!Path::new("/sys/fs/selinux/enforce").exists())
                .then(|| "SELinux is not active".to_owned()),
            Self::AppArmor => {
                let enabled = fs::read("/sys/module/apparmor/parameters/enabled");
                let on = enabled.is_ok_and(|text| text.starts_with(b"Y"));
                (!on || find_program("apparmor_parser").is_none()).then(|| {
                    "AppArmor is not active, or apparmor_parser is not installed".to_owned()
                })
            }
        }
    }

    /// Whether a machine where tests must run has to have it.
    fn must_be_here(self) -> bool {
        let promised = |name| {
            let names = env::var(HAS).unwrap_or_default();
            names.split(',').any(|one| one == name)
        };
        match self {
            Self::Root | Self::Program(_) | Self::Path(_) => {
                env::var_os(REQUIRE).is_some_and(|v| v == "1")
            }
            Self::AppArmor => promised("apparmor"),
            Self::Selinux => promised("selinux"),
        }
    }
}

/// Answers whether the test may run; otherwise prints why not.
///
/// # Panics
/// When something is missing and [`REQUIRE`] is set, or [`HAS`] names it.
#[must_use]
pub fn ready(needs: &[Need]) -> bool {
    let unmet = needs.iter().find_map(|need| Some((need, need.missing()?)));
    let Some((need, reason)) = unmet else {
        return true;
    };
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    assert!(!need.must_be_here(), "{test} must run here, but {reason}");
    say::err(format!("SKIPPED {test}: {reason}"));
    false
}

/// Finds a program on the search path and in the system directories, which a user's path may lack.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}
