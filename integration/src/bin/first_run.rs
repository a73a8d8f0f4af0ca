//! `first-run`: shows axil doing its main job on this machine, in namespaces and directories of its own,
//! and removes everything again.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use axil_integration::binaries::{Binaries, Purpose};
use axil_integration::build::{ContainerBuilder, PodBuilder};
use axil_integration::eventually::poll;
use axil_integration::images::{Image, nginx};
use axil_integration::isolate::isolate;
use axil_integration::lab::Ground;
use axil_integration::leakcheck::{self, Snapshot};
use axil_integration::node::{Node, NodeOptions, Pod};
use axil_integration::packages::{self, Package};
use axil_integration::registry::{Registry, RegistryOptions};
use axil_integration::say::{bytes, elapsed, out};
use axil_integration::{children, http};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

const USAGE: &str = "usage: first-run [--keep]

Builds axil, starts it in private namespaces with its built-in network and no configuration, pulls a web
server from a registry on loopback, runs it in a pod, shows it at work, and removes everything.

  --keep   leave the daemon and the pod running until ctrl-C, and print how to use them";

const PACKAGES: &[Package] = &[
    Package::new(
        "iproute2",
        "ip",
        "brings loopback up in the private network",
    ),
    Package::new("nftables", "nft", "looks for packet rules left behind"),
    Package::new("busybox-static", "busybox", "the shell of the image"),
    Package::new("skopeo", "skopeo", "pushes the image to the registry"),
    Package::new(
        "docker-registry",
        "docker-registry",
        "the registry the image is pulled from",
    )
    .without_service("docker-registry"),
    Package::new("nginx-light", "nginx", "the web server put into the image")
        .without_service("nginx"),
];

const HOST_PORT: i32 = 18080;

