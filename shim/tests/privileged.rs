//! The shim as a process: real socket, real OCI runtime, real containers. Needs root.
//!
//! The runtime is `AXIL_TEST_RUNTIME`, else the `runc` or `crun` of the machine.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: a failed step ends it, and skips and measurements are printed"
)]

#[path = "privileged/bed.rs"]
mod bed;
#[path = "privileged/exec.rs"]
mod exec;
#[path = "privileged/lifecycle.rs"]
mod lifecycle;
#[path = "privileged/logs.rs"]
mod logs;
#[path = "privileged/robustness.rs"]
mod robustness;
#[path = "privileged/sandbox.rs"]
mod sandbox;
