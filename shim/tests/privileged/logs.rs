//! The CRI log of containers: tags, rotation, a full disk.

use std::fs;
use std::time::Duration;

use axil_proto::shim::axil::ReopenLogRequest;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ttrpc::Code;

use crate::bed::{LIMIT, code, entries, eventually, privileged};

#[test]
fn privileged_log_tags_pieces_and_unfinished_lines() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let script =
            "busybox yes x | busybox tr -d '\\n' | head -c 40000; echo; echo -n unfinished";
        let c = pod.container("c1", script);
        c.run().await;
        assert_eq!(c.wait("").await, 0);
        let log = c.log();
        let shape: Vec<(&str, usize)> = log
            .iter()
            .map(|(_, tag, text)| (tag.as_str(), text.len()))
            .collect();
        assert_eq!(
            shape,
            [
                ("P", 16384),
                ("P", 16384),
                ("F", 40000 - 2 * 16384),
                ("P", 10)
            ]
        );
        c.delete("").await.unwrap();
    });
}

#[test]
fn privileged_rotation_under_load_loses_nothing() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let c = pod.container("c1", "seq 1 400000");
        c.run().await;
        let reopen = ReopenLogRequest { id: "c1".into() };
        let mut rotated = Vec::new();
        for number in 0..20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let old = bed.path(&format!("c1.log.{number}"));
            fs::rename(c.log_path(), &old).unwrap();
            pod.shim.reopen_log(&reopen, LIMIT).await.unwrap();
            assert!(c.log_path().exists());
            rotated.push(old);
        }
        assert_eq!(c.wait("").await, 0);
        rotated.push(c.log_path());
        let mut text = String::new();
        for file in &rotated {
            for (stream, tag, line) in entries(&fs::read(file).unwrap()) {
                assert_eq!(stream, "stdout");
                text.push_str(&line);
                if tag == "F" {
                    text.push('\n');
                }
            }
        }
        let expect: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
        assert!(text == expect, "{} of {} bytes", text.len(), expect.len());
        c.delete("").await.unwrap();
        assert_eq!(
            code(pod.shim.reopen_log(&reopen, LIMIT).await).0,
            Code::NOT_FOUND
        );
    });
}

#[test]
fn privileged_failed_rotation_keeps_the_log() {
    privileged(|bed| async move {
        let pod = bed.pod().await;
        let logs = bed.path("logs");
        fs::create_dir(&logs).unwrap();
        let mut c = pod.container("c1", "sleep 0.5; echo late");
        c.request.stdout = format!("cri-log://{}/0.log", logs.display());
        c.request.stderr.clear();
        c.run().await;
        let moved = bed.path("moved");
        fs::rename(&logs, &moved).unwrap();
        let reopen = ReopenLogRequest { id: "c1".into() };
        assert!(pod.shim.reopen_log(&reopen, LIMIT).await.is_err());
        assert!(!logs.exists());
        c.wait("").await;
        assert_eq!(
            entries(&fs::read(moved.join("0.log")).unwrap())[0].2,
            "late"
        );
        c.delete("").await.unwrap();

        let mut c = pod.container("c2", "sleep 1000");
        c.request.stdout.clear();
        c.request.stderr.clear();
        c.run().await;
        let reopen = ReopenLogRequest { id: "c2".into() };
        assert_eq!(
            code(pod.shim.reopen_log(&reopen, LIMIT).await).0,
            Code::FAILED_PRECONDITION
        );
        c.remove().await;
    });
}

#[test]
fn privileged_full_disk_holds_up_one_container_and_loses_nothing() {
    privileged(|bed| async move {
        let small = bed.path("small");
        fs::create_dir(&small).unwrap();
        let options = Some("size=256k");
        mount(
            Some("tmpfs"),
            &small,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        let pod = bed.pod().await;
        fs::write(small.join("ballast"), vec![0; 128 * 1024]).unwrap();
        let mut full = pod.container("full", "seq 1 100000; echo done");
        full.request.stdout = format!("cri-log://{}/0.log", small.display());
        full.request.stderr.clear();
        full.run().await;
        let log = small.join("0.log");
        eventually("the disk is full", || {
            fs::metadata(&log).is_ok_and(|m| m.len() >= 120 * 1024)
        })
        .await;

        let other = pod.container("other", "echo fine");
        other.run().await;
        assert_eq!(other.wait("").await, 0);
        assert_eq!(other.log()[0].2, "fine");
        other.delete("").await.unwrap();

        // Rotation to a place with space heals it.
        tokio::time::sleep(Duration::from_millis(200)).await;
        fs::remove_file(small.join("ballast")).unwrap();
        let options = Some("size=64m");
        mount(
            Some("tmpfs"),
            &small,
            Some("tmpfs"),
            MsFlags::MS_REMOUNT,
            options,
        )
        .unwrap();
        let shim = pod.pid();
        // The shim has its own copy of the mount table, but the file system is the same one.
        assert!(fs::metadata(format!("/proc/{shim}")).is_ok());
        assert_eq!(full.wait("").await, 0);
        let text: Vec<String> = entries(&fs::read(&log).unwrap())
            .into_iter()
            .map(|e| e.2)
            .collect();
        assert_eq!(text.len(), 100_001);
        assert!(
            text.iter()
                .zip(1..=100_000)
                .all(|(line, n)| *line == n.to_string())
        );
        full.delete("").await.unwrap();
        umount2(&small, MntFlags::MNT_DETACH).unwrap();
    });
}
