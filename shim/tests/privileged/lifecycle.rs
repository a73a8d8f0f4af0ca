//! Containers from create to delete, and what must be true at each point.

use std::fs;
use std::time::Duration;

use axil_proto::shim::Status;
use axil_proto::shim::task::{
    CloseIoRequest, PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest, UpdateTaskRequest,
};
use axil_proto::shim::types::Mount;
use prost_types::Any;
use serde_json::json;
use ttrpc::Code;

use crate::bed::{LIMIT, code, eventually, make_fifo, make_root, privileged};

#[test]
fn privileged_container_lives_and_leaves_its_exit() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "echo out; echo err >&2; exit 3");
        assert_eq!(code(c.state().await).0, Code::NOT_FOUND);
        let pid = c.create().await;
        let state = c.state().await.unwrap();
        assert_eq!((state.status(), state.pid), (Status::Created, pid));
        let again = code(pod.task.create(&c.request, LIMIT).await);
        assert_eq!(again.0, Code::ALREADY_EXISTS);
        assert!(again.1.contains("c1"), "{again:?}");
        assert!(!bed.cgroups().is_empty());

        assert_eq!(c.start("").await.unwrap(), pid);
        assert_eq!(c.wait("").await, 3);
        let state = c.state().await.unwrap();
        assert_eq!((state.status(), state.exit_status), (Status::Stopped, 3));
        let record = c.exit_record();
        assert_eq!(record["exit_status"], 3);
        assert_eq!(record["oom_killed"], false);
        assert_eq!(code(c.start("").await).0, Code::FAILED_PRECONDITION);
        assert_eq!(code(c.kill("", 15, false).await).0, Code::NOT_FOUND);

        let mut log = c.log();
        log.sort();
        let entry = |stream: &str, text: &str| (stream.to_owned(), "F".to_owned(), text.to_owned());
        assert_eq!(log, [entry("stderr", "err"), entry("stdout", "out")]);
        assert_eq!(c.delete("").await.unwrap().exit_status, 3);
        assert_eq!(code(c.delete("").await).0, Code::NOT_FOUND);
        let left: Vec<_> = bed
            .cgroups()
            .into_iter()
            .filter(|p| p.ends_with("c1"))
            .collect();
        assert_eq!(left, Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn privileged_signals_reach_the_process() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container(
            "c1",
            "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done",
        );
        c.run().await;
        eventually("the trap is set", || {
            fs::metadata(c.log_path()).is_ok_and(|m| m.len() > 0)
        })
        .await;
        assert_eq!(code(c.kill("", 65, false).await).0, Code::INVALID_ARGUMENT);
        assert_eq!(code(c.delete("").await).0, Code::FAILED_PRECONDITION);
        c.kill("", 15, false).await.unwrap();
        assert_eq!(c.wait("").await, 7);
        c.delete("").await.unwrap();

        let c = pod.container("c2", "sleep 100");
        c.run().await;
        c.kill("", 9, false).await.unwrap();
        assert_eq!(c.wait("").await, 137);
        assert_eq!(c.exit_record()["oom_killed"], false);
        c.delete("").await.unwrap();

        // Signals that the server blocks for itself must not be blocked or ignored in containers.
        let c = pod.container(
            "c3",
            "grep -E 'Sig(Blk|Ign)' /proc/self/status | busybox cat",
        );
        let mut c = c;
        c.spec["process"]["args"] = json!([
            "/bin/busybox",
            "grep",
            "-E",
            "Sig(Blk|Ign)",
            "/proc/self/status"
        ]);
        c.run().await;
        c.wait("").await;
        // HUP, INT, PIPE, TERM and CHLD; others may be inherited from who runs the test.
        let ours = 1 << 0 | 1 << 1 | 1 << 12 | 1 << 14 | 1 << 16;
        for (_, _, line) in c.log() {
            let mask = u64::from_str_radix(line.split_once(':').unwrap().1.trim(), 16).unwrap();
            assert_eq!(mask & ours, 0, "{line}");
        }
        c.delete("").await.unwrap();
    });
}

#[test]
fn privileged_created_container_can_be_deleted() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "true");
        c.create().await;
        assert_eq!(c.delete("").await.unwrap().exit_status, 137);
        assert!(bed.cgroups().iter().all(|p| !p.ends_with("c1")));
    });
}

#[test]
fn privileged_failed_create_leaves_nothing() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let mut c = pod.container("c1", "true");
        c.spec["process"]["args"] = json!(["/bin/nonexistent"]);
        c.write();
        // Which of the two finds out depends on the runtime.
        let failed = match pod.task.create(&c.request, LIMIT).await {
            Ok(_) => {
                let failed = code(c.start("").await);
                c.delete("").await.unwrap();
                failed
            }
            Err(error) => code::<()>(Err(error)),
        };
        assert_eq!(failed.0, Code::INVALID_ARGUMENT, "{failed:?}");
        assert!(failed.1.contains("/bin/nonexistent"), "{failed:?}");
        assert_eq!(code(c.state().await).0, Code::NOT_FOUND);
        assert!(bed.cgroups().iter().all(|p| !p.ends_with("c1")));

        let mut c = pod.container("c2", "true");
        c.write();
        c.request.stdout = "cri-log:///nonexistent/dir/0.log".into();
        let failed = code(pod.task.create(&c.request, LIMIT).await);
        assert_eq!(failed.0, Code::INVALID_ARGUMENT);
        assert!(failed.1.contains("/nonexistent/dir/0.log"), "{failed:?}");
        c.request.stdout = "relative".into();
        assert_eq!(
            code(pod.task.create(&c.request, LIMIT).await).0,
            Code::INVALID_ARGUMENT
        );
        c.request.bundle = "/nonexistent".into();
        let failed = code(pod.task.create(&c.request, LIMIT).await);
        assert!(failed.1.contains("bundle"), "{failed:?}");
    });
}

