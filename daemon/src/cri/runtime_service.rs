//! The RuntimeService of the CRI. What takes more than a few lines is in a file below, by subject.

mod events;
mod lists;
mod metrics;
mod resources;
mod stats;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axil_proto::cri;
use axil_proto::cri::runtime_service_server::RuntimeService;
use tonic::{Request, Response, Status};

use super::chunks::Streamed;
use super::convert::{container, need, pod, pod_metrics};
use super::status::{call, unimplemented};
use super::streaming::{Asked, Streaming};
use crate::domain::failure::Failure;
use crate::domain::pod::cgroup::CgroupDriver;
use crate::engine::Engine;
use crate::engine::attach::AttachOptions;
use crate::engine::exec::ExecOptions;
use crate::engine::port_forward::PortForwardOptions;
use crate::engine::session::StreamsAsked;
use crate::metrics::Metrics;

/// Version of the kubelet's API that every runtime answers (the kubelet takes no other).
const KUBELET_API_VERSION: &str = "0.1.0";

/// The RuntimeService over the engine.
#[derive(Clone)]
#[expect(
    missing_debug_implementations,
    reason = "the engine holds trait objects"
)]
pub struct RuntimeCalls {
    engine: Engine,
    metrics: Arc<Metrics>,
    streaming: Arc<Streaming>,
    config: serde_json::Value,
}

impl RuntimeCalls {
    /// Serves this engine; `config` is shown in the verbose status.
    #[must_use]
    pub fn new(
        engine: Engine,
        metrics: Arc<Metrics>,
        streaming: Arc<Streaming>,
        config: serde_json::Value,
    ) -> Self {
        Self {
            engine,
            metrics,
            streaming,
            config,
        }
    }
}

fn seconds(field: &str, value: i64) -> Result<Duration, Failure> {
    let seconds = u64::try_from(value);
    let seconds = seconds.map_err(|_| Failure::invalid(field, value, "must not be negative"))?;
    // A grace period of years is for ever: bounded so that clocks can add it.
    Ok(Duration::from_secs(seconds.min(10 * 365 * 86_400)))
}

/// Entries of a verbose status. Each is an object: crictl prints anything else as a string.
fn json_info(value: &serde_json::Value) -> HashMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries
        .map(|(key, value)| (key.clone(), value.to_string()))
        .collect()
}

#[tonic::async_trait]
impl RuntimeService for RuntimeCalls {
    async fn version(
        &self,
        _request: Request<cri::VersionRequest>,
    ) -> Result<Response<cri::VersionResponse>, Status> {
        call(&self.metrics, "Version", async {
            Ok(cri::VersionResponse {
                version: KUBELET_API_VERSION.to_owned(),
                runtime_name: "axil".to_owned(),
                runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
                runtime_api_version: "v1".to_owned(),
            })
        })
        .await
    }

