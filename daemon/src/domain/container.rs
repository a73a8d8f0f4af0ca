//! A container: what was asked for, its state machine, and the OCI documents made from both.

pub mod cdi;
pub mod oci;
pub mod phase;
pub mod record;
pub mod seccomp;
pub mod spec;
pub mod user;
