//! Execs: output, exit codes, whole-tree kills, and that they leave nothing behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use axil_proto::shim::task::{PidsRequest, WaitRequest};
use ttrpc::Code;

use crate::bed::{LIMIT, code, eventually, make_fifo, privileged, read_fifo};

#[test]
fn privileged_exec_answers_output_and_exit() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        let out = bed.path("out");
        make_fifo(&out);
        let reader = read_fifo(&out);
        c.add_exec("e1", "seq 1 20000; exit 9", &out).await.unwrap();
        let again = code(c.add_exec("e1", "true", Path::new("")).await);
        assert_eq!(again.0, Code::ALREADY_EXISTS);
        assert_eq!(
            code(c.kill("e1", 9, false).await).0,
            Code::FAILED_PRECONDITION
        );
        c.start("e1").await.unwrap();
        assert_eq!(c.wait("e1").await, 9);
        assert_eq!(c.delete("e1").await.unwrap().exit_status, 9);
        let text = String::from_utf8(reader.join().unwrap()).unwrap();
        let expect: String = (1..=20000).map(|n| format!("{n}\n")).collect();
        assert_eq!(text, expect);
        assert_eq!(code(c.delete("e1").await).0, Code::NOT_FOUND);
        // The id is free again, and the secret document is gone.
        c.add_exec("e1", "true", Path::new("")).await.unwrap();
        // Who waits for an exec that is deleted before it ran is told so.
        let waiter = pod.another().await;
        let waiting = tokio::spawn(async move {
            let request = WaitRequest {
                id: "c1".into(),
                exec_id: "e1".into(),
            };
            waiter.wait(&request, LIMIT).await
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        c.delete("e1").await.unwrap();
        assert_eq!(code(waiting.await.unwrap()).0, Code::FAILED_PRECONDITION);
        let files = fs::read_dir(&c.bundle).unwrap().flatten();
        let left: Vec<_> = files
            .map(|f| f.file_name())
            .filter(|n| n.to_string_lossy().starts_with("exec-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        c.remove().await;
    });
}

#[test]
fn privileged_exec_that_cannot_run_says_why() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        let mut request = c.exec_request("e1", "", Path::new(""));
        request.spec.as_mut().unwrap().value =
            br#"{"args":["/bin/missing"],"cwd":"/","user":{"uid":0,"gid":0}}"#.to_vec();
        pod.task.exec(&request, LIMIT).await.unwrap();
        let failed = code(c.start("e1").await);
        assert_eq!(failed.0, Code::INVALID_ARGUMENT, "{failed:?}");
        assert!(failed.1.contains("/bin/missing"), "{failed:?}");
        c.delete("e1").await.unwrap();
        request.spec.as_mut().unwrap().value = b"nonsense".to_vec();
        assert_eq!(
            code(pod.task.exec(&request, LIMIT).await).0,
            Code::INVALID_ARGUMENT
        );
        request.exec_id = "../e".into();
        let failed = code(pod.task.exec(&request, LIMIT).await);
        assert!(failed.1.contains("exec_id"), "{failed:?}");
        assert!(
            bed.cgroups()
                .iter()
                .all(|p| !p.to_string_lossy().contains("exec-"))
        );
        c.remove().await;
    });
}

#[test]
fn privileged_exec_kill_takes_the_whole_tree() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        // A child, a grandchild in its own session, and one whose parent is gone.
        let script = "sleep 2001 & setsid sleep 2002 & (setsid sh -c 'sleep 2003 & sleep 2004' &) ; echo up; sleep 2005";
        let out = bed.path("out");
        make_fifo(&out);
        let reader = read_fifo(&out);
        c.add_exec("e1", script, &out).await.unwrap();
        c.start("e1").await.unwrap();
        let pids = async || {
            let pids = pod.task.pids(&PidsRequest { id: "c1".into() }, LIMIT).await;
            pids.unwrap().processes.len()
        };
        // The container and five that sleep.
        let deadline = Instant::now() + Duration::from_secs(10);
        while pids().await < 6 {
            assert!(Instant::now() < deadline, "{} processes", pids().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let begun = Instant::now();
        c.kill("e1", 9, true).await.unwrap();
        assert_eq!(c.wait("e1").await, 137);
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(pids().await, 1, "only the container is left");
        c.delete("e1").await.unwrap();
        assert_eq!(reader.join().unwrap(), b"up\n");
        assert!(
            bed.cgroups()
                .iter()
                .all(|p| !p.to_string_lossy().contains("exec-"))
        );
        c.remove().await;
    });
}

