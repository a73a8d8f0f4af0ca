//! The task service, version 3.

use std::sync::Arc;

use async_trait::async_trait;
use axil_proto::shim::ProcessInfo;
use axil_proto::shim::options::ProcessDetails;
use axil_proto::shim::task::{
    CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest,
    PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, Task, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use prost::Message as _;
use prost_types::{Any, Timestamp};

use super::{check_id, parse_options};
use crate::error::VerbError;
use crate::pod::{Pod, detached};
use crate::stdio::IoSpec;
use crate::task::create::CreateOptions;

/// Serves the tasks of a pod.
#[derive(Debug)]
pub struct TaskService(pub Arc<Pod>);

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Task for TaskService {
    async fn create(&self, request: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        let options = create_options(request)?;
        let pod = Arc::clone(&self.0);
        let pid = detached(async move { pod.create(options).await }).await?;
        Ok(CreateTaskResponse { pid })
    }

    async fn start(&self, request: StartRequest) -> Answer<StartResponse> {
        let pod = Arc::clone(&self.0);
        let pid = detached(async move { pod.start(&request.id, &request.exec_id).await }).await?;
        Ok(StartResponse { pid })
    }

    async fn delete(&self, request: DeleteRequest) -> Answer<DeleteResponse> {
        let pod = Arc::clone(&self.0);
        let work = async move { pod.delete(&request.id, &request.exec_id).await };
        let deleted = detached(work).await?;
        Ok(DeleteResponse {
            pid: deleted.pid,
            exit_status: deleted.exit.status,
            exited_at: Some(Timestamp::from(deleted.exit.at)),
        })
    }

    async fn exec(&self, request: ExecProcessRequest) -> Answer<()> {
        let task = self.0.tasks.get(&request.id).map_err(ttrpc::Error::from)?;
        let io = IoSpec {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            owner: task.init.io_spec.owner,
        };
        let spec = request.spec.as_ref();
        Ok(self.0.add_exec(&request.id, &request.exec_id, io, spec)?)
    }

    async fn kill(&self, request: KillRequest) -> Answer<()> {
        let pod = Arc::clone(&self.0);
        let work = async move {
            let KillRequest {
                id,
                exec_id,
                signal,
                all,
            } = request;
            pod.kill(&id, &exec_id, signal, all).await
        };
        Ok(detached(work).await?)
    }

    async fn wait(&self, request: WaitRequest) -> Answer<WaitResponse> {
        let process = {
            let task = self.0.tasks.get(&request.id).map_err(ttrpc::Error::from)?;
            task.process(&request.exec_id).map_err(ttrpc::Error::from)?
        };
        let exit = process.wait().await?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(Timestamp::from(exit.at)),
        })
    }

    async fn state(&self, request: StateRequest) -> Answer<StateResponse> {
        let task = self.0.tasks.get(&request.id).map_err(ttrpc::Error::from)?;
        let process = task.process(&request.exec_id).map_err(ttrpc::Error::from)?;
        let io = &process.io_spec;
        let exit = process.exit();
        Ok(StateResponse {
            id: process.id.clone(),
            bundle: task.bundle.display().to_string(),
            pid: process.pid(),
            status: process.phase().status().into(),
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            terminal: io.terminal,
            exit_status: exit.map_or(0, |e| e.status),
            exited_at: exit.map(|e| Timestamp::from(e.at)),
            exec_id: request.exec_id,
        })
    }

    async fn pids(&self, request: PidsRequest) -> Answer<PidsResponse> {
        let pids = self.0.pids(&request.id)?;
        let process = |(pid, exec_id): (u32, Option<String>)| ProcessInfo {
            pid,
            info: exec_id.map(|exec_id| Any {
                type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
                value: ProcessDetails { exec_id }.encode_to_vec(),
            }),
        };
        Ok(PidsResponse {
            processes: pids.into_iter().map(process).collect(),
        })
    }

    async fn pause(&self, request: PauseRequest) -> Answer<()> {
        let pod = Arc::clone(&self.0);
        Ok(detached(async move { pod.pause(&request.id).await }).await?)
    }

    async fn resume(&self, request: ResumeRequest) -> Answer<()> {
        let pod = Arc::clone(&self.0);
        Ok(detached(async move { pod.resume(&request.id).await }).await?)
    }

    async fn update(&self, request: UpdateTaskRequest) -> Answer<()> {
        let pod = Arc::clone(&self.0);
        let resources = request.resources.unwrap_or_default().value;
        Ok(detached(async move { pod.update(&request.id, resources).await }).await?)
    }

    async fn resize_pty(&self, request: ResizePtyRequest) -> Answer<()> {
        let ResizePtyRequest {
            id,
            exec_id,
            width,
            height,
        } = request;
        Ok(self.0.resize(&id, &exec_id, width, height)?)
    }

    async fn close_io(&self, request: CloseIoRequest) -> Answer<()> {
        if request.stdin {
            self.0.close_stdin(&request.id, &request.exec_id)?;
        }
        Ok(())
    }

    async fn connect(&self, request: ConnectRequest) -> Answer<ConnectResponse> {
        // The shim answers also for a task it does not have: containerd asks before it creates one.
        let task_pid = self.0.tasks.get(&request.id).map_or(0, |t| t.init.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn shutdown(&self, _request: ShutdownRequest) -> Answer<()> {
        self.0.shutdown_if_idle();
        Ok(())
    }
}

fn create_options(request: CreateTaskRequest) -> Result<CreateOptions, VerbError> {
    if !request.checkpoint.is_empty() {
        return Err(VerbError::Unsupported {
            what: "restoring from a checkpoint",
        });
    }
    let options = parse_options(request.options.as_ref())?;
    Ok(CreateOptions {
        id: check_id("id", &request.id)?,
        bundle: request.bundle.into(),
        rootfs: request.rootfs,
        io: IoSpec {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            owner: (options.io_uid, options.io_gid),
        },
        options,
        is_sandbox: false,
    })
}
