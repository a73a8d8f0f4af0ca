//! A thin typed client of the CRI socket: one method per call, each with a deadline, none async.

mod observe;

use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axil_proto::cri::image_service_client::ImageServiceClient;
use axil_proto::cri::runtime_service_client::RuntimeServiceClient;
use axil_proto::cri::{
    AttachRequest, AuthConfig, Container, ContainerConfig, ContainerFilter, ContainerStats,
    ContainerStatsRequest, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse,
    CreateContainerRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse, Image,
    ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    ListContainersRequest, ListImagesRequest, ListPodSandboxRequest, PodSandbox, PodSandboxConfig,
    PodSandboxFilter, PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse,
    PortForwardRequest, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, ReopenContainerLogRequest, RunPodSandboxRequest, RuntimeConfigRequest,
    RuntimeConfigResponse, StartContainerRequest, StatusRequest, StatusResponse,
    StopContainerRequest, StopPodSandboxRequest, VersionRequest, VersionResponse,
};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// How long a call may take before the client gives up.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// ExecSync answers up to 16 MiB per stream.
const MAX_ANSWER: usize = 64 << 20;

/// What a call answers: a message, or the status the daemon sent.
pub type Answer<T> = Result<T, Status>;

/// A connection to one daemon. It belongs to the thread that made it.
#[derive(Debug)]
pub struct Cri {
    reactor: Runtime,
    runtime: RefCell<RuntimeServiceClient<Channel>>,
    images: RefCell<ImageServiceClient<Channel>>,
    deadline: Duration,
}

impl Cri {
    /// A client of the socket; it connects with the first call and again after the daemon restarted.
    ///
    /// # Errors
    /// When the path is not fit for an address.
    pub fn new(socket: &Path) -> Result<Self> {
        let reactor = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a reactor")?;
        let address = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(address.clone())
            .with_context(|| format!("parse the address {address}"))?;
        let channel = {
            let _entered = reactor.enter();
            endpoint.connect_lazy()
        };
        let runtime =
            RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let images = ImageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(Self {
            reactor,
            runtime: RefCell::new(runtime),
            images: RefCell::new(images),
            deadline: DEADLINE,
        })
    }

    /// Gives up sooner or later than [`DEADLINE`].
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Gives up sooner or later from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Makes any call of the runtime service, for those without a method here.
    ///
    /// # Errors
    /// The status the daemon sent, or that nothing came in time.
    pub fn runtime<T, F>(&self, call: impl FnOnce(RuntimeServiceClient<Channel>) -> F) -> Answer<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client = self.runtime.borrow().clone();
        self.wait(call(client))
    }

    fn images<T, F>(&self, call: impl FnOnce(ImageServiceClient<Channel>) -> F) -> Answer<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client = self.images.borrow().clone();
        self.wait(call(client))
    }

    fn wait<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Answer<T> {
        let bounded = async { tokio::time::timeout(self.deadline, call).await };
        match self.reactor.block_on(bounded) {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "no answer within {:?}",
                self.deadline
            ))),
        }
    }
}

/// Writes the body of a method: one request to one call.
macro_rules! call {
    ($self:ident . $service:ident . $method:ident ( $request:expr )) => {{
        let request = Request::new($request);
        $self.$service(|mut client| async move { client.$method(request).await })
    }};
}

/// The runtime service.
#[expect(
    clippy::missing_errors_doc,
    reason = "each answers the daemon's status"
)]
impl Cri {
    /// Version.
    pub fn version(&self) -> Answer<VersionResponse> {
        call!(self.runtime.version(VersionRequest {
            version: "v1".to_owned()
        }))
    }

    /// Status.
    pub fn status(&self, verbose: bool) -> Answer<StatusResponse> {
        call!(self.runtime.status(StatusRequest { verbose }))
    }

    /// RuntimeConfig.
    pub fn runtime_config(&self) -> Answer<RuntimeConfigResponse> {
        call!(self.runtime.runtime_config(RuntimeConfigRequest {}))
    }

    /// RunPodSandbox; answers the pod's id.
    pub fn run_pod(&self, config: &PodSandboxConfig) -> Answer<String> {
        self.run_pod_with("", config)
    }

    /// RunPodSandbox with a runtime handler.
    pub fn run_pod_with(&self, handler: &str, config: &PodSandboxConfig) -> Answer<String> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        call!(self.runtime.run_pod_sandbox(request)).map(|answer| answer.pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub fn stop_pod(&self, id: &str) -> Answer<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        call!(self.runtime.stop_pod_sandbox(request)).map(|_| ())
    }

