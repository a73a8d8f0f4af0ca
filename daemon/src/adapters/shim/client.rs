//! The ttrpc side of a shim: the task and sandbox services, in domain types.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use axil_proto::ids::{ContainerId, ExecId, PodId};
use axil_proto::keys;
use axil_proto::shim::Status;
use axil_proto::shim::axil::{AttachRequest, ReopenLogRequest, ShimClient as AxilClient};
use axil_proto::shim::options::{Options, ProcessDetails};
use axil_proto::shim::sandbox::{
    CreateSandboxRequest, SandboxClient, StartSandboxRequest, WaitSandboxRequest,
};
use axil_proto::shim::task::{
    CloseIoRequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, PidsRequest,
    ResizePtyRequest, StartRequest, StateRequest, TaskClient, UpdateTaskRequest, WaitRequest,
};
use prost::Message as _;
use prost_types::{Any, Timestamp};
use ttrpc::asynchronous::Client;
use ttrpc::proto::Code;

use super::QUICK;
use crate::domain::failure::{Class, Failure};
use crate::ports::{
    Answer, AttachPlan, ExecPlan, OciRuntime, Shim, TaskExit, TaskPlan, TaskState, TerminalSize,
};

/// How long making, starting or deleting a process may take.
const PROCESS: Duration = Duration::from_secs(60);

/// No bound: the wait for the end of a process.
const FOREVER: Duration = Duration::ZERO;

/// Type of the options a runc-style shim understands.
const OPTIONS_TYPE: &str = "containerd.runc.v1.Options";

/// Type of an OCI process document in an exec request.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Type of OCI resources in an update request.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A connection to one pod's shim.
#[derive(Debug)]
pub(super) struct ShimClient {
    pod: PodId,
    task: TaskClient,
    sandbox: SandboxClient,
    axil: AxilClient,
}

/// Opens a connection within a bound.
pub(super) async fn connect(address: &str) -> Answer<Client> {
    match tokio::time::timeout(QUICK, Client::connect(address)).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(Failure::new(
            Class::Unavailable,
            format!("connect to the shim at {address}: {error}"),
        )),
        Err(_) => Err(Failure::new(
            Class::Unavailable,
            format!("connect to the shim at {address}: no answer within {QUICK:?}"),
        )),
    }
}

impl ShimClient {
    pub(super) async fn open(pod: &PodId, address: &str) -> Answer<Self> {
        let client = connect(address).await?;
        let shim = Self {
            pod: pod.clone(),
            task: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client.clone()),
            axil: AxilClient::new(client),
        };
        // A socket that accepts is not yet a shim that answers.
        let ping = axil_proto::shim::sandbox::PingRequest {
            sandbox_id: pod.to_string(),
        };
        match shim.sandbox.ping_sandbox(&ping, QUICK).await {
            Ok(_) => Ok(shim),
            // A sandbox that is not created yet, or a shim without the sandbox service.
            Err(ttrpc::Error::RpcStatus(_)) => Ok(shim),
            Err(error) => Err(failure("ping the shim", &error)),
        }
    }
}

/// A path of a request; empty when there is none.
fn text(path: Option<&std::path::PathBuf>) -> String {
    path.map_or_else(String::new, |path| path.display().to_string())
}

fn exec_id(exec: Option<&ExecId>) -> String {
    exec.map(ToString::to_string).unwrap_or_default()
}

#[async_trait]
impl Shim for ShimClient {
    async fn start_sandbox(&self, bundle: &Path, runtime: &OciRuntime) -> Answer<Option<u32>> {
        let sandbox_id = self.pod.to_string();
        let create = CreateSandboxRequest {
            sandbox_id: sandbox_id.clone(),
            bundle_path: bundle.display().to_string(),
            options: Some(runtime_options(runtime)),
            ..CreateSandboxRequest::default()
        };
        let made = self.sandbox.create_sandbox(&create, QUICK).await;
        made.map_err(|error| failure("create the sandbox", &error))?;
        let start = StartSandboxRequest { sandbox_id };
        let started = self.sandbox.start_sandbox(&start, PROCESS).await;
        let started = started.map_err(|error| failure("start the sandbox", &error))?;
        let has_process = bundle.join("config.json").exists();
        Ok(Some(started.pid).filter(|&pid| has_process && pid > 0))
    }

