//! Well-known names that cross process borders: annotations, environment, log URIs, file names.

/// Name of the shim binary of the bundled runtime.
pub const SHIM_BINARY: &str = "containerd-shim-axil-v1";

/// Name of the bundled OCI runtime binary.
pub const RUNTIME_BINARY: &str = "runc-lite";

/// The containerd namespace axild names to its shims.
pub const SHIM_NAMESPACE: &str = "k8s.io";

/// Scheme of a task's stdout and stderr when the shim itself writes the CRI log.
///
/// `cri-log:///var/log/pods/…/0.log` for both streams makes the shim write both, tagged, to one file.
/// The path is absolute and not percent-encoded. Below a directory that ends in `/./` no link is followed.
pub const CRI_LOG_SCHEME: &str = "cri-log://";

/// A task's stdout and stderr when nothing is logged, but clients may attach.
pub const CRI_LOG_NONE: &str = "cri-log:none";

/// OCI annotation that tells what a container is: [`CONTAINER_TYPE_SANDBOX`] or [`CONTAINER_TYPE_CONTAINER`].
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// Value of [`CONTAINER_TYPE`] for the sandbox process.
pub const CONTAINER_TYPE_SANDBOX: &str = "sandbox";
/// Value of [`CONTAINER_TYPE`] for an ordinary container.
pub const CONTAINER_TYPE_CONTAINER: &str = "container";
/// OCI annotation with the id of the pod a container belongs to.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// OCI annotation with the name of the container.
pub const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// OCI annotation with the name of the pod.
pub const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
/// OCI annotation with the namespace of the pod.
pub const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
/// OCI annotation with the uid of the pod.
pub const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";

/// File in a task's bundle with the exit of its process, written by the shim before it tells anyone.
///
/// JSON: `{"version":1,"exit_status":N,"exited_at":"RFC 3339","oom_killed":bool}`.
pub const EXIT_RECORD: &str = "exit.json";

/// Environment variable with the ttrpc address a shim publishes events to.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";
