//! Crashes, restarts, memory kills: what must survive them, and what must be cleaned up.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axil_proto::shim::Status;
use axil_proto::shim::event_service::{Events, ForwardRequest, serve_events};
use axil_proto::shim::task::{DeleteResponse, StateRequest, WaitRequest};
use prost::Message as _;
use serde_json::json;

use crate::bed::{LIMIT, NAMESPACE, eventually, is_shim, privileged, shim};

#[test]
fn privileged_memory_kill_is_told() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let mut c = pod.container("c1", "x=xxxxxxxx; while :; do x=$x$x; done");
        c.spec["linux"]["resources"] =
            json!({"memory": {"limit": 16 * 1024 * 1024, "swap": 16 * 1024 * 1024}});
        c.run().await;
        assert_eq!(c.wait("").await, 137);
        let record = c.exit_record();
        assert_eq!(record["oom_killed"], true, "{record}");
        c.delete("").await.unwrap();
    });
}

#[test]
fn privileged_clients_that_vanish_change_nothing() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1; exit 6");
        c.run().await;
        let wait = WaitRequest {
            id: "c1".into(),
            exec_id: String::new(),
        };
        // Many waits, most of whose connections are cut; one is cut within a frame.
        let mut kept = Vec::new();
        for number in 0..20 {
            let client = pod.another().await;
            let request = wait.clone();
            let waiting = tokio::spawn(async move { client.wait(&request, LIMIT).await });
            if number % 4 == 0 {
                kept.push(waiting);
            } else {
                tokio::task::yield_now().await;
                waiting.abort();
            }
        }
        let path = pod.address.strip_prefix("unix://").unwrap();
        let mut torn = std::os::unix::net::UnixStream::connect(path).unwrap();
        std::io::Write::write_all(&mut torn, &[0, 0, 1]).unwrap();
        drop(torn);
        for waiting in kept {
            assert_eq!(waiting.await.unwrap().unwrap().exit_status, 6);
        }
        c.delete("").await.unwrap();
    });
}

#[test]
fn privileged_start_is_idempotent_and_replaces_a_stale_socket() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let first = pod.pid();
        let path = Path::new(pod.address.strip_prefix("unix://").unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(path), mode(path.parent().unwrap())), (0o600, 0o700));
        let again = bed.run_start(&pod.bundle, "pod");
        assert!(again.status.success(), "{again:?}");
        assert!(String::from_utf8_lossy(&again.stdout).contains(&pod.address));
        assert_eq!(pod.pid(), first, "no second server");
        let address = fs::read_to_string(pod.bundle.join("address")).unwrap();
        assert_eq!(address, pod.address);

        // A container of the pod finds the pod's shim.
        let mut c = pod.container("c1", "true");
        c.spec["annotations"] = json!({"io.kubernetes.cri.sandbox-id": "pod"});
        c.write();
        let joined = bed.run_start(&c.bundle, "c1");
        assert!(
            String::from_utf8_lossy(&joined.stdout).contains(&pod.address),
            "{joined:?}"
        );

        kill(first);
        eventually("the shim is gone", || !is_shim(&first.to_string())).await;
        assert!(path.exists(), "a killed shim leaves its socket");
        let replaced = bed.run_start(&pod.bundle, "pod");
        assert!(replaced.status.success(), "{replaced:?}");
        assert_ne!(pod.pid(), first);
        assert!(is_shim(&pod.pid().to_string()));
        // No socket of ours is abstract (CVE-2020-15257).
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        assert!(
            !sockets
                .lines()
                .any(|l| l.contains("@") && l.contains(&bed.name)),
            "{sockets}"
        );
    });
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn privileged_start_refuses_bad_requests() {
    privileged(|bed| async move {
        let bundle = bed.path("pod");
        fs::create_dir(&bundle).unwrap();
        let check = |socket_dir: &str, part: &str| {
            let params = axil_proto::shim::bootstrap::BootstrapParams {
                instance_id: "pod".into(),
                namespace: NAMESPACE.into(),
                socket_dir: Some(socket_dir.into()),
                ..Default::default()
            };
            let output = bed.run_shim(&bundle, "pod", "start", &params.encode_to_vec());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(part), "{said}");
        };
        check("relative", "socket_dir");
        check(&format!("/{}", "x".repeat(120)), "socket_dir");
        let open = bed.path("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        check(open.to_str().unwrap(), "0700");
        assert!(!bundle.join("shim.pid").exists());

        // The request is cut off, not swallowed (containerd 45b7de28).
        let mut child = Command::new(shim())
            .args(["-namespace", NAMESPACE, "-id", "pod", "start"])
            .current_dir(&bundle)
            .stdin(fs::File::open("/dev/zero").unwrap())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        assert!(!child.wait().unwrap().success());
    });
}

