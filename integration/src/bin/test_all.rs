//! `test-all`: runs every test of the workspace, after installing what they need.
#![forbid(unsafe_code)]

use std::env;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use axil_integration::binaries::{self, Binaries, Purpose};
use axil_integration::children;
use axil_integration::guard::{self, find_program};
use axil_integration::packages::{self, Package};
use axil_integration::say::{elapsed, out};

const PACKAGES: &[Package] = &[
    Package::new("iproute2", "ip", "network of the tests' namespaces"),
    Package::new("nftables", "nft", "the leak check"),
    Package::new("iptables", "iptables", "Debian's portmap plugin runs it"),
    Package::new(
        "openssl",
        "openssl",
        "certificates and tokens of the test registries",
    ),
    Package::new("skopeo", "skopeo", "pushes images to the test registries"),
    Package::new("umoci", "umoci", "a second opinion on unpacked layers"),
    Package::new("busybox-static", "busybox", "the shell of the test images"),
    Package::new("apache2-utils", "htpasswd", "a registry with passwords"),
    Package::new(
        "containernetworking-plugins",
        "/usr/lib/cni/bridge",
        "CNI plugins",
    ),
    Package::new("strace", "strace", "what system calls a runtime makes"),
    Package::new("crun", "crun", "another OCI runtime to compare with"),
    Package::new("runc", "runc", "another OCI runtime to compare with"),
    Package::new("podman", "podman", "an engine that drives runc-lite"),
    Package::new(
        "criu",
        "criu",
        "podman looks for it before it asks a runtime for a checkpoint",
    ),
    Package::new("conmon", "conmon", "what CRI-O starts containers by"),
    Package::new("uidmap", "newuidmap", "podman as an ordinary user"),
    Package::new(
        "containerd",
        "containerd",
        "an engine that drives runc-lite",
    )
    .without_service("containerd"),
    Package::new("docker.io", "dockerd", "an engine that drives runc-lite")
        .without_service("docker"),
    Package::new(
        "docker-registry",
        "docker-registry",
        "the registry images are pulled from",
    )
    .without_service("docker-registry"),
    Package::new(
        "nginx-light",
        "nginx",
        "the web server of the network tests",
    )
    .without_service("nginx"),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if arguments
        .iter()
        .any(|flag| matches!(flag.as_str(), "--help" | "-h"))
    {
        out("usage: test-all [ARGUMENTS OF cargo nextest run]");
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    match test_all(&arguments) {
        Ok(()) => {
            out(format!("all tests passed in {}", elapsed(begun.elapsed())));
            ExitCode::SUCCESS
        }
        Err(error) => {
            out(format!(
                "failed after {}: {error:#}",
                elapsed(begun.elapsed())
            ));
            ExitCode::FAILURE
        }
    }
}

fn test_all(arguments: &[String]) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the privileged tests need root; run this as root or with sudo"
    );
    out("==> packages of this machine");
    packages::install(PACKAGES)?;
    out("==> tools");
    install_tools()?;
    out("==> binaries under test");
    let built = Binaries::build(Purpose::Test)?;
    out("==> tests");
    let mut nextest = cargo(&["nextest", "run", "--workspace"]);
    nextest
        .args(arguments)
        .env(guard::REQUIRE, "1")
        .env(binaries::BIN_DIR, built.dir());
    let status = children::watch(&mut nextest)?;
    if !status.success() {
        bail!("cargo nextest: {status}");
    }
    Ok(())
}

fn install_tools() -> Result<()> {
    let triple = format!("{}-unknown-linux-musl", env::consts::ARCH);
    if find_program("rustup").is_some() {
        let mut rustup = Command::new("rustup");
        rustup
            .args(["target", "add", &triple])
            .current_dir(binaries::workspace());
        let added = children::output(&mut rustup, &[])?;
        ensure!(
            added.status.success(),
            "rustup target add {triple}: {}",
            added.text()
        );
    }
    if !children::output(&mut cargo(&["nextest", "--version"]), &[])?
        .status
        .success()
    {
        out("  installing cargo-nextest — runs each test in its own process; takes some minutes");
        let status = children::watch(&mut cargo(&["install", "--locked", "cargo-nextest"]))?;
        ensure!(status.success(), "cargo install cargo-nextest: {status}");
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(binaries::workspace());
    command
}