    async fn status(
        &self,
        request: Request<cri::StatusRequest>,
    ) -> Result<Response<cri::StatusResponse>, Status> {
        call(&self.metrics, "Status", async {
            let condition = |kind: &str, problem: Option<(String, String)>| {
                let status = problem.is_none();
                let (reason, message) = problem.unwrap_or_default();
                cri::RuntimeCondition {
                    r#type: kind.to_owned(),
                    status,
                    reason,
                    message,
                }
            };
            let network = self.engine.network().ready().await.err();
            let conditions = vec![
                condition("RuntimeReady", None),
                condition("NetworkReady", network),
            ];
            let handlers = self.engine.handlers().all();
            let runtime_handlers = handlers.map(|(name, handler)| cri::RuntimeHandler {
                name: name.to_owned(),
                features: Some(cri::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: handler.host.recursive_read_only,
                    user_namespaces: handler.host.no_user_namespaces.is_none(),
                }),
            });
            let mut info = HashMap::new();
            if request.into_inner().verbose {
                info.insert("config".to_owned(), self.config.to_string());
                let network = self.engine.network().describe();
                info.insert("network".to_owned(), network.to_string());
            }
            Ok(cri::StatusResponse {
                status: Some(cri::RuntimeStatus { conditions }),
                info,
                runtime_handlers: runtime_handlers.collect(),
                features: Some(cri::RuntimeFeatures {
                    supplemental_groups_policy: true,
                    user_namespaces_host_network: false,
                    mount_options: true,
                }),
            })
        })
        .await
    }

    async fn runtime_config(
        &self,
        _request: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        call(&self.metrics, "RuntimeConfig", async {
            let cgroup_driver = match self.engine.cgroup_driver() {
                CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
                CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
            } as i32;
            let linux = Some(cri::LinuxRuntimeConfiguration { cgroup_driver });
            Ok(cri::RuntimeConfigResponse { linux })
        })
        .await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Result<Response<cri::RunPodSandboxResponse>, Status> {
        call(&self.metrics, "RunPodSandbox", async {
            let request = request.into_inner();
            self.engine.handlers().find(&request.runtime_handler)?;
            let config = need("config", request.config)?;
            let driver = self.engine.cgroup_driver();
            let spec = pod::spec(config, request.runtime_handler, driver)?;
            let id = self.engine.run_pod_sandbox(spec).await?;
            Ok(cri::RunPodSandboxResponse {
                pod_sandbox_id: id.to_string(),
            })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Result<Response<cri::StopPodSandboxResponse>, Status> {
        call(&self.metrics, "StopPodSandbox", async {
            self.engine
                .stop_pod_sandbox(&request.into_inner().pod_sandbox_id)
                .await?;
            Ok(cri::StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Result<Response<cri::RemovePodSandboxResponse>, Status> {
        call(&self.metrics, "RemovePodSandbox", async {
            self.engine
                .remove_pod_sandbox(&request.into_inner().pod_sandbox_id)
                .await?;
            Ok(cri::RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Result<Response<cri::PodSandboxStatusResponse>, Status> {
        call(&self.metrics, "PodSandboxStatus", async {
            let request = request.into_inner();
            let view = self.engine.pod(&request.pod_sandbox_id)?;
            let mut info = HashMap::new();
            if request.verbose {
                let pins = self.engine.namespaces(&view);
                let sandbox = view.record.phase.sandbox();
                info = json_info(&serde_json::json!({
                    "timeline": { "steps": view.record.timeline },
                    "info": {
                        "phase": view.record.phase.name(),
                        "runtimeHandler": view.record.spec.runtime_handler,
                        "pid": sandbox.and_then(|sandbox| sandbox.pid),
                        "shim": sandbox.map(|sandbox| &sandbox.shim_address),
                        "namespaces": { "user": pins.user, "net": pins.net, "ipc": pins.ipc, "uts": pins.uts },
                        "resources": view.record.whole(),
                    },
                }));
            }
            Ok(cri::PodSandboxStatusResponse {
                status: Some(pod::to_status(&view)),
                info,
                ..cri::PodSandboxStatusResponse::default()
            })
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        call(&self.metrics, "ListPodSandbox", async {
            Ok(self.pod_list(request.into_inner()))
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Result<Response<cri::CreateContainerResponse>, Status> {
        // Boxed: the request is large.
        let create = Box::pin(async {
            let request = request.into_inner();
            let spec = container::spec(need("config", request.config)?)?;
            let id = self
                .engine
                .create_container(&request.pod_sandbox_id, spec)
                .await?;
            Ok(cri::CreateContainerResponse {
                container_id: id.to_string(),
            })
        });
        call(&self.metrics, "CreateContainer", create).await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Result<Response<cri::StartContainerResponse>, Status> {
        call(&self.metrics, "StartContainer", async {
            self.engine
                .start_container(&request.into_inner().container_id)
                .await?;
            Ok(cri::StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Result<Response<cri::StopContainerResponse>, Status> {
        call(&self.metrics, "StopContainer", async {
            let request = request.into_inner();
            let grace = seconds("timeout", request.timeout)?;
            self.engine
                .stop_container(&request.container_id, grace)
                .await?;
            Ok(cri::StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
        call(&self.metrics, "RemoveContainer", async {
            self.engine
                .remove_container(&request.into_inner().container_id)
                .await?;
            Ok(cri::RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        call(&self.metrics, "ListContainers", async {
            Ok(self.container_list(request.into_inner()))
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        call(&self.metrics, "ContainerStatus", async {
            let request = request.into_inner();
            let view = self.engine.container(&request.container_id)?;
            let pod = self.engine.pod(view.pod.as_str());
            let log_directory = pod
                .map(|pod| pod.record.spec.log_directory.clone())
                .unwrap_or_default();
            let mut info = HashMap::new();
            if request.verbose {
                let bundle = self.engine.bundle(&view);
                let running = view.record.phase.is_running();
                let pid = crate::host::read_pid_file(&bundle.join("init.pid")).ok();
                info = json_info(&serde_json::json!({
                    "timeline": { "steps": view.record.timeline },
                    "info": {
                        "phase": view.record.phase.name(),
                        "pid": pid.filter(|_| running),
                        "sandboxID": view.pod.as_str(),
                        "bundle": bundle,
                        "runtimeSpec": crate::host::read_document(&bundle).await,
                    },
                }));
            }
            Ok(cri::ContainerStatusResponse {
                status: Some(container::to_status(&view, &log_directory)),
                info,
            })
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Result<Response<cri::ReopenContainerLogResponse>, Status> {
        call(&self.metrics, "ReopenContainerLog", async {
            self.engine
                .reopen_container_log(&request.into_inner().container_id)
                .await?;
            Ok(cri::ReopenContainerLogResponse {})
        })
        .await
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Result<Response<cri::ExecSyncResponse>, Status> {
        call(&self.metrics, "ExecSync", async {
            let request = request.into_inner();
            let timeout = seconds("timeout", request.timeout)?;
            let output = self
                .engine
                .exec_sync(&request.container_id, request.cmd, timeout)
                .await?;
            Ok(cri::ExecSyncResponse {
                stdout: output.stdout,
                stderr: output.stderr,
                exit_code: output.exit_code,
            })
        })
        .await
    }

    async fn exec(
        &self,
        request: Request<cri::ExecRequest>,
    ) -> Result<Response<cri::ExecResponse>, Status> {
        call(&self.metrics, "Exec", async {
            let request = request.into_inner();
            let options = ExecOptions {
                container: request.container_id,
                command: request.cmd,
                streams: StreamsAsked {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.tty,
                },
            };
            self.engine.check_exec(&options)?;
            let url = self.streaming.url(Asked::Exec(options))?;
            Ok(cri::ExecResponse { url })
        })
        .await
    }

    async fn attach(
        &self,
        request: Request<cri::AttachRequest>,
    ) -> Result<Response<cri::AttachResponse>, Status> {
        call(&self.metrics, "Attach", async {
            let request = request.into_inner();
            let options = AttachOptions {
                container: request.container_id,
                streams: StreamsAsked {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.tty,
                },
            };
            self.engine.check_attach(&options)?;
            let url = self.streaming.url(Asked::Attach(options))?;
            Ok(cri::AttachResponse { url })
        })
        .await
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Result<Response<cri::PortForwardResponse>, Status> {
        call(&self.metrics, "PortForward", async {
            let request = request.into_inner();
            let options = PortForwardOptions::new(request.pod_sandbox_id, &request.port)?;
            self.engine.check_port_forward(&options)?;
            let url = self.streaming.url(Asked::PortForward(options))?;
            Ok(cri::PortForwardResponse { url })
        })
        .await
    }

    // ---- not built yet: each answers UNIMPLEMENTED and is listed in the README ----

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Result<Response<cri::UpdateContainerResourcesResponse>, Status> {
        call(&self.metrics, "UpdateContainerResources", async {
            self.change_container(request.into_inner()).await
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Result<Response<cri::ContainerStatsResponse>, Status> {
        call(&self.metrics, "ContainerStats", async {
            self.stats_of_container(request.into_inner()).await
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        call(&self.metrics, "ListContainerStats", async {
            Ok(self.container_stats_list(request.into_inner()).await)
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Result<Response<cri::PodSandboxStatsResponse>, Status> {
        call(&self.metrics, "PodSandboxStats", async {
            self.stats_of_pod(request.into_inner()).await
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Result<Response<cri::ListPodSandboxStatsResponse>, Status> {
        call(&self.metrics, "ListPodSandboxStats", async {
            Ok(self.pod_stats_list(request.into_inner()).await)
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<cri::UpdateRuntimeConfigResponse>, Status> {
        call(&self.metrics, "UpdateRuntimeConfig", async {
            self.change_runtime_config(request.into_inner())
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        _request: Request<cri::CheckpointContainerRequest>,
    ) -> Result<Response<cri::CheckpointContainerResponse>, Status> {
        Err(unimplemented(&self.metrics, "CheckpointContainer"))
    }

    async fn checkpoint_pod(
        &self,
        _request: Request<cri::CheckpointPodRequest>,
    ) -> Result<Response<cri::CheckpointPodResponse>, Status> {
        Err(unimplemented(&self.metrics, "CheckpointPod"))
    }

    async fn restore_pod(
        &self,
        _request: Request<cri::RestorePodRequest>,
    ) -> Result<Response<cri::RestorePodResponse>, Status> {
        Err(unimplemented(&self.metrics, "RestorePod"))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Result<Response<cri::ListMetricDescriptorsResponse>, Status> {
        call(&self.metrics, "ListMetricDescriptors", async {
            Ok(cri::ListMetricDescriptorsResponse {
                descriptors: pod_metrics::descriptors(),
            })
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<cri::ListPodSandboxMetricsResponse>, Status> {
        call(&self.metrics, "ListPodSandboxMetrics", async {
            self.pod_metrics_list().await
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<cri::UpdatePodSandboxResourcesResponse>, Status> {
        call(&self.metrics, "UpdatePodSandboxResources", async {
            self.change_pod(request.into_inner()).await
        })
        .await
    }

    type StreamPodSandboxesStream = Streamed<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        call(&self.metrics, "StreamPodSandboxes", async {
            Ok(self.pod_stream(request.into_inner()))
        })
        .await
    }

    type StreamContainersStream = Streamed<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        call(&self.metrics, "StreamContainers", async {
            Ok(self.container_stream(request.into_inner()))
        })
        .await
    }

    type StreamContainerStatsStream = Streamed<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        call(&self.metrics, "StreamContainerStats", async {
            Ok(self.container_stats_stream(request.into_inner()).await)
        })
        .await
    }

    type StreamPodSandboxStatsStream = Streamed<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        call(&self.metrics, "StreamPodSandboxStats", async {
            Ok(self.pod_stats_stream(request.into_inner()).await)
        })
        .await
    }

    type GetContainerEventsStream = Streamed<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _request: Request<cri::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        call(&self.metrics, "GetContainerEvents", async {
            let listener = self.engine.listen()?;
            Ok(Box::pin(events::EventStream(listener)) as Self::GetContainerEventsStream)
        })
        .await
    }

    type StreamPodSandboxMetricsStream = Streamed<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        call(&self.metrics, "StreamPodSandboxMetrics", async {
            self.pod_metrics_stream().await
        })
        .await
    }
}