#[test]
fn privileged_delete_cleans_up_after_a_killed_shim() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "setsid sleep 1000 & sleep 1000");
        let pid = c.run().await;
        let ended = pod.container("ended", "exit 4");
        ended.run().await;
        assert_eq!(ended.wait("").await, 4);
        let shim = pod.pid();
        kill(shim);
        eventually("the shim is gone", || !is_shim(&shim.to_string())).await;
        assert!(
            Path::new(&format!("/proc/{pid}")).exists(),
            "the container lives on"
        );

        let output = bed.run_shim(&c.bundle, "c1", "delete", b"");
        assert!(output.status.success(), "{output:?}");
        let response = DeleteResponse::decode(output.stdout.as_slice()).unwrap();
        assert_eq!((response.pid, response.exit_status), (pid, 137));
        assert_eq!(c.exit_record()["exit_status"], 137);
        let output = bed.run_shim(&ended.bundle, "ended", "delete", b"");
        let response = DeleteResponse::decode(output.stdout.as_slice()).unwrap();
        assert_eq!(response.exit_status, 4, "the recorded exit counts");
        eventually("no cgroup is left", || {
            bed.cgroups().iter().all(|p| !p.ends_with("c1"))
        })
        .await;
        // Once more is no error.
        assert!(
            bed.run_shim(&c.bundle, "c1", "delete", b"")
                .status
                .success()
        );
    });
}

#[test]
fn privileged_server_ignores_signals_but_kill() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        for name in ["TERM", "INT", "HUP", "PIPE"] {
            let status = Command::new("kill")
                .args(["-s", name, &pod.pid().to_string()])
                .status();
            assert!(status.unwrap().success());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(c.state().await.unwrap().status(), Status::Running);
        // Its own session, and none of the starter's streams.
        let stat = fs::read_to_string(format!("/proc/{}/stat", pod.pid())).unwrap();
        let session = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .nth(3)
            .unwrap();
        assert_eq!(session, pod.pid().to_string());
        for fd in [0, 1] {
            let target = fs::read_link(format!("/proc/{}/fd/{fd}", pod.pid())).unwrap();
            assert_eq!(target, Path::new("/dev/null"));
        }
        c.remove().await;
    });
}

/// Keeps the topics it is sent.
struct Recorder(Arc<Mutex<Vec<String>>>);

#[async_trait::async_trait]
impl Events for Recorder {
    async fn forward(&self, request: ForwardRequest) -> ttrpc::Result<()> {
        let envelope = request.envelope.unwrap();
        assert_eq!(envelope.namespace, NAMESPACE);
        self.0.lock().unwrap().push(envelope.topic);
        Ok(())
    }
}

#[test]
fn privileged_events_come_in_order() {
    privileged(|bed| async move {
        let topics = Arc::new(Mutex::new(Vec::new()));
        let address = format!("unix://{}", bed.path("events.sock").display());
        let mut server = ttrpc::asynchronous::Server::new()
            .bind(&address)
            .unwrap()
            .register_service(serve_events(Arc::new(Recorder(Arc::clone(&topics)))));
        server.start().await.unwrap();
        let bundle = bed.path("pod");
        fs::create_dir(&bundle).unwrap();
        let params = axil_proto::shim::bootstrap::BootstrapParams {
            instance_id: "pod".into(),
            namespace: NAMESPACE.into(),
            socket_dir: Some(bed.path("s").display().to_string()),
            containerd_ttrpc_address: bed.path("events.sock").display().to_string(),
            ..Default::default()
        };
        let output = bed.run_shim(&bundle, "pod", "start", &params.encode_to_vec());
        let pod = bed.attach(bundle, &output).await;
        let c = pod.container("c1", "sleep 0.2");
        c.run().await;
        c.add_exec("e1", "true", Path::new("")).await.unwrap();
        c.start("e1").await.unwrap();
        c.wait("e1").await;
        c.delete("e1").await.unwrap();
        c.wait("").await;
        c.delete("").await.unwrap();
        let expect = [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/delete",
            "/tasks/exit",
            "/tasks/delete",
        ];
        eventually("all events", || {
            topics.lock().unwrap().len() == expect.len()
        })
        .await;
        assert_eq!(*topics.lock().unwrap(), expect);
    });
}

#[test]
fn privileged_unknown_ids_are_not_found() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let state = StateRequest {
            id: "nobody".into(),
            exec_id: String::new(),
        };
        let (code, message) = crate::bed::code(pod.task.state(&state, LIMIT).await);
        assert_eq!(code, ttrpc::Code::NOT_FOUND);
        assert!(message.contains("nobody"));
    });
}