    /// RemovePodSandbox.
    pub fn remove_pod(&self, id: &str) -> Answer<()> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        call!(self.runtime.remove_pod_sandbox(request)).map(|_| ())
    }

    /// PodSandboxStatus, the whole answer.
    pub fn pod_status_verbose(&self, id: &str) -> Answer<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        call!(self.runtime.pod_sandbox_status(request))
    }

    /// PodSandboxStatus, the status in it.
    pub fn pod_status(&self, id: &str) -> Answer<PodSandboxStatus> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        call!(self.runtime.pod_sandbox_status(request))
            .and_then(|answer| answer.status.ok_or_else(|| Status::internal("no status")))
    }

    /// ListPodSandbox.
    pub fn pods(&self, filter: Option<PodSandboxFilter>) -> Answer<Vec<PodSandbox>> {
        call!(
            self.runtime
                .list_pod_sandbox(ListPodSandboxRequest { filter })
        )
        .map(|list| list.items)
    }

    /// CreateContainer; answers the container's id.
    pub fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Answer<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        call!(self.runtime.create_container(request)).map(|answer| answer.container_id)
    }

    /// StartContainer.
    pub fn start(&self, id: &str) -> Answer<()> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        call!(self.runtime.start_container(request)).map(|_| ())
    }

    /// StopContainer with a grace period in seconds.
    pub fn stop(&self, id: &str, grace: i64) -> Answer<()> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace,
        };
        call!(self.runtime.stop_container(request)).map(|_| ())
    }

    /// RemoveContainer.
    pub fn remove(&self, id: &str) -> Answer<()> {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        call!(self.runtime.remove_container(request)).map(|_| ())
    }

    /// ContainerStatus, the whole answer.
    pub fn container_status_verbose(&self, id: &str) -> Answer<ContainerStatusResponse> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        call!(self.runtime.container_status(request))
    }

    /// ContainerStatus, the status in it.
    pub fn container_status(&self, id: &str) -> Answer<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        call!(self.runtime.container_status(request))
            .and_then(|answer| answer.status.ok_or_else(|| Status::internal("no status")))
    }

    /// ListContainers.
    pub fn containers(&self, filter: Option<ContainerFilter>) -> Answer<Vec<Container>> {
        call!(
            self.runtime
                .list_containers(ListContainersRequest { filter })
        )
        .map(|list| list.containers)
    }

    /// ExecSync; a `timeout` of zero seconds is none.
    pub fn exec(&self, id: &str, cmd: &[&str], timeout: i64) -> Answer<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: cmd.iter().map(|&word| word.to_owned()).collect(),
            timeout,
        };
        call!(self.runtime.exec_sync(request))
    }

    /// Exec; answers the URL.
    pub fn exec_url(&self, id: &str, cmd: &[&str], stdin: bool, tty: bool) -> Answer<String> {
        let answer = call!(self.runtime.exec(ExecRequest {
            container_id: id.to_owned(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        }))?;
        Ok(answer.url)
    }

    /// Attach; answers the URL.
    pub fn attach_url(&self, id: &str, stdin: bool, tty: bool) -> Answer<String> {
        let answer = call!(self.runtime.attach(AttachRequest {
            container_id: id.to_owned(),
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        }))?;
        Ok(answer.url)
    }

    /// PortForward; answers the URL.
    pub fn port_forward_url(&self, pod: &str, ports: &[i32]) -> Answer<String> {
        let answer = call!(self.runtime.port_forward(PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: ports.to_vec(),
        }))?;
        Ok(answer.url)
    }

    /// ReopenContainerLog.
    pub fn reopen_log(&self, id: &str) -> Answer<()> {
        let request = ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        call!(self.runtime.reopen_container_log(request)).map(|_| ())
    }

    /// ContainerStats.
    pub fn container_stats(&self, id: &str) -> Answer<ContainerStats> {
        let request = ContainerStatsRequest {
            container_id: id.to_owned(),
        };
        call!(self.runtime.container_stats(request))
            .and_then(|answer| answer.stats.ok_or_else(|| Status::internal("no stats")))
    }
}

/// The image service.
#[expect(
    clippy::missing_errors_doc,
    reason = "each answers the daemon's status"
)]
impl Cri {
    /// PullImage; answers the image's reference.
    pub fn pull(&self, image: &str) -> Answer<String> {
        self.pull_with(image, None)
    }

    /// PullImage with credentials.
    pub fn pull_with(&self, image: &str, auth: Option<AuthConfig>) -> Answer<String> {
        self.pull_for(image, auth, None)
    }

    /// PullImage for a pod.
    pub fn pull_for(
        &self,
        image: &str,
        auth: Option<AuthConfig>,
        pod: Option<&PodSandboxConfig>,
    ) -> Answer<String> {
        let request = PullImageRequest {
            image: Some(spec(image)),
            auth,
            sandbox_config: pod.cloned(),
        };
        call!(self.images.pull_image(request)).map(|answer| answer.image_ref)
    }

    /// ListImages.
    pub fn list_images(&self) -> Answer<Vec<Image>> {
        call!(self.images.list_images(ListImagesRequest { filter: None })).map(|list| list.images)
    }

    /// ImageStatus; `None` for an image that is not here.
    pub fn image_status(&self, image: &str) -> Answer<Option<Image>> {
        self.image_status_verbose(image).map(|answer| answer.image)
    }

    /// ImageStatus, verbose, the whole answer.
    pub fn image_status_verbose(&self, image: &str) -> Answer<ImageStatusResponse> {
        let request = ImageStatusRequest {
            image: Some(spec(image)),
            verbose: true,
        };
        call!(self.images.image_status(request))
    }

    /// RemoveImage.
    pub fn remove_image(&self, image: &str) -> Answer<()> {
        let request = RemoveImageRequest {
            image: Some(spec(image)),
        };
        call!(self.images.remove_image(request)).map(|_| ())
    }

    /// ImageFsInfo.
    pub fn image_fs_info(&self) -> Answer<ImageFsInfoResponse> {
        call!(self.images.image_fs_info(ImageFsInfoRequest {}))
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        user_specified_image: image.to_owned(),
        ..ImageSpec::default()
    }
}
