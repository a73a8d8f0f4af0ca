//! The `delete` action: removes what a dead shim left of one task, without a server.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use axil_proto::shim::options::Options;
use axil_proto::shim::task::DeleteResponse;
use prost::Message as _;
use prost_types::Timestamp;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::args::Args;
use crate::bootstrap::{StartError, bundle_of, is_served};
use crate::cgroup::Cgroup;
use crate::log;
use crate::mount;
use crate::oom::KILLED;
use crate::reaper::Exit;
use crate::record::{ExitRecord, TaskRecord, start_time};
use crate::runtime::{Call, Runtime, RuntimeError, read_pid_file, wait_gone};
use crate::sys::signal::{self, SignalNumber};
use crate::task::create::{LOG_FILE, PID_FILE};

/// How long the runtime may take; containerd gives the whole action little more.
const RUNTIME_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the init process may take to die.
const DEATH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the clean-up failed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// There is no bundle to clean up.
    #[error(transparent)]
    Bundle(#[from] StartError),
    /// The runtime is not there.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The root file system stays mounted.
    #[error("unmount {path:?}")]
    Unmount {
        /// Where it is.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Kills and removes what is left of the task, and answers the encoded `DeleteResponse`.
///
/// Each step is tried whatever became of those before it; all of them are bounded.
///
/// # Errors
/// There is no such bundle, or the root file system cannot be unmounted.
pub fn delete(args: &Args) -> Result<Vec<u8>, CleanupError> {
    let bundle = task_bundle(args)?;
    log::set_debug(args.debug);
    let record = TaskRecord::read(&bundle);
    let pid = read_pid_file(&bundle.join(PID_FILE)).ok();
    if let Some(record) = &record {
        kill_leftovers(record);
    }
    delete_in_runtime(args, &bundle, record.as_ref())?;
    if record.is_some_and(|record| record.rootfs_mounted) {
        let root = bundle.join("rootfs");
        mount::unmount_all(&root).map_err(|source| CleanupError::Unmount { path: root, source })?;
    }
    remove_stale_socket(&bundle);
    let exit = exit_of(&bundle, pid.is_some());
    let response = DeleteResponse {
        pid: pid.unwrap_or(0),
        exit_status: exit.status,
        exited_at: Some(Timestamp::from(exit.at)),
    };
    Ok(response.encode_to_vec())
}

/// The bundle of the task. containerd may run the action in the bundle of another task of the pod:
/// then the task's is beside it.
fn task_bundle(args: &Args) -> Result<std::path::PathBuf, StartError> {
    let given = bundle_of(args)?;
    let beside = given.with_file_name(&args.id);
    if args.bundle.is_none() && beside.is_dir() {
        return Ok(beside);
    }
    Ok(given)
}

fn delete_in_runtime(
    args: &Args,
    bundle: &Path,
    record: Option<&TaskRecord>,
) -> Result<(), RuntimeError> {
    let runtime = match record {
        Some(record) => Runtime::from_record(record),
        // The shim died before it created anything; there is most likely nothing to delete.
        None => match Runtime::from_options(&Options::default(), &args.namespace) {
            Ok(runtime) => runtime,
            Err(_) => return Ok(()),
        },
    };
    let log = bundle.join(LOG_FILE);
    let call = Call::new("delete", &log).arg("--force").arg(&args.id);
    match runtime.run_blocking(call, RUNTIME_TIMEOUT) {
        // What the runtime does not know is deleted.
        Err(error) if error.is_not_found() => Ok(()),
        Err(error @ RuntimeError::Failed { .. }) => {
            log::warn(format_args!("{error}"));
            Ok(())
        }
        other => other,
    }
}

/// Kills the recorded init, if it is still that process, and everything in the recorded cgroup.
fn kill_leftovers(record: &TaskRecord) {
    if let Some(cgroup) = &record.cgroup {
        kill_cgroup(cgroup);
    }
    let Some(pid) = record.pid else { return };
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(Ok(pidfd)) = target.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return;
    };
    // Order: compared after the pidfd is open, so that the number cannot be reused in between.
    if record.start_time.is_none() || start_time(pid) != record.start_time {
        return;
    }
    let _ = signal::send(std::os::fd::AsFd::as_fd(&pidfd), SignalNumber::KILL);
    if !wait_gone(&pidfd, DEATH_TIMEOUT) {
        log::warn(format_args!("process {pid} survives SIGKILL"));
    }
}

fn kill_cgroup(cgroup: &Cgroup) {
    let deadline = Instant::now() + DEATH_TIMEOUT;
    while cgroup.kill_once() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    cgroup.remove_children();
}

/// How the task ended: as recorded before the shim died, else killed just now.
fn exit_of(bundle: &Path, existed: bool) -> Exit {
    if let Some(exit) = ExitRecord::read(bundle).and_then(|record| record.exit()) {
        return exit;
    }
    let exit = Exit {
        status: KILLED,
        at: SystemTime::now(),
    };
    if existed && let Err(error) = ExitRecord::new(exit, false).write(bundle) {
        log::warn(format_args!("write the exit record in {bundle:?}: {error}"));
    }
    exit
}

/// Removes the socket named in the bundle when nobody serves it any more.
fn remove_stale_socket(bundle: &Path) {
    let Ok(address) = fs::read_to_string(bundle.join("address")) else {
        return;
    };
    let Some(path) = address.trim().strip_prefix("unix://").map(Path::new) else {
        return;
    };
    if matches!(is_served(path), Ok(false)) {
        let _ = fs::remove_file(path);
    }
}
