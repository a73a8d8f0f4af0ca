//! The sandbox service: with a process and without one, and the end of the shim.

use std::fs;
use std::path::Path;
use std::time::Duration;

use axil_proto::shim::sandbox::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest,
    SandboxStatusRequest, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest,
    WaitSandboxRequest,
};
use axil_proto::shim::task::ShutdownRequest;
use ttrpc::Code;

use crate::bed::{LIMIT, Pod, code, eventually, is_shim, privileged};

async fn create(pod: &Pod<'_>) {
    let request = CreateSandboxRequest {
        sandbox_id: "pod".into(),
        bundle_path: pod.bundle.display().to_string(),
        options: Some(pod.bed.options()),
        ..CreateSandboxRequest::default()
    };
    pod.sandbox.create_sandbox(&request, LIMIT).await.unwrap();
    let again = pod.sandbox.create_sandbox(&request, LIMIT).await;
    assert_eq!(code(again).0, Code::ALREADY_EXISTS);
}

async fn state(pod: &Pod<'_>) -> (String, u32) {
    let request = SandboxStatusRequest {
        sandbox_id: "pod".into(),
        verbose: false,
    };
    let status = pod.sandbox.sandbox_status(&request, LIMIT).await.unwrap();
    (status.state, status.pid)
}

async fn stop(pod: &Pod<'_>) {
    let request = StopSandboxRequest {
        sandbox_id: "pod".into(),
        timeout_secs: 2,
    };
    pod.sandbox.stop_sandbox(&request, LIMIT).await.unwrap();
    // Stopping what is stopped is no error.
    pod.sandbox.stop_sandbox(&request, LIMIT).await.unwrap();
}

#[test]
fn privileged_sandbox_without_a_process() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let start = StartSandboxRequest {
            sandbox_id: "pod".into(),
        };
        assert_eq!(
            code(pod.sandbox.start_sandbox(&start, LIMIT).await).0,
            Code::NOT_FOUND
        );
        create(&pod).await;
        assert_eq!(state(&pod).await.0, "SANDBOX_NOTREADY");
        let started = pod.sandbox.start_sandbox(&start, LIMIT).await.unwrap();
        assert_eq!(started.pid, pod.pid());
        assert_eq!(state(&pod).await.0, "SANDBOX_READY");
        let again = code(pod.sandbox.start_sandbox(&start, LIMIT).await);
        assert_eq!(again.0, Code::FAILED_PRECONDITION);
        let ping = PingRequest {
            sandbox_id: "pod".into(),
        };
        pod.sandbox.ping_sandbox(&ping, LIMIT).await.unwrap();
        let platform = PlatformRequest {
            sandbox_id: "pod".into(),
        };
        let platform = pod.sandbox.platform(&platform, LIMIT).await.unwrap();
        assert_eq!(platform.platform.unwrap().os, "linux");
        let metrics = SandboxMetricsRequest {
            sandbox_id: "pod".into(),
        };
        let metrics = code(pod.sandbox.sandbox_metrics(&metrics, LIMIT).await);
        assert_eq!(metrics.0, Code::UNIMPLEMENTED);

        let waiter = pod.sandbox.clone();
        let waiting = tokio::spawn(async move {
            let request = WaitSandboxRequest {
                sandbox_id: "pod".into(),
            };
            waiter.wait_sandbox(&request, LIMIT).await
        });
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        let shutdown = ShutdownSandboxRequest {
            sandbox_id: "pod".into(),
        };
        let refused = code(pod.sandbox.shutdown_sandbox(&shutdown, LIMIT).await);
        assert_eq!(refused.0, Code::FAILED_PRECONDITION);
        assert!(refused.1.contains("c1"), "{refused:?}");
        c.remove().await;
        // containerd asks this after each container; the pod is still in use.
        pod.task
            .shutdown(&ShutdownRequest::default(), LIMIT)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop(&pod).await;
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 0);
        assert_eq!(state(&pod).await.0, "SANDBOX_NOTREADY");
        let shim = pod.pid().to_string();
        pod.sandbox
            .shutdown_sandbox(&shutdown, LIMIT)
            .await
            .unwrap();
        eventually("the shim has ended", || !is_shim(&shim)).await;
        let socket = pod.address.strip_prefix("unix://").unwrap();
        assert!(!Path::new(socket).exists());
    });
}

#[test]
fn privileged_sandbox_with_a_process() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("pod", "trap 'exit 0' TERM; while :; do sleep 0.05; done");
        c.write();
        create(&pod).await;
        let start = StartSandboxRequest {
            sandbox_id: "pod".into(),
        };
        let started = pod.sandbox.start_sandbox(&start, LIMIT).await.unwrap();
        assert_ne!(started.pid, pod.pid());
        assert_eq!(state(&pod).await, ("SANDBOX_READY".into(), started.pid));
        // Start answers when the init has been let go: its execve follows.
        let comm = format!("/proc/{}/comm", started.pid);
        eventually("the process of the pod is the shell", || {
            fs::read_to_string(&comm).unwrap().trim() == "sh"
        })
        .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop(&pod).await;
        assert_eq!(state(&pod).await.0, "SANDBOX_NOTREADY");
        let wait = WaitSandboxRequest {
            sandbox_id: "pod".into(),
        };
        let exit = pod.sandbox.wait_sandbox(&wait, LIMIT).await.unwrap();
        assert_eq!(exit.exit_status, 0);
        let shim = pod.pid().to_string();
        let shutdown = ShutdownSandboxRequest {
            sandbox_id: "pod".into(),
        };
        pod.sandbox
            .shutdown_sandbox(&shutdown, LIMIT)
            .await
            .unwrap();
        eventually("the shim has ended", || !is_shim(&shim)).await;
        assert!(bed.cgroups().iter().all(|p| !p.ends_with("pod")));
    });
}
