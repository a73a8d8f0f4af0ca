//! Whether a privileged test can run here: run, skip with a printed reason, or fail when it must run.

use std::env;
use std::path::{Path, PathBuf};

use crate::say;

/// Environment variable that turns a skip into a failure (`1`).
pub const REQUIRE: &str = "AXIL_TEST_REQUIRE";

/// Something a test cannot do without.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// An effective user id of zero.
    Root,
    /// A program on the search path or in a system directory.
    Program(&'static str),
    /// A file or directory.
    Path(&'static str),
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
        }
    }
}

/// Answers whether the test may run; otherwise prints why not.
///
/// # Panics
/// When something is missing and [`REQUIRE`] is set.
#[must_use]
pub fn ready(needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.missing()) else {
        return true;
    };
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    assert!(
        env::var_os(REQUIRE).is_none_or(|v| v != "1"),
        "{test} must run here, but {reason}"
    );
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
