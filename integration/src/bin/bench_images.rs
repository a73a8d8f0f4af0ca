//! `bench-images`: measures pulls by `axild` against pulls by Debian's containerd, in turns, and prints ratios.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use axil_integration::binaries::{BIN_DIR, Binaries, Purpose};
use axil_integration::image_bench::meter::Cost;
use axil_integration::image_bench::{Contestant, Track, describe, median};
use axil_integration::packages::{self, Package};
use axil_integration::say::out;

const USAGE: &str = "usage: bench-images [--rounds N] [--megabytes N]

Makes an image of the packages of this machine, puts it into a registry on loopback, and lets axild (built
now for release, or that of AXIL_BIN_DIR) and containerd pull it in turns, as root, each time into new
directories below /tmp, which should be on ext4. Prints wall and CPU time, memory and disk, the ratios, and
what share of axild's time is inflating, hashing and writing.
  --rounds N      measured rounds (5); one more before them is not counted
  --megabytes N   size of the archives (500)";

const PACKAGES: &[Package] = &[
    Package::new("iproute2", "ip", "loopback in the private network"),
    Package::new("skopeo", "skopeo", "pushes the image to the registry"),
    Package::new("docker-registry", "docker-registry", "the registry")
        .without_service("docker-registry"),
    Package::new("containerd", "containerd", "the one that is compared with")
        .without_service("containerd"),
];

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out(format!("bench-images: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let (mut rounds, mut megabytes) = (5_u64, 500_u64);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let wanted = match argument.as_str() {
            "--help" | "-h" => {
                out(USAGE);
                return Ok(());
            }
            "--rounds" => &mut rounds,
            "--megabytes" => &mut megabytes,
            other => bail!("{other} is not known\n{USAGE}"),
        };
        let value = arguments.next();
        let value = value.with_context(|| format!("{argument} needs a number"))?;
        *wanted = value
            .parse()
            .with_context(|| format!("{argument} {value}"))?;
    }
    ensure!(rounds > 0, "--rounds 0 measures nothing");
    ensure!(megabytes > 0, "--megabytes 0 is no image");
    ensure!(
        nix::unistd::geteuid().is_root(),
        "layers have owners and devices; run this as root or with sudo"
    );
    packages::install(PACKAGES)?;
    // Order: cargo may need the network of the machine.
    let binaries = match env::var_os(BIN_DIR) {
        Some(dir) => Binaries::at(dir.as_ref())?,
        None => Binaries::build(Purpose::Run)?,
    };
    let mut track = Track::open(binaries, megabytes)?;
    describe(track.sample());
    out(format!(
        "{rounds} rounds, in turns; load before: {}",
        load()
    ));
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for round in 0..=usize::try_from(rounds)? {
        // Order: before everything is removed, which takes minutes where the disk discards what is freed.
        let measured = track
            .round(round)
            .inspect_err(|error| out(format!("round {round} failed: {error:#}")))?;
        for (at, cost) in measured.into_iter().enumerate() {
            out(format!(
                "round {round} {:>10}: wall {:5.2} s, on disk {:5.2} s, CPU {:5.2} s",
                Contestant::ALL[at].name(),
                cost.wall.as_secs_f64(),
                cost.durable.as_secs_f64(),
                cost.cpu.as_secs_f64(),
            ));
            // The first round fills caches.
            if round > 0 {
                costs[at].push(cost);
            }
        }
    }
    out(format!("load after: {}\n", load()));
    print(&costs, track.sample().unpacked() as f64 / 1e9);
    out("removing what was pulled");
    Ok(())
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// A figure of a [`Cost`].
type Figure = fn(&Cost) -> f64;

const TIMES: [(&str, Figure); 3] = [
    ("wall until answered", |cost| cost.wall.as_secs_f64()),
    ("wall until on disk", |cost| cost.durable.as_secs_f64()),
    ("CPU", |cost| cost.cpu.as_secs_f64()),
];

fn print(costs: &[Vec<Cost>; 3], gigabytes: f64) {
    out(
        "| seconds per GB of archives | axild p50 | min | containerd p50 | min | raw limit p50 | axild / containerd | limit / axild |",
    );
    out("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, figure) in TIMES {
        let of = |at: usize| {
            let least = costs[at].iter().map(figure).fold(f64::INFINITY, f64::min);
            (median(&costs[at], figure) / gigabytes, least / gigabytes)
        };
        let (axild, containerd, limit) = (of(0), of(1), of(2));
        out(format!(
            "| {name} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
            axild.0,
            axild.1,
            containerd.0,
            containerd.1,
            limit.0,
            axild.0 / containerd.0,
            limit.0 / axild.0,
        ));
    }
    out("\n| | axild | containerd |");
    out("| --- | --- | --- |");
    let sizes: [(&str, Figure); 3] = [
        ("daemon, most resident MiB", |cost| {
            cost.resident as f64 / 1024.0
        }),
        ("its helpers together, most resident MiB", |cost| {
            cost.helpers as f64 / 1024.0
        }),
        ("disk afterwards, MB", |cost| cost.disk as f64 / 1e6),
    ];
    for (name, figure) in sizes {
        let most = |at: usize| costs[at].iter().map(figure).fold(0.0, f64::max);
        out(format!("| {name} | {:.0} | {:.0} |", most(0), most(1)));
    }
}