fn main() -> ExitCode {
    let keep = match env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--keep" => true,
        [flag] if matches!(flag.as_str(), "--help" | "-h") => {
            out(USAGE);
            return ExitCode::SUCCESS;
        }
        other => {
            out(format!("unknown arguments: {}\n\n{USAGE}", other.join(" ")));
            return ExitCode::from(2);
        }
    };
    match tour(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out(format!("\nfailed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn tour(keep: bool) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "a container runtime needs root; run this as root or with sudo"
    );
    let begun = Instant::now();
    out("axil, a first run: everything happens in private namespaces and one directory below /tmp");
    step("packages of this machine", || packages::install(PACKAGES))?;
    let binaries = step("build (a few minutes the first time)", || {
        Binaries::build(Purpose::Run)
    })?;
    show_sizes(&binaries);

    let ground = step("private mount and network namespaces", || {
        isolate()?;
        hide("/etc/cni")?;
        hide("/etc/axil")?;
        children::adopt_orphans()?;
        let ground = Ground::claim("run")?;
        ground.clear_on_signal();
        Ok(ground)
    })?;
    let before = Snapshot::take(&ground)?;
    let (_registry, image, reference) = step("a registry with a web server image", || {
        let registry = Registry::start(&ground.dir().join("registry"), RegistryOptions::default())?;
        let image = nginx::image()?;
        let reference = registry.push(&image, "axil/nginx", "1")?;
        Ok((registry, image, reference))
    })?;
    out(format!(
        "     {reference}: {} layers, {}",
        image.layers.len(),
        bytes(image.size())
    ));

    let mut node = step("start axild, unconfigured", || {
        let options = NodeOptions {
            unconfigured: true,
            ..NodeOptions::default()
        };
        Node::start(&ground, &binaries, options)
    })?;
    let shown = show(&ground, &node, &reference, &image);
    if let Err(error) = shown {
        out(format!(
            "\n--- the end of axild's log\n{}\n---",
            tail(&node.log(), 40)
        ));
        return Err(error);
    }
    if keep {
        let ip = shown.unwrap_or_default();
        explain_use(&ground, &node, &ip)?;
        loop {
            // Ctrl-C is handled by the thread that clears the ground.
            thread::sleep(Duration::from_secs(3600));
        }
    }
    step("remove the pod and the image", || node.empty())?;
    let leaks = leakcheck::leaks(&ground, &before, &node);
    let status = node.term();
    ensure!(
        status.is_none_or(|s| s.success()),
        "axild ended with {status:?}"
    );
    let dir = ground.dir().to_owned();
    drop(ground);
    if !leaks.is_empty() {
        bail!("left behind by the node:\n  {}", leaks.join("\n  "));
    }
    ensure!(!dir.exists(), "{} could not be removed", dir.display());
    out("     no mount, namespace, cgroup, process, link, address, packet rule or file is left");
    out(format!("done in {}", elapsed(begun.elapsed())));
    Ok(())
}

/// Runs the pod and shows it; answers its address.
fn show(ground: &Ground, node: &Node, reference: &str, image: &Image) -> Result<String> {
    let version = node.version().context("ask axild for its version")?;
    out(format!(
        "     {} {}, CRI {}, resident {}",
        version.runtime_name,
        version.runtime_version,
        version.runtime_api_version,
        memory(node.pid(), "VmRSS:")
    ));
    let id = step("pull the image", || {
        node.pull(reference).context("pull the image")
    })?;
    out(format!("     {id}"));
    ensure!(
        id.contains(&image.config) || id.contains(&image.manifest),
        "another image came"
    );

    let logs = ground.dir().join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    let pod = PodBuilder::new("first", &logs.to_string_lossy())
        .cgroup_parent(ground.cgroup())
        .host_port(HOST_PORT, 80);
    let pod = step("run a pod", || node.up(&pod).context("run the pod"))?;
    let container = ContainerBuilder::new("web", reference);
    let container = step("run nginx in it", || {
        node.run_in(&pod, &container).context("run the container")
    })?;

    let status = node
        .pod_status(&pod.id)
        .context("ask for the pod's status")?;
    let network = status.network.unwrap_or_default();
    let mut hosts: Vec<(String, u16)> = vec![(network.ip.clone(), 80)];
    hosts.extend(network.additional_ips.iter().map(|ip| (ip.ip.clone(), 80)));
    hosts.push((
        "127.0.0.1".to_owned(),
        u16::try_from(HOST_PORT).context("a port")?,
    ));
    step("ask it over HTTP", || {
        hosts.iter().try_for_each(|(host, port)| ask(host, *port))
    })?;

    step("its log, as the kubelet reads it", || show_log(node, &pod))?;
    step("a command in it", || {
        let done = node
            .exec(
                &container,
                &["/bin/sh", "-c", "hostname; ps -o pid,user,args"],
                10,
            )
            .context("exec in the container")?;
        ensure!(
            done.exit_code == 0,
            "the command exited with {}",
            done.exit_code
        );
        indent(&String::from_utf8_lossy(&done.stdout));
        Ok(())
    })?;
    step("what it uses", || show_stats(node, &container))?;
    step("where its start-up time went", || {
        show_timelines(node, &pod, &container)
    })?;
    Ok(network.ip)
}

/// Prints a title, does the work, prints how long it took.
fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    out(format!("==> {title}"));
    let begun = Instant::now();
    let result = work()?;
    out(format!("     ({})", elapsed(begun.elapsed())));
    Ok(result)
}

fn indent(text: &str) {
    for line in text.lines() {
        out(format!("     {line}"));
    }
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Hides a directory of the machine's configuration behind an empty one, in this namespace only.
fn hide(path: &str) -> Result<()> {
    if Path::new(path).is_dir() {
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755,size=64k"),
        )
        .with_context(|| format!("hide {path}"))?;
    }
    Ok(())
}

fn show_sizes(binaries: &Binaries) {
    for name in ["axild", "containerd-shim-axil-v1", "runc-lite"] {
        let size = fs::metadata(binaries.dir().join(name)).map_or(0, |meta| meta.len());
        out(format!("     {name}: {}", bytes(size)));
    }
}

/// A value of `/proc/<pid>/status` or `smaps_rollup`, in words.
fn memory(pid: i32, key: &str) -> String {
    let file = if key == "Pss:" {
        "smaps_rollup"
    } else {
        "status"
    };
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or_else(|| "unknown".to_owned(), |kib| bytes(kib * 1024))
}

fn ask(host: &str, port: u16) -> Result<()> {
    let answer = poll(Duration::from_secs(10), || {
        http::get(host, port, "/")
            .ok()
            .filter(|answer| answer.status == 200)
    });
    let answer = answer.with_context(|| format!("{host} port {port} does not serve the page"))?;
    ensure!(
        answer.body == nginx::PAGE,
        "another page came: {}",
        answer.body
    );
    out(format!(
        "     {host} port {port}: {} {}",
        answer.status,
        answer.body.trim()
    ));
    Ok(())
}

