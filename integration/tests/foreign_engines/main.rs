//! Foreign engines drive `runc-lite`: Debian's podman, containerd with its own shim, docker, and conmon as
//! CRI-O uses it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conmon;
mod containerd;
mod docker;
mod podman;
mod rootless;