#[test]
fn privileged_shared_pid_namespace_is_killed_whole() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let mut c = pod.container("c1", "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & echo up; sleep 0.3; exit 5");
        // No PID namespace of its own: what the init leaves behind would live on.
        c.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}]);
        c.run().await;
        assert_eq!(c.wait("").await, 5);
        assert!(procs(&bed).is_empty());
        c.delete("").await.unwrap();
    });
}

fn procs(bed: &crate::bed::Bed) -> String {
    let read =
        |dir: std::path::PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    bed.cgroups().into_iter().map(read).collect()
}

#[test]
fn privileged_pause_resume_update_and_pids() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000 & wait");
        let pid = c.run().await;
        pod.task
            .pause(&PauseRequest { id: "c1".into() }, LIMIT)
            .await
            .unwrap();
        assert_eq!(c.state().await.unwrap().status(), Status::Paused);
        pod.task
            .resume(&ResumeRequest { id: "c1".into() }, LIMIT)
            .await
            .unwrap();
        assert_eq!(c.state().await.unwrap().status(), Status::Running);
        let again = pod
            .task
            .resume(&ResumeRequest { id: "c1".into() }, LIMIT)
            .await;
        assert_eq!(code(again).0, Code::FAILED_PRECONDITION);

        let update = UpdateTaskRequest {
            id: "c1".into(),
            resources: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
                value: br#"{"pids":{"limit":77}}"#.to_vec(),
            }),
            ..UpdateTaskRequest::default()
        };
        pod.task.update(&update, LIMIT).await.unwrap();
        let limits: String = bed
            .cgroups()
            .iter()
            .filter_map(|dir| fs::read_to_string(dir.join("pids.max")).ok())
            .collect();
        assert!(limits.contains("77"), "{limits}");

        let pids = pod
            .task
            .pids(&PidsRequest { id: "c1".into() }, LIMIT)
            .await
            .unwrap();
        assert_eq!(pids.processes.len(), 2);
        assert!(pids.processes.iter().any(|p| p.pid == pid));

        // A paused container dies of a kill all the same.
        pod.task
            .pause(&PauseRequest { id: "c1".into() }, LIMIT)
            .await
            .unwrap();
        c.kill("", 9, false).await.unwrap();
        assert_eq!(c.wait("").await, 137);
        c.delete("").await.unwrap();
    });
}

#[test]
fn privileged_terminal_has_a_size_and_a_log() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let stdin = bed.path("stdin");
        make_fifo(&stdin);
        let mut c = pod.container("c1", "read line; echo got $line; stty size; exit 4");
        c.spec["process"]["terminal"] = json!(true);
        c.request.terminal = true;
        c.request.stdin = stdin.display().to_string();
        c.run().await;
        let size = ResizePtyRequest {
            id: "c1".into(),
            width: 132,
            height: 43,
            ..ResizePtyRequest::default()
        };
        pod.task.resize_pty(&size, LIMIT).await.unwrap();
        fs::write(&stdin, "hello\n").unwrap();
        assert_eq!(c.wait("").await, 4);
        let log = c.log();
        assert!(
            log.iter().all(|(stream, _, _)| stream == "stdout"),
            "{log:?}"
        );
        let texts: Vec<&str> = log.iter().map(|(_, _, text)| text.trim_end()).collect();
        assert!(texts.contains(&"got hello"), "{texts:?}");
        assert!(texts.contains(&"43 132"), "{texts:?}");
        c.delete("").await.unwrap();
        let sockets = fs::read_dir(bed.path("s")).unwrap().flatten();
        let left: Vec<_> = sockets
            .filter(|e| e.file_name().to_string_lossy().starts_with("pty"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn privileged_stdin_survives_its_client_and_ends_by_close() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let stdin = bed.path("stdin");
        make_fifo(&stdin);
        let mut c = pod.container("c1", "cat; echo end");
        c.request.stdin = stdin.display().to_string();
        c.run().await;
        fs::write(&stdin, "one\n").unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(c.state().await.unwrap().status(), Status::Running);
        fs::write(&stdin, "two\n").unwrap();
        let close = CloseIoRequest {
            id: "c1".into(),
            stdin: true,
            ..CloseIoRequest::default()
        };
        pod.task.close_io(&close, LIMIT).await.unwrap();
        assert_eq!(c.wait("").await, 0);
        let texts: Vec<String> = c.log().into_iter().map(|(_, _, text)| text).collect();
        assert_eq!(texts, ["one", "two", "end"]);
        c.delete("").await.unwrap();
    });
}

#[test]
fn privileged_rootfs_mounts_come_and_go() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let lower = bed.path("lower");
        make_root(&lower);
        let mut c = pod.container("c1", "echo mounted");
        c.request.rootfs = vec![Mount {
            r#type: "bind".into(),
            source: lower.display().to_string(),
            target: String::new(),
            options: vec!["rbind".into(), "ro".into()],
        }];
        c.write();
        let root = c.bundle.join("rootfs");
        fs::remove_dir_all(&root).unwrap();
        pod.task.create(&c.request, LIMIT).await.unwrap();
        let mounted = |pid: u32| {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
            mounts.contains(root.to_str().unwrap())
        };
        assert!(mounted(pod.pid()));
        c.start("").await.unwrap();
        assert_eq!(c.wait("").await, 0);
        assert_eq!(c.log()[0].2, "mounted");
        c.delete("").await.unwrap();
        assert!(!mounted(pod.pid()));
        assert!(lower.join("bin/busybox").exists());
    });
}
