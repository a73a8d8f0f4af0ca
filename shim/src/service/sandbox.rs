//! The sandbox service, version 1.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axil_proto::shim::sandbox::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, Sandbox, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
    StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use axil_proto::shim::types::Platform;
use prost_types::Timestamp;

use super::{check_id, parse_options};
use crate::error::VerbError;
use crate::pod::{Pod, detached};

/// Serves the sandbox of a pod.
#[derive(Debug)]
pub struct SandboxService(pub Arc<Pod>);

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(&self, request: CreateSandboxRequest) -> Answer<CreateSandboxResponse> {
        if !request.rootfs.is_empty() {
            let what = "mounting the root file system of a sandbox";
            return Err(VerbError::Unsupported { what }.into());
        }
        let id = check_id("sandbox_id", &request.sandbox_id)?;
        let options = parse_options(request.options.as_ref())?;
        let bundle = Path::new(&request.bundle_path);
        self.0.create_sandbox(id, bundle, options)?;
        Ok(CreateSandboxResponse {})
    }

    async fn start_sandbox(&self, request: StartSandboxRequest) -> Answer<StartSandboxResponse> {
        let pod = Arc::clone(&self.0);
        let view = detached(async move { pod.start_sandbox(&request.sandbox_id).await }).await?;
        Ok(StartSandboxResponse {
            pid: view.pid,
            created_at: view.created_at.map(Timestamp::from),
            spec: None,
        })
    }

    async fn platform(&self, request: PlatformRequest) -> Answer<PlatformResponse> {
        self.0.find_sandbox(&request.sandbox_id)?;
        // Named as in image manifests.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(PlatformResponse {
            platform: Some(Platform {
                os: std::env::consts::OS.to_owned(),
                architecture: architecture.to_owned(),
                ..Platform::default()
            }),
        })
    }

    async fn stop_sandbox(&self, request: StopSandboxRequest) -> Answer<StopSandboxResponse> {
        let pod = Arc::clone(&self.0);
        let grace = Duration::from_secs(request.timeout_secs.into());
        let work = async move { pod.stop_sandbox(&request.sandbox_id, grace).await };
        detached(work).await?;
        Ok(StopSandboxResponse {})
    }

    async fn wait_sandbox(&self, request: WaitSandboxRequest) -> Answer<WaitSandboxResponse> {
        let exit = self.0.wait_sandbox(&request.sandbox_id).await?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(Timestamp::from(exit.at)),
        })
    }

    async fn sandbox_status(&self, request: SandboxStatusRequest) -> Answer<SandboxStatusResponse> {
        let sandbox = self.0.find_sandbox(&request.sandbox_id)?;
        let view = self.0.view(&sandbox);
        let state = if view.ready {
            "SANDBOX_READY"
        } else {
            "SANDBOX_NOTREADY"
        };
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: view.pid,
            state: state.to_owned(),
            created_at: view.created_at.map(Timestamp::from),
            exited_at: view.exit.map(|e| Timestamp::from(e.at)),
            ..SandboxStatusResponse::default()
        })
    }

    async fn ping_sandbox(&self, request: PingRequest) -> Answer<PingResponse> {
        self.0.find_sandbox(&request.sandbox_id)?;
        Ok(PingResponse {})
    }

    async fn shutdown_sandbox(
        &self,
        request: ShutdownSandboxRequest,
    ) -> Answer<ShutdownSandboxResponse> {
        let pod = Arc::clone(&self.0);
        detached(async move { pod.shutdown_sandbox(&request.sandbox_id).await }).await?;
        Ok(ShutdownSandboxResponse {})
    }
}
