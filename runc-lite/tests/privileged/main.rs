//! The runtime's verbs on real bundles, as root: every test makes its bundle, cgroup and state directory and
//! removes them again.
//!
//! The runtime is the one built with this package, or the one `AXIL_TEST_RUNTIME` names.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a skip is printed; clippy exempts only the test functions"
)]

mod apparmor;
mod attacks;
mod bad_input;
mod bundle;
mod cgroup_v2;
mod cgroups;
mod command_line;
mod crash;
mod exec;
mod guard;
mod hooks;
mod idmap;
mod isolation;
mod joins;
mod lifecycle;
mod limits;
mod mounting;
mod net_devices;
mod notify;
mod rootless;
mod scheduling;
mod seccomp;
mod sys;
mod systemd;
mod timens;
mod unified;
mod userns;
