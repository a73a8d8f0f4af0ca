//! The shim of one pod: parent of the pod's processes, writer of their logs, keeper of their exits.
//!
//! `bootstrap` starts the server, `server` serves ttrpc, `pod` holds the tasks, `task/` has one file
//! per verb, `stdio/` moves bytes. It knows containers only by the OCI runtime's command line.
#![deny(unsafe_code)]

pub mod args;
pub mod bootstrap;
pub mod cgroup;
pub mod cleanup;
pub mod clock;
pub mod error;
pub mod events;
pub mod log;
pub mod mount;
pub mod oom;
pub mod pod;
pub mod reaper;
pub mod record;
pub mod runtime;
pub mod sandbox;
pub mod server;
pub mod service;
pub mod stdio;
pub mod sys;
pub mod task;