fn show_log(node: &Node, pod: &Pod) -> Result<()> {
    let served = poll(Duration::from_secs(5), || {
        let log = node.log_of(pod, "web");
        log.contains("GET / HTTP").then_some(log)
    });
    let log = served.context("the log does not show the request")?;
    indent(&tail(&log, 3));
    Ok(())
}

fn show_stats(node: &Node, container: &str) -> Result<()> {
    let stats = node.container_stats(container);
    let stats = stats.context("ask for the stats")?;
    let value = |v: Option<axil_proto::cri::UInt64Value>| v.unwrap_or_default().value;
    let used = stats.memory.unwrap_or_default();
    let cpu = value(stats.cpu.unwrap_or_default().usage_core_nano_seconds);
    out(format!(
        "     memory {}, working set {}, CPU {}",
        bytes(value(used.usage_bytes)),
        bytes(value(used.working_set_bytes)),
        elapsed(Duration::from_nanos(cpu))
    ));
    for process in children::abandoned() {
        if process.command.contains("containerd-shim-axil-v1") {
            out(format!(
                "     its shim: proportional {}",
                memory(process.pid, "Pss:")
            ));
        }
    }
    Ok(())
}

fn show_timelines(node: &Node, pod: &Pod, container: &str) -> Result<()> {
    let answer = node
        .pod_status_verbose(&pod.id)
        .context("ask for the pod's timeline")?;
    show_timeline("pod", answer.info.get("timeline"))?;
    let answer = node
        .container_status_verbose(container)
        .context("ask for the timeline")?;
    show_timeline("container", answer.info.get("timeline"))
}

fn show_timeline(what: &str, text: Option<&String>) -> Result<()> {
    let text = text.with_context(|| format!("the {what}'s verbose status has no timeline"))?;
    let timeline: Value = serde_json::from_str(text).context("parse the timeline")?;
    let steps = timeline["steps"].as_array();
    out(format!("     {what}"));
    for step in steps.context("find the steps of the timeline")? {
        let micros = |key: &str| step[key].as_u64().unwrap_or_default();
        out(format!(
            "       {:<28} at {:>8} µs  took {:>8} µs",
            step["step"].as_str().unwrap_or("?"),
            micros("started_us"),
            micros("took_us")
        ));
    }
    Ok(())
}

fn explain_use(ground: &Ground, node: &Node, ip: &str) -> Result<()> {
    let socket = node.socket();
    let endpoint = format!("unix://{}", socket.display());
    let enter = format!("nsenter --target {} --mount --net", node.pid());
    let manifests = ground.dir().join("manifests");
    fs::create_dir_all(&manifests).with_context(|| format!("create {}", manifests.display()))?;
    let file = ground.dir().join("kubelet.yaml");
    fs::write(&file, kubelet_configuration(ground))
        .with_context(|| format!("write {}", file.display()))?;
    out("\nThe daemon and the pod keep running until ctrl-C. From another terminal, as root:");
    out(format!("  crictl --runtime-endpoint {endpoint} ps"));
    out(format!("  {enter} curl http://{ip}/"));
    out(format!(
        "  {enter} curl http://127.0.0.1:{}/metrics",
        node.metrics_port()
    ));
    out(format!(
        "  {enter} kubelet --config {} --container-runtime-endpoint {endpoint} --root-dir {}/kubelet",
        file.display(),
        ground.dir().display()
    ));
    out(
        "It runs in namespaces of its own; that is why some lines begin with nsenter. The kubelet runs the\n\
         pods whose manifests lie in the manifests directory beside its configuration.",
    );
    Ok(())
}

/// A kubelet without an API server, for the socket of this daemon.
fn kubelet_configuration(ground: &Ground) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         authentication:\n  webhook:\n    enabled: false\n  anonymous:\n    enabled: true\n\
         authorization:\n  mode: AlwaysAllow\ncgroupDriver: cgroupfs\nfailCgroupV1: false\n\
         failSwapOn: false\nmakeIPTablesUtilChains: false\nstaticPodPath: {}/manifests\n",
        ground.dir().display()
    )
}
