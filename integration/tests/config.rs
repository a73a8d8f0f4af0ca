//! The configuration file: what is wrong in it is refused with the key, the value and a suggestion.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use axil_integration::children::{self, Running};
use axil_integration::lab::Lab;

/// Starts the daemon with a configuration that must not be taken; answers what it said.
fn refused(lab: &Lab, config: &str) -> String {
    let (file, log) = (lab.unused("wrong.toml"), lab.unused("wrong.log"));
    std::fs::write(&file, config).unwrap();
    let mut command = std::process::Command::new(lab.binaries().axild());
    command.arg("--config").arg(&file);
    command
        .arg("--root")
        .arg(lab.dir().join("r"))
        .arg("--state")
        .arg(lab.dir().join("s"));
    command
        .arg("--listen")
        .arg(format!("unix://{}/x.sock", lab.dir().display()));
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap());
    let mut process = Running::start(&mut command).unwrap();
    let status = process
        .wait(Duration::from_secs(10))
        .expect("it ends by itself");
    assert!(!status.success() && status.code().is_some(), "{status}");
    std::fs::read_to_string(&log).unwrap()
}

#[test]
fn privileged_what_is_wrong_is_named() {
    let Some(lab) = Lab::open() else { return };
    for (config, words) in [
        ("rooot = \"/x\"", &["rooot", "root"][..]),
        (
            "[images]\nprogres_timeout = \"1s\"",
            &["progres_timeout", "progress_timeout"],
        ),
        ("[nonsense]\nx = 1", &["nonsense"]),
        (
            "[images]\nprogress_timeout = \"soon\"",
            &["progress_timeout", "soon"],
        ),
        (
            "[metrics]\nlisten = \"everywhere\"",
            &["metrics.listen", "everywhere"],
        ),
        (
            "[network]\nsubnets = [\"10.0.0.0/99\"]",
            &["subnets", "10.0.0.0/99"],
        ),
        ("[cgroups]\nparent = \"/../x\"", &["parent", "/../x"]),
        ("root = 5", &["root"]),
        ("this is no toml", &["wrong"]),
    ] {
        let said = refused(&lab, config);
        for word in words {
            assert!(
                said.contains(word),
                "{config:?}: {word:?} is not in {said:?}"
            );
        }
    }
    assert!(
        !lab.dir().join("r").exists(),
        "a refused configuration created its root"
    );
}

#[test]
fn privileged_a_state_directory_serves_one_daemon() {
    let Some(lab) = Lab::open() else { return };
    let state = lab.dir().join("s");
    std::fs::create_dir(&state).unwrap();
    let lock = std::fs::File::create(state.join("lock")).unwrap();
    lock.lock().unwrap();
    let said = refused(&lab, "");
    let words = format!("state {}: another axild uses it", state.display());
    assert!(said.contains(&words), "{said}");
    assert!(!lab.dir().join("x.sock").exists(), "it listened");
}

#[test]
fn privileged_flags_relocate_a_daemon_without_a_file() {
    let Some(lab) = Lab::open() else { return };
    let options = axil_integration::node::NodeOptions {
        unconfigured: true,
        ..Default::default()
    };
    let node = lab.node_with(options);
    node.up(&lab.pod("p").cgroup_parent(lab.ground().cgroup()))
        .unwrap();
    assert!(node.root().is_dir() && node.state().is_dir());
    lab.close(node);
}

#[test]
fn privileged_the_socket_is_for_root_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let mode = std::fs::metadata(node.socket())
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert!(mode == 0o660 || mode == 0o600, "{mode:o}");
    let said = children::read(lab.binaries().axild().to_str().unwrap(), &["--version"]).unwrap();
    assert!(said.starts_with("axild "), "{said}");
    lab.close(node);
}
