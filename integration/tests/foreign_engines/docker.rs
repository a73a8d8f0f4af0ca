//! docker, `runc-lite` as its default runtime.

use std::fs;

use axil_integration::engines::EngineLab;
use axil_integration::engines::docker::Docker;
use axil_integration::guard::Need;

const NEEDS: &[Need] = &[
    Need::Program("dockerd"),
    Need::Program("docker"),
    Need::Program("containerd"),
    Need::Program("script"),
];

#[test]
fn privileged_docker_runs_programs_and_tells_how_they_ended() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let docker = Docker::start(&lab);
    let runtime = docker
        .call(&["info", "--format", "{{.DefaultRuntime}}"])
        .ok();
    assert_eq!(runtime, "runc-lite");
    assert_eq!(docker.run(&[], "echo hello").ok(), "hello");
    assert_eq!(docker.run(&[], "exit 7").code, 7);
    // docker reads the runtime's words: 127 and 126 are what a shell would say.
    docker
        .run_program(&[], &["/no/such"])
        .fails(127, "/no/such");
    docker.run_program(&[], &["no-such"]).fails(127, "no-such");
    docker
        .run_program(&[], &["/etc/passwd"])
        .fails(126, "/etc/passwd");
    let seen = docker.run_on_terminal(&[], "tty; exit 3");
    assert_eq!(
        (seen.code, seen.out.contains("/dev/pts/0")),
        (3, true),
        "{seen:?}"
    );
    docker.stop();
    lab.close();
}

#[test]
fn privileged_docker_execs_lists_pauses_updates_and_removes() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let docker = Docker::start(&lab);
    let script = "trap 'exit 5' TERM; while :; do sleep 0.1; done";
    let first = [
        "run",
        "--detach",
        "--name=box",
        "--network=none",
        "--memory=64m",
    ];
    let image = axil_integration::engines::IMAGE;
    let _ = docker
        .call(
            &[
                &first[..],
                &["--memory-swap=64m", image, "sh", "-c", script],
            ]
            .concat(),
        )
        .ok();
    let pid = docker
        .call(&["inspect", "--format={{.State.Pid}}", "box"])
        .ok();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains(docker.cgroup()), "{cgroup}");
    assert_eq!(
        docker.call(&["exec", "--user=5:6", "box", "id", "-u"]).ok(),
        "5"
    );
    assert_eq!(docker.call(&["exec", "box", "sh", "-c", "exit 3"]).code, 3);
    docker
        .call(&["exec", "box", "/no/such"])
        // What docker makes of every exec that cannot start.
        .fails(126, "no such file or directory");
    let tty = docker.call(&["exec", "--tty", "box", "tty"]).ok();
    assert_eq!(tty, "/dev/pts/0");
    assert!(docker.call(&["top", "box"]).ok().contains("trap"));
    let _ = docker.call(&["pause", "box"]).ok();
    assert_eq!(
        docker
            .call(&["inspect", "--format={{.State.Status}}", "box"])
            .ok(),
        "paused"
    );
    let _ = docker.call(&["unpause", "box"]).ok();
    let _ = docker
        .call(&[
            "update",
            "--memory=96m",
            "--memory-swap=96m",
            "--pids-limit=99",
            "box",
        ])
        .ok();
    if std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        let limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(
            docker.call(&["exec", "box", "cat", limit]).ok(),
            (96 << 20).to_string()
        );
    }
    let _ = docker.call(&["restart", "--time=10", "box"]).ok();
    let _ = docker.call(&["stop", "--time=10", "box"]).ok();
    assert_eq!(
        docker
            .call(&["inspect", "--format={{.State.ExitCode}}", "box"])
            .ok(),
        "5"
    );
    let _ = docker.call(&["rm", "box"]).ok();
    docker.stop();
    lab.close();
}

#[test]
fn privileged_docker_applies_what_it_is_told() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let docker = Docker::start(&lab);
    let options = [
        "--user=5",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    ];
    let script = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status";
    let status = docker.run(&options, script).ok();
    assert_eq!(
        status,
        "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2"
    );
    let options = [
        "--read-only",
        "--tmpfs=/scratch:size=1m",
        "--hostname=inside",
        "--env=A=b",
    ];
    let script = "touch /scratch/x && hostname && echo $A; touch /x";
    docker.run(&options, script).fails(1, "inside\nb");
    let volume = format!("--volume={}:/v:ro", lab.dir().display());
    assert!(docker.run(&[&volume], "ls /v").ok().contains("rootfs.tar"));
    let options = ["--pid=host", "--ipc=host", "--uts=host", "--cgroupns=host"];
    let ask = "for k in pid ipc uts cgroup; do readlink /proc/self/ns/$k; done";
    let shared = docker.run(&options, ask).ok();
    for kind in ["pid", "ipc", "uts", "cgroup"] {
        let own = fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
        assert!(
            shared.contains(&own.display().to_string()),
            "{kind}: {shared}"
        );
    }
    let init = docker.run(&["--init"], "cat /proc/1/comm").ok();
    assert_eq!(init, "docker-init");
    assert_eq!(
        docker.run(&["--privileged"], "ls /dev/fuse").ok(),
        "/dev/fuse"
    );
    docker.stop();
    lab.close();
}
