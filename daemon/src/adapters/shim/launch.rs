//! The `start` and `delete` commands of a shim binary (containerd's shim bootstrap convention), and the
//! certain end of a shim process.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use axil_proto::ids::PodId;
use axil_proto::keys;
use axil_proto::shim::bootstrap::BootstrapParams;
use nix::sys::signal::{Signal, killpg};
use prost::Message as _;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{ShimOptions, run_failure};
use crate::domain::failure::{Class, Failure};
use crate::ports::Answer;

/// How long a shim command may take.
const COMMAND: Duration = Duration::from_secs(30);

/// How long a killed shim may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Most bytes of a shim command's output that are looked at.
const MAX_OUTPUT: usize = 64 << 10;

/// What a shim prints: version 3 of the convention, or just the address (version 2).
#[derive(Deserialize)]
struct Bootstrap {
    version: i32,
    address: String,
    protocol: String,
}

/// Runs `start` in the bundle; answers the address the shim serves at.
pub(super) async fn start(options: &ShimOptions, pod: &PodId, bundle: &Path) -> Answer<String> {
    let params = BootstrapParams {
        instance_id: pod.to_string(),
        namespace: keys::SHIM_NAMESPACE.to_owned(),
        socket_dir: Some(options.sockets.display().to_string()),
        ..BootstrapParams::default()
    };
    let output = run(
        options,
        pod.as_str(),
        bundle,
        "start",
        params.encode_to_vec(),
    )
    .await?;
    let text = String::from_utf8_lossy(&output);
    let text = text.trim();
    let address = if text.starts_with('{') {
        let told: Bootstrap = serde_json::from_str(text)
            .map_err(|error| Failure::internal("parse what the shim's start printed", &error))?;
        if !matches!(told.version, 2 | 3) || told.protocol != "ttrpc" {
            let message = format!("the shim speaks {} version {}", told.protocol, told.version);
            return Err(Failure::new(Class::Unsupported, message));
        }
        told.address
    } else {
        text.to_owned()
    };
    if !address.starts_with("unix:///") {
        let message = format!("the shim's start printed the address {address:?}, not unix:///…");
        return Err(Failure::new(Class::Internal, message));
    }
    let file = bundle.join("address");
    tokio::fs::write(&file, &address)
        .await
        .map_err(|error| Failure::io(format!("write {}", file.display()), &error))?;
    Ok(address)
}

/// The address an earlier start wrote down.
pub(super) fn recorded_address(bundle: &Path) -> Option<String> {
    let text = std::fs::read_to_string(bundle.join("address")).ok()?;
    Some(text.trim().to_owned()).filter(|address| address.starts_with("unix:///"))
}

/// Ends a shim that may be gone, hang or live, then everything its containers left.
pub(super) async fn end(
    options: &ShimOptions,
    pod: &PodId,
    bundle: &Path,
    containers: &[PathBuf],
) -> Answer<()> {
    kill_recorded(options, bundle).await?;
    for container in containers {
        let name = container.file_name().and_then(|name| name.to_str());
        // A bundle without a document has no task.
        if let (Some(id), true) = (name, container.join("config.json").exists()) {
            run(options, id, container, "delete", Vec::new()).await?;
        }
    }
    if bundle.join("config.json").exists() {
        run(options, pod.as_str(), bundle, "delete", Vec::new()).await?;
    }
    Ok(())
}

/// Kills the shim named by `shim.pid`, if the process is still that shim.
async fn kill_recorded(options: &ShimOptions, bundle: &Path) -> Answer<()> {
    let file = bundle.join("shim.pid");
    let Ok(text) = tokio::fs::read_to_string(&file).await else {
        return Ok(());
    };
    let number: Option<i32> = text.trim().parse().ok();
    let Some(pid) = number.and_then(rustix::process::Pid::from_raw) else {
        return Ok(());
    };
    let deadline = tokio::time::Instant::now() + GONE;
    let mut killed = false;
    // Order: the descriptor first, then the look at who it is; so a reused number is never signalled.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    while is_shim(options, pid.as_raw_nonzero().get()) {
        if !killed {
            killed = true;
            let signal = rustix::process::Signal::from_named_raw(Signal::SIGKILL as i32);
            if let Some(signal) = signal {
                // Ignored: it may end by itself meanwhile, which the loop sees.
                let _gone = pidfd_send_signal(&process, signal);
            }
        }
        if tokio::time::Instant::now() > deadline {
            let message = format!("shim {number:?} is alive {GONE:?} after SIGKILL");
            return Err(Failure::new(Class::DeadlineExceeded, message));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Whether a process runs the shim's binary.
fn is_shim(options: &ShimOptions, pid: i32) -> bool {
    let Ok(exe) = std::fs::read_link(format!("/proc/{pid}/exe")) else {
        return false;
    };
    let shim = options
        .shim
        .canonicalize()
        .unwrap_or_else(|_| options.shim.clone());
    // An upgraded binary is "… (deleted)" to the kernel.
    exe == shim || exe.to_string_lossy() == format!("{} (deleted)", shim.display())
}

/// Runs a command of the shim binary in a bundle, within a bound; answers what it printed.
async fn run(
    options: &ShimOptions,
    id: &str,
    bundle: &Path,
    action: &str,
    input: Vec<u8>,
) -> Answer<Vec<u8>> {
    let mut command = Command::new(&options.shim);
    command
        .args(["-namespace", keys::SHIM_NAMESPACE, "-id", id, "-bundle"])
        .arg(bundle)
        .args(["-publish-binary", "", "-address", ""])
        .arg(action)
        .current_dir(bundle)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .map_err(|error| run_failure("run", &options.shim, &error))?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok());
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(&input).await {
                // It ended without reading: its exit tells why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(COMMAND, talk).await {
        Ok(output) => output.map_err(|error| run_failure("run", &options.shim, &error))?,
        Err(_) => {
            if let Some(group) = group {
                // Its children go with it. Ignored: they may be gone already.
                let _gone = killpg(nix::unistd::Pid::from_raw(group), Signal::SIGKILL);
            }
            let message = format!("the shim's {action} took more than {COMMAND:?}");
            return Err(Failure::new(Class::DeadlineExceeded, message));
        }
    };
    if output.status.success() {
        let mut printed = output.stdout;
        printed.truncate(MAX_OUTPUT);
        return Ok(printed);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(1024).collect();
    let message = format!("the shim's {action} ended with {}: {said}", output.status);
    Err(Failure::new(Class::Internal, message))
}
