//! Documents as they lie on disk, sound and hostile.

use super::*;

const YAML: &str = "\
cdiVersion: 0.7.0
kind: vendor.com/gpu
devices:
- name: 0
  containerEdits:
    env: [GPU=0]
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/null
      fileMode: 0660
      permissions: rw
";

fn read(dir: &Path) -> ReadDocuments {
    read_all(&[dir.to_owned()]).unwrap()
}

fn resolve(dir: &Path, name: &str) -> Result<Injection, Failure> {
    let read = read(dir);
    let names = [name.parse().unwrap()];
    let edits = cdi::select(&read.files, &names)
        .map_err(|error| refused(&error, &[dir.to_owned()], &read.unusable))?;
    look_up(edits)
}

#[test]
fn a_document_in_yaml_is_read_and_its_node_looked_up() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("gpu.yaml"), YAML).unwrap();
    let injection = resolve(dir.path(), "vendor.com/gpu=0").unwrap();
    assert_eq!(injection.env, ["GPU=0"]);
    let node = CdiNode {
        path: "/dev/gpu0".into(),
        kind: DeviceKind::Char,
        major: 1,
        minor: 3,
        mode: 0o660,
        uid: None,
        gid: None,
        access: "rw".into(),
    };
    assert_eq!(injection.nodes, [node]);
}

#[test]
fn nodes_are_what_the_document_says_or_what_the_host_has() {
    let check = |node: &str, expected: Result<(&str, u32, u32, &str), &str>| {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            r#"{{"cdiVersion": "1.0.0", "kind": "v/c",
                "devices": [{{"name": "d", "containerEdits": {{"deviceNodes": [{node}]}}}}]}}"#
        );
        fs::write(dir.path().join("d.json"), text).unwrap();
        match (resolve(dir.path(), "v/c=d"), expected) {
            (Ok(injection), Ok(expected)) => {
                let node = &injection.nodes[0];
                let seen = (
                    node.kind.letter(),
                    node.major,
                    node.minor,
                    node.access.as_str(),
                );
                assert_eq!(seen, expected);
            }
            (Err(failure), Err(expected)) => {
                assert_eq!(failure.class, Class::FailedPrecondition);
                assert!(failure.message.contains(expected), "{failure}");
            }
            (seen, expected) => panic!("{expected:?}: {seen:?}"),
        }
    };
    check(r#"{"path": "/dev/zero"}"#, Ok(("c", 1, 5, "rwm")));
    check(
        r#"{"path": "/dev/x", "type": "b", "major": 8, "minor": 1, "permissions": "none"}"#,
        Ok(("b", 8, 1, "")),
    );
    check(r#"{"path": "/dev/x", "type": "p"}"#, Ok(("p", 0, 0, "rwm")));
    check(
        r#"{"path": "/dev/zero", "type": "b"}"#,
        Err("on the host is c"),
    );
    check(
        r#"{"path": "/etc/passwd"}"#,
        Err("\"/etc/passwd\": is no device"),
    );
    check(
        r#"{"path": "/dev/no-such"}"#,
        Err("\"/dev/no-such\": No such file"),
    );
}

#[test]
fn an_unusable_document_hides_its_own_devices_only_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("good.yaml"), YAML).unwrap();
    fs::write(at("bad.yaml"), "devices: [").unwrap();
    fs::write(at("bad.json"), YAML).unwrap();
    fs::write(at("ignored.txt"), "x").unwrap();
    fs::create_dir(at("below.yaml")).unwrap();
    nix::unistd::mkfifo(&at("fifo.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let large = fs::File::create(at("large.json")).unwrap();
    large.set_len(1 << 40).unwrap();
    assert!(resolve(dir.path(), "vendor.com/gpu=0").is_ok());
    let unusable: Vec<_> = read(dir.path()).unusable;
    let names = unusable
        .iter()
        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap());
    let names: Vec<_> = names.collect();
    let expected = [
        "bad.json",
        "bad.yaml",
        "below.yaml",
        "fifo.json",
        "large.json",
    ];
    assert_eq!(names, expected);
    let failure = resolve(dir.path(), "vendor.com/gpu=1").unwrap_err();
    assert_eq!(failure.class, Class::FailedPrecondition);
    assert!(failure.message.contains("bad.json: "), "{failure}");
    assert!(
        failure.message.contains("\"vendor.com/gpu=1\""),
        "{failure}"
    );
}

#[test]
fn aliases_do_not_blow_up() {
    let mut text =
        String::from("cdiVersion: 0.7.0\nkind: v/c\na0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..20 {
        let before = level - 1;
        let nine = format!("*a{before}, ").repeat(9);
        text.push_str(&format!("a{level}: &a{level} [{nine}]\n"));
    }
    text.push_str("devices: []\n");
    assert!(parse(&text, false).is_err());
    let deep = format!("devices: {}", "[".repeat(1_000_000));
    assert!(parse(&deep, false).is_err());
    assert!(parse(&deep.replace("devices: ", ""), true).is_err());
}

#[test]
fn more_documents_than_the_bound_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..=MAX_DOCUMENTS {
        fs::write(dir.path().join(format!("{number}.json")), "{}").unwrap();
    }
    let failure = read_all(&[dir.path().to_owned()]).unwrap_err();
    assert!(
        failure.message.contains("more than 512 documents"),
        "{failure}"
    );
    assert!(
        read_all(&[dir.path().join("not-there")])
            .unwrap()
            .files
            .is_empty()
    );
}
