//! Container logs in the CRI format: tags, streams, long lines, rotation without a lost line.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::eventually;
use axil_integration::lab::Lab;
use axil_proto::cri::ContainerState;
use nix::sys::stat::Mode;
use tonic::Code;

/// The tag and text of each entry of one stream: `<time> <stream> <tag> <text>`.
fn entries<'a>(log: &'a str, stream: &str) -> Vec<(&'a str, &'a str)> {
    log.lines()
        .map(|line| line.splitn(4, ' ').collect::<Vec<_>>())
        .filter(|fields| fields.len() == 4 && fields[1] == stream)
        .map(|fields| {
            assert!(
                fields[0].contains('T') && fields[0].len() >= 20,
                "a time: {}",
                fields[0]
            );
            (fields[2], fields[3])
        })
        .collect()
}

#[test]
fn privileged_lines_are_tagged_by_stream_and_completeness() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("tags")).unwrap();
    let script = "echo one; echo two >&2; printf 'no newline'";
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell(script))
        .unwrap();
    node.exit_of(&id);
    let log = node.log_of(&pod, "c");
    assert_eq!(entries(&log, "stdout"), [("F", "one"), ("P", "no newline")]);
    assert_eq!(entries(&log, "stderr"), [("F", "two")]);
    lab.close(node);
}

#[test]
fn privileged_a_long_line_comes_in_pieces() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("long")).unwrap();
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short";
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell(script))
        .unwrap();
    node.exit_of(&id);
    let log = node.log_of(&pod, "c");
    let seen: Vec<_> = entries(&log, "stdout")
        .iter()
        .map(|(tag, text)| (*tag, text.len()))
        .collect();
    assert_eq!(seen, [("P", 16384), ("P", 16384), ("F", 7232), ("F", 5)]);
    lab.close(node);
}

#[test]
fn privileged_rotation_loses_no_line() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("turning")).unwrap();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo end";
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell(script))
        .unwrap();
    let path = Path::new(&pod.config.log_directory).join("c.log");
    let mut parts = Vec::new();
    for turn in 0..5 {
        // Everything may have been written before the last turn was over; the log grows no more then.
        let grown = eventually("the log grows or all is written", || {
            let state = node.container_status(&id).unwrap().state();
            let grown = fs::metadata(&path).ok()?.len() > 4096;
            (grown || state == ContainerState::ContainerExited).then_some(grown)
        });
        if !grown {
            break;
        }
        let part = path.with_extension(format!("log.{turn}"));
        fs::rename(&path, &part).unwrap();
        match node.reopen_log(&id) {
            Ok(()) => parts.push(part),
            // It may have ended meanwhile; the kubelet does not reopen then.
            Err(_) => {
                fs::rename(&part, &path).unwrap();
                break;
            }
        }
    }
    node.exit_of(&id);
    parts.push(path);
    let log: String = parts
        .iter()
        .map(|part| fs::read_to_string(part).unwrap())
        .collect();
    let lines: Vec<_> = entries(&log, "stdout")
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert_eq!(lines.len(), 20_001, "{} parts", parts.len());
    assert!(
        lines
            .iter()
            .take(20_000)
            .enumerate()
            .all(|(i, line)| *line == format!("line {i}"))
    );
    assert!(parts.len() > 1, "no rotation took place");
    lab.close(node);
}

#[test]
fn privileged_a_container_without_a_log_path_runs() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("silent")).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("head -c 1000000 /dev/zero")
        .with(|config| config.log_path.clear());
    let id = node.run_in(&pod, &container).unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 0);
    lab.close(node);
}

#[test]
fn privileged_cve_2025_0750_a_log_stays_in_its_directory() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    for wrong in ["relative", "/var/log/../../etc", "/a\0b"] {
        let pod = lab
            .pod("wrong")
            .with(|config| wrong.clone_into(&mut config.log_directory));
        let status = node.up(&pod).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{wrong:?}: {status}");
        assert!(status.message().contains("log_directory"), "{status}");
    }

    // The directory itself may be reached by a link, as /var/log may be one; below it none is followed.
    let (real, elsewhere) = (lab.unused("logs"), lab.unused("elsewhere"));
    fs::create_dir(&real).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    let linked = lab.unused("linked");
    symlink(&real, &linked).unwrap();
    symlink(&elsewhere, real.join("parent")).unwrap();
    symlink("directory", real.join("inside")).unwrap();
    symlink(elsewhere.join("target"), real.join("link.log")).unwrap();
    fs::create_dir_all(real.join("directory")).unwrap();
    nix::unistd::mkfifo(&real.join("fifo.log"), Mode::S_IRWXU).unwrap();
    let pod = lab
        .pod("logs")
        .with(|config| config.log_directory = linked.display().to_string());
    let pod = node.up(&pod).unwrap();
    let container = |path: &str| {
        ContainerBuilder::new("c", &image)
            .shell("echo written; exec sleep 300")
            .with(|config| path.clone_into(&mut config.log_path))
    };
    let absolute = elsewhere.join("absolute.log").display().to_string();
    for path in [
        "../out.log",
        "directory/../../elsewhere/0.log",
        &absolute,
        "parent/0.log",
        "inside/0.log",
        "link.log",
        "fifo.log",
        "directory",
        "missing/0.log",
    ] {
        let status = node.run_in(&pod, &container(path)).unwrap_err();
        assert!(status.message().contains(path), "{path}: {status}");
        assert_eq!(node.containers(None).unwrap(), [], "{path}");
    }

    let id = node.run_in(&pod, &container("directory/0.log")).unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    eventually("the log is written", || {
        let log = read(&real.join("directory/0.log"));
        log.contains("written").then_some(())
    });
    let status = node.container_status(&id).unwrap();
    let told = linked.join("directory/0.log").display().to_string();
    assert_eq!(status.log_path, told);
    // What was no link as the container began is none when its log is opened again.
    fs::rename(real.join("directory"), real.join("moved")).unwrap();
    symlink(&elsewhere, real.join("directory")).unwrap();
    assert!(node.reopen_log(&id).is_err());
    fs::remove_file(real.join("directory")).unwrap();
    fs::rename(real.join("moved"), real.join("directory")).unwrap();
    fs::rename(
        real.join("directory/0.log"),
        real.join("directory/0.log.old"),
    )
    .unwrap();
    node.reopen_log(&id).unwrap();
    assert!(real.join("directory/0.log").is_file());
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    lab.close(node);
}