    async fn sandbox_gone(&self) {
        let wait = WaitSandboxRequest {
            sandbox_id: self.pod.to_string(),
        };
        // Any answer, also a broken connection, means that the sandbox has to be looked at.
        let answer = self.sandbox.wait_sandbox(&wait, FOREVER).await;
        tracing::debug!(pod.id = %self.pod, answer = ?answer, "the sandbox is gone");
    }

    async fn create(&self, plan: &TaskPlan) -> Answer<u32> {
        let uri = plan.log.as_ref().map_or_else(
            || keys::CRI_LOG_NONE.to_owned(),
            |path| format!("{}{}", keys::CRI_LOG_SCHEME, path.display()),
        );
        let request = CreateTaskRequest {
            id: plan.container.to_string(),
            bundle: plan.bundle.display().to_string(),
            terminal: plan.terminal,
            stdin: text(plan.stdin.as_ref()),
            stderr: if plan.terminal {
                String::new()
            } else {
                uri.clone()
            },
            stdout: uri,
            options: Some(runtime_options(&plan.runtime)),
            ..CreateTaskRequest::default()
        };
        let made = self.task.create(&request, PROCESS).await;
        made.map(|answer| answer.pid)
            .map_err(|error| failure("create the container", &error))
    }

    async fn start(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()> {
        let request = StartRequest {
            id: container.to_string(),
            exec_id: exec_id(exec),
        };
        let started = self.task.start(&request, PROCESS).await;
        started
            .map(|_| ())
            .map_err(|error| failure("start the process", &error))
    }

    async fn kill(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        signal: i32,
        all: bool,
    ) -> Answer<()> {
        let request = KillRequest {
            id: container.to_string(),
            exec_id: exec_id(exec),
            signal: signal.unsigned_abs(),
            all,
        };
        let killed = self.task.kill(&request, PROCESS).await;
        killed
            .map(|_| ())
            .map_err(|error| failure("send a signal", &error))
    }

    async fn wait(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<TaskExit> {
        let request = WaitRequest {
            id: container.to_string(),
            exec_id: exec_id(exec),
        };
        let exit = self.task.wait(&request, FOREVER).await;
        let exit = exit.map_err(|error| failure("wait for the process", &error))?;
        Ok(task_exit(exit.exit_status, exit.exited_at))
    }

    async fn delete(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()> {
        let request = DeleteRequest {
            id: container.to_string(),
            exec_id: exec_id(exec),
        };
        match self.task.delete(&request, PROCESS).await {
            Ok(_) => Ok(()),
            Err(error) => match failure("delete the process", &error) {
                missing if missing.class == Class::NotFound => Ok(()),
                other => Err(other),
            },
        }
    }

    async fn state(&self, container: &ContainerId) -> Answer<TaskState> {
        let request = StateRequest {
            id: container.to_string(),
            exec_id: String::new(),
        };
        let state = match self.task.state(&request, QUICK).await {
            Ok(state) => state,
            Err(error) => {
                return match failure("ask for the process", &error) {
                    missing if missing.class == Class::NotFound => Ok(TaskState::Missing),
                    other => Err(other),
                };
            }
        };
        Ok(
            match Status::try_from(state.status).unwrap_or(Status::Unknown) {
                Status::Created => TaskState::Created,
                Status::Running | Status::Paused | Status::Pausing => TaskState::Running,
                Status::Stopped => {
                    TaskState::Stopped(task_exit(state.exit_status, state.exited_at))
                }
                Status::Unknown => TaskState::Missing,
            },
        )
    }

    async fn exec(&self, plan: &ExecPlan) -> Answer<()> {
        let request = ExecProcessRequest {
            id: plan.container.to_string(),
            exec_id: plan.exec.to_string(),
            terminal: plan.terminal,
            stdin: text(plan.stdin.as_ref()),
            stdout: text(plan.stdout.as_ref()),
            stderr: text(plan.stderr.as_ref()),
            spec: Some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: plan.process.clone(),
            }),
        };
        let added = self.task.exec(&request, QUICK).await;
        added
            .map(|_| ())
            .map_err(|error| failure("add a process", &error))
    }

    async fn update(&self, container: &ContainerId, resources: Vec<u8>) -> Answer<()> {
        let request = UpdateTaskRequest {
            id: container.to_string(),
            resources: Some(Any {
                type_url: RESOURCES_TYPE.to_owned(),
                value: resources,
            }),
            ..UpdateTaskRequest::default()
        };
        let updated = self.task.update(&request, PROCESS).await;
        updated
            .map(|_| ())
            .map_err(|error| failure("change the resources", &error))
    }

    async fn execs(&self, container: &ContainerId) -> Answer<Vec<ExecId>> {
        let request = PidsRequest {
            id: container.to_string(),
        };
        let answer = self.task.pids(&request, QUICK).await;
        let answer = answer.map_err(|error| failure("ask for the processes", &error))?;
        let infos = answer.processes.into_iter().filter_map(|one| one.info);
        let details = infos.filter_map(|info| ProcessDetails::decode(info.value.as_slice()).ok());
        Ok(details.filter_map(|one| one.exec_id.parse().ok()).collect())
    }

    async fn close_stdin(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()> {
        let request = CloseIoRequest {
            id: container.to_string(),
            exec_id: exec_id(exec),
            stdin: true,
        };
        let closed = self.task.close_io(&request, QUICK).await;
        closed
            .map(|_| ())
            .map_err(|error| failure("close the input", &error))
    }

    async fn resize(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        size: TerminalSize,
    ) -> Answer<()> {
        let request = ResizePtyRequest {
            id: container.to_string(),
            exec_id: exec_id(exec),
            width: size.columns.into(),
            height: size.rows.into(),
        };
        let resized = self.task.resize_pty(&request, QUICK).await;
        resized
            .map(|_| ())
            .map_err(|error| failure("resize the terminal", &error))
    }

    async fn attach(&self, plan: &AttachPlan) -> Answer<()> {
        let request = AttachRequest {
            id: plan.container.to_string(),
            stdout: text(plan.stdout.as_ref()),
            stderr: text(plan.stderr.as_ref()),
        };
        let attached = self.axil.attach(&request, QUICK).await;
        attached
            .map(|_| ())
            .map_err(|error| failure("attach to the container", &error))
    }

    async fn reopen_log(&self, container: &ContainerId) -> Answer<()> {
        let request = ReopenLogRequest {
            id: container.to_string(),
        };
        let reopened = self.axil.reopen_log(&request, QUICK).await;
        reopened
            .map(|_| ())
            .map_err(|error| failure("reopen the log", &error))
    }
}

fn runtime_options(runtime: &OciRuntime) -> Any {
    let value = Options {
        binary_name: runtime.binary.display().to_string(),
        root: runtime.root.display().to_string(),
        systemd_cgroup: runtime.systemd_cgroup,
        ..Options::default()
    };
    Any {
        type_url: OPTIONS_TYPE.to_owned(),
        value: value.encode_to_vec(),
    }
}

fn task_exit(status: u32, at: Option<Timestamp>) -> TaskExit {
    TaskExit {
        status: i32::try_from(status).unwrap_or(i32::MAX),
        exited_at: nanos(at),
        oom_killed: false,
    }
}

/// Nanoseconds since the epoch; now when there is no time given.
#[must_use]
pub fn nanos(at: Option<Timestamp>) -> i64 {
    at.map_or_else(crate::ports::unix_nanos, |at| {
        at.seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(at.nanos))
    })
}

/// Turns a ttrpc error into a failure: the one place that knows its codes.
pub(super) fn failure(what: &str, error: &ttrpc::Error) -> Failure {
    let ttrpc::Error::RpcStatus(status) = error else {
        return Failure::new(Class::Unavailable, format!("{what}: {error}"));
    };
    let class = match status.code() {
        Code::NOT_FOUND => Class::NotFound,
        Code::ALREADY_EXISTS => Class::AlreadyExists,
        Code::INVALID_ARGUMENT => Class::InvalidArgument,
        Code::FAILED_PRECONDITION => Class::FailedPrecondition,
        Code::DEADLINE_EXCEEDED | Code::CANCELLED => Class::DeadlineExceeded,
        Code::RESOURCE_EXHAUSTED => Class::Exhausted,
        Code::UNIMPLEMENTED => Class::Unsupported,
        Code::UNAVAILABLE => Class::Unavailable,
        Code::PERMISSION_DENIED | Code::UNAUTHENTICATED => Class::PermissionDenied,
        Code::OK
        | Code::UNKNOWN
        | Code::ABORTED
        | Code::OUT_OF_RANGE
        | Code::INTERNAL
        | Code::DATA_LOSS => Class::Internal,
    };
    Failure::new(class, format!("{what}: {}", status.message()))
}
