//! `bench-runtime`: measures `runc-lite` against crun and runc of this machine, in turns, and prints ratios.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use axil_integration::binaries;
use axil_integration::children;
use axil_integration::guard::find_program;
use axil_integration::runtime_bench::{Figures, Phase, Track, median};
use axil_integration::say::out;

const USAGE: &str = "usage: bench-runtime [--rounds N] [--runtime NAME=PATH]...

Lets runc-lite (built now, or that of AXIL_BIN_DIR), crun and runc take turns on one bundle, as root,
and prints CPU time, wall time, resident size and counts of system calls.
  --rounds N            measured rounds (50)
  --runtime NAME=PATH   one more contestant, such as an older build";

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out(format!("bench-runtime: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let mut rounds = 50;
    let mut more = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => {
                out(USAGE);
                return Ok(());
            }
            "--rounds" => {
                let value = arguments.next().context("--rounds needs a number")?;
                rounds = value.parse().with_context(|| format!("--rounds {value}"))?;
            }
            "--runtime" => {
                let value = arguments.next().context("--runtime needs NAME=PATH")?;
                let (name, path) = value
                    .split_once('=')
                    .with_context(|| format!("--runtime {value} is not NAME=PATH"))?;
                more.push((name.to_owned(), PathBuf::from(path)));
            }
            other => bail!("{other} is not known\n{USAGE}"),
        }
    }
    ensure!(rounds > 0, "--rounds 0 measures nothing");
    ensure!(
        nix::unistd::geteuid().is_root(),
        "containers need root; run this as root or with sudo"
    );
    // Order: cargo may need the network of the machine.
    let mut runtimes = vec![("runc-lite".to_owned(), binaries::static_runtime()?)];
    for name in ["crun", "runc"] {
        match find_program(name) {
            Some(path) => runtimes.push((name.to_owned(), path)),
            None => out(format!("{name} is not installed and not compared with")),
        }
    }
    runtimes.extend(more);
    for (name, path) in &runtimes {
        let version = children::run(&path.to_string_lossy(), &["--version"])?;
        let text = String::from_utf8_lossy(&version.stdout).into_owned();
        let first = text.lines().next().unwrap_or_default();
        out(format!("{name}: {} ({first})", path.display()));
    }
    out(format!(
        "{rounds} rounds, in turns; load before: {}",
        load()
    ));
    let track = Track::open()?;
    let figures = track.compare(&runtimes, rounds)?;
    out(format!("load after: {}\n", load()));
    print(&figures);
    Ok(())
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn print(figures: &[Figures]) {
    out(
        "| phase | runtime | CPU p50 ms | CPU min | wall p50 ms | wall min | CPU ratio | wall ratio |",
    );
    out("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (at, phase) in Phase::ALL.iter().enumerate() {
        let mut first: Option<(Duration, Duration)> = None;
        for figures in figures {
            let of = |pick: fn(&axil_integration::runtime_bench::meter::Sample) -> Duration| {
                let values: Vec<Duration> = figures.samples[at].iter().map(pick).collect();
                let least = values.iter().min().copied().unwrap_or_default();
                (median(values), least)
            };
            let (cpu, wall) = (of(|s| s.cpu), of(|s| s.wall));
            // runc-lite's share of what the other needs.
            let (own_cpu, own_wall) = *first.get_or_insert((cpu.0, wall.0));
            let ratio = |own: Duration, other: Duration| own.as_secs_f64() / other.as_secs_f64();
            out(format!(
                "| {} | {} | {} | {} | {} | {} | {:.2} | {:.2} |",
                phase.name(),
                figures.name,
                ms(cpu.0),
                ms(cpu.1),
                ms(wall.0),
                ms(wall.1),
                ratio(own_cpu, cpu.0),
                ratio(own_wall, wall.0),
            ));
        }
    }
    out("\n| runtime | resident KiB | system calls of a run | execs | clones |");
    out("| --- | --- | --- | --- | --- |");
    for figures in figures {
        let counts = figures.counts.map_or_else(
            || "no strace | | ".to_owned(),
            |c| format!("{} | {} | {}", c.all, c.execs, c.clones),
        );
        out(format!(
            "| {} | {} | {counts} |",
            figures.name, figures.resident
        ));
    }
}

fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}