#[test]
fn privileged_exec_leaves_its_background_process_to_the_container() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        let out = bed.path("out");
        make_fifo(&out);
        let reader = read_fifo(&out);
        c.add_exec("e1", "echo before; sleep 2000 & exit 0", &out)
            .await
            .unwrap();
        c.start("e1").await.unwrap();
        let begun = Instant::now();
        assert_eq!(c.wait("e1").await, 0);
        c.delete("e1").await.unwrap();
        // The background process holds the pipe, and must hold up nobody.
        assert_eq!(reader.join().unwrap(), b"before\n");
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        let pids = pod
            .task
            .pids(&PidsRequest { id: "c1".into() }, LIMIT)
            .await
            .unwrap();
        assert_eq!(pids.processes.len(), 2);
        assert!(
            bed.cgroups()
                .iter()
                .all(|p| !p.to_string_lossy().contains("exec-"))
        );
        c.remove().await;
    });
}

#[test]
fn privileged_exec_without_a_reader_does_not_hang() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        let out = bed.path("out");
        make_fifo(&out);
        c.add_exec("e1", "echo nobody reads this", &out)
            .await
            .unwrap();
        c.start("e1").await.unwrap();
        assert_eq!(c.wait("e1").await, 0);
        c.delete("e1").await.unwrap();
        // More than the FIFO takes: the process waits, and dies of a kill.
        c.add_exec("e2", "seq 1 100000", &out).await.unwrap();
        c.start("e2").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        c.kill("e2", 9, true).await.unwrap();
        assert_eq!(c.wait("e2").await, 137);
        c.delete("e2").await.unwrap();
        c.remove().await;
    });
}

#[test]
fn privileged_two_hundred_execs_leave_nothing() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        let shim = pod.pid();
        let descriptors = || fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
        let exec = async |number: usize| {
            let id = format!("e{number}");
            let mut marks = vec![Instant::now()];
            c.add_exec(&id, "true", Path::new("")).await.unwrap();
            marks.push(Instant::now());
            c.start(&id).await.unwrap();
            marks.push(Instant::now());
            assert_eq!(c.wait(&id).await, 0);
            marks.push(Instant::now());
            c.delete(&id).await.unwrap();
            marks.push(Instant::now());
            marks
        };
        exec(0).await;
        let before = descriptors();
        let mut runs = Vec::new();
        for number in 1..=200 {
            runs.push(exec(number).await);
        }
        let median = |from: usize, to: usize| {
            let mut times: Vec<Duration> = runs.iter().map(|m| m[to] - m[from]).collect();
            times.sort();
            times[100]
        };
        println!(
            "exec: median {:?} (add {:?}, start {:?}, wait {:?}, delete {:?})",
            median(0, 4),
            median(0, 1),
            median(1, 2),
            median(2, 3),
            median(3, 4)
        );
        eventually("descriptors are back", || descriptors() == before).await;
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        assert_eq!(
            children.split_whitespace().count(),
            1,
            "only the container: {children}"
        );
        println!("shim memory:\n{}", memory(shim));
        c.remove().await;
    });
}

fn memory(pid: u32) -> String {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    rollup
        .lines()
        .filter(|l| {
            ["Rss", "Pss:", "Private_Dirty"]
                .iter()
                .any(|n| l.starts_with(n))
        })
        .map(|l| format!("{l}\n"))
        .collect()
}

#[test]
fn privileged_flood_left_behind_is_cut_off() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "sleep 1000");
        c.run().await;
        let out = bed.path("out");
        make_fifo(&out);
        let reader = read_fifo(&out);
        // Ends when the flood has begun, however busy the machine.
        let script =
            "busybox yes & until busybox grep -q 'wchar: [1-9]' /proc/$!/io; do :; done; exit 0";
        c.add_exec("e1", script, &out).await.unwrap();
        c.start("e1").await.unwrap();
        let begun = Instant::now();
        assert_eq!(c.wait("e1").await, 0);
        c.delete("e1").await.unwrap();
        assert!(!reader.join().unwrap().is_empty());
        assert!(
            begun.elapsed() < Duration::from_secs(25),
            "{:?}",
            begun.elapsed()
        );
        c.remove().await;
    });
}
