//! Container logs in the CRI format: tags, streams, long lines, rotation without a lost line.

use std::fs;
use std::path::Path;

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::eventually;
use axil_integration::lab::Lab;

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
        eventually("the log grows", || {
            (fs::metadata(&path).ok()?.len() > 4096).then_some(())
        });
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
