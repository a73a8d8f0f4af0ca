//! `vm-lane`: runs the tests this machine's kernel cannot run in a virtual machine, on cgroup v2 alone, with
//! systemd and AppArmor; or a script of one's own, with the power cut when it says so.
#![forbid(unsafe_code)]

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use axil_integration::binaries;
use axil_integration::say::{elapsed, out};
use axil_integration::vm::boot::{Accelerator, Resources, SecurityModule, Show};
use axil_integration::vm::nodes::Nodes;
use axil_integration::vm::payload::Payload;
use axil_integration::vm::power::{Cut, Moment};
use axil_integration::vm::results::Report;
use axil_integration::vm::store::StoreCuts;
use axil_integration::vm::suite::{Driver, RunOptions, Suite};
use axil_integration::vm::{Lane, LaneOptions};
use clap::{Parser, ValueEnum};
use nix::fcntl::{Flock, FlockArg};

/// What only the lane can run; the short form.
const SHORT: &[&str] = &["apparmor::", "cgroup", "limits::", "systemd", "unified::"];

/// Runs tests in a small Debian with systemd, on cgroup v2 alone and with AppArmor.
///
/// Without options every privileged test of runc-lite runs with each cgroup driver, and a power cut is checked.
/// Nothing needs root once the packages are installed; without KVM the guest is emulated and slow.
#[derive(Debug, Parser)]
#[command(name = "vm-lane")]
struct Arguments {
    /// Only the tests that need the lane: cgroups, systemd, AppArmor.
    #[arg(long)]
    short: bool,
    /// Only the system tests about cgroups and security modules, on nodes of real binaries.
    #[arg(long, conflicts_with = "short")]
    nodes: bool,
    /// Only tests with this in their name; may be given again.
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Who makes the cgroups; may be given again. Both by default.
    #[arg(long)]
    driver: Vec<DriverName>,
    /// Tests at a time.
    #[arg(long, default_value_t = 2)]
    jobs: u32,
    /// Power cuts to check, of files and of a store of images.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    power_cuts: u32,
    /// Only the power cuts.
    #[arg(long, conflicts_with_all = ["short", "nodes", "filter", "driver", "run", "list"])]
    only_power_cuts: bool,
    /// Run this shell script in the guest instead of tests, with its files in $RESULTS brought back.
    #[arg(long, value_name = "SCRIPT")]
    run: Option<String>,
    /// A program for the script, beside it in the guest; may be given again.
    #[arg(long, value_name = "NAME=PATH", requires = "run")]
    file: Vec<String>,
    /// Cut the power when the console has a line with this text.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "run",
        conflicts_with = "cut_after"
    )]
    cut_at: Option<String>,
    /// Cut the power this long after the script began.
    #[arg(long, value_name = "SECONDS", requires = "run")]
    cut_after: Option<f64>,
    /// What to run on the same disk after the power cut.
    #[arg(long, value_name = "SCRIPT", requires = "run", default_value = "true")]
    check: String,
    /// What runs the guest; probed by default.
    #[arg(long)]
    accel: Option<AccelName>,
    /// Security module of the guest; the tests of runc-lite want AppArmor.
    #[arg(long, default_value = "apparmor")]
    module: ModuleName,
    /// Memory of the guest.
    #[arg(long, value_name = "MIB", default_value_t = Resources::default().memory_mib)]
    memory: u32,
    /// Processors of the guest.
    #[arg(long, value_name = "COUNT", default_value_t = Resources::default().processors)]
    cpus: u32,
    /// Bound of one run in the guest, after it has booted.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u64,
    /// Bound of one test.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    test_limit: u64,
    /// Where images are kept between runs [default: the user's cache directory].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Where consoles and results go [default: vm-lane in cargo's target directory].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the names of the tests and end.
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DriverName {
    Cgroupfs,
    Systemd,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModuleName {
    Apparmor,
    Selinux,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AccelName {
    Kvm,
    Tcg,
}

impl Arguments {
    fn drivers(&self) -> Vec<Driver> {
        if self.driver.is_empty() {
            return Driver::ALL.to_vec();
        }
        let driver = |name: &DriverName| match name {
            DriverName::Cgroupfs => Driver::Cgroupfs,
            DriverName::Systemd => Driver::Systemd,
        };
        self.driver.iter().map(driver).collect()
    }

    fn filters(&self) -> Vec<String> {
        let short = SHORT
            .iter()
            .filter(|_| self.short && self.filter.is_empty());
        let short = short.map(|text| (*text).to_owned());
        self.filter.iter().cloned().chain(short).collect()
    }

    fn lane_options(&self) -> Result<LaneOptions> {
        let mut options = LaneOptions::new()?;
        options.resources = Resources {
            memory_mib: self.memory,
            processors: self.cpus,
        };
        options.module = match self.module {
            ModuleName::Apparmor => SecurityModule::AppArmor,
            ModuleName::Selinux => SecurityModule::Selinux,
        };
        options.accelerator = self.accel.map(|name| match name {
            AccelName::Kvm => Accelerator::Kvm,
            AccelName::Tcg => Accelerator::Tcg,
        });
        if let Some(cache) = &self.cache {
            options.cache.clone_from(cache);
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    match lane(&arguments) {
        Ok(()) => {
            out(format!("done in {}", elapsed(begun.elapsed())));
            ExitCode::SUCCESS
        }
        Err(error) => {
            let took = elapsed(begun.elapsed());
            out(format!("failed after {took}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn lane(arguments: &Arguments) -> Result<()> {
    if arguments.list && arguments.nodes {
        for name in Nodes::build(&arguments.filters())?.names() {
            out(name);
        }
        return Ok(());
    }
    if arguments.list {
        for name in Suite::build(&arguments.filters())?.names() {
            out(name);
        }
        return Ok(());
    }
    let scratch = match &arguments.out {
        Some(dir) => env::current_dir()?.join(dir),
        None => binaries::target_dir()?.join("vm-lane"),
    };
    let _alone = claim(&scratch)?;
    out("==> virtual machine");
    let lane = Lane::prepare(&arguments.lane_options()?, &scratch)?;
    out(format!(
        "    Linux {}, {}",
        lane.image().kernel_release()?,
        lane.accelerator()
    ));
    match &arguments.run {
        Some(script) => run_script(&lane, arguments, script),
        None if arguments.only_power_cuts => cut_power(&lane, arguments.power_cuts, &scratch),
        None if arguments.nodes => run_nodes(&lane, arguments, &scratch),
        None => run_suites(&lane, arguments, &scratch),
    }
}

/// Makes the directory and keeps other lanes out of it.
fn claim(dir: &Path) -> Result<Flock<File>> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let path = dir.join(".lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("another vm-lane works in {}; give --out", dir.display()))
}

fn run_suites(lane: &Lane, arguments: &Arguments, scratch: &Path) -> Result<()> {
    out("==> binaries for the guest");
    let begun = Instant::now();
    let suite = Suite::build(&arguments.filters())?;
    out(format!(
        "    {} tests; built in {}",
        suite.names().len(),
        elapsed(begun.elapsed())
    ));
    let mut reports = Vec::new();
    for driver in arguments.drivers() {
        let title = format!("runc-lite, cgroup v2, {}", driver.name());
        out(format!("==> {title}"));
        let options = RunOptions {
            driver,
            jobs: arguments.jobs,
            test_limit: Duration::from_secs(arguments.test_limit),
        };
        let limit = Duration::from_secs(arguments.limit);
        let collected = lane.run(
            driver.name(),
            &suite.payload(&options),
            Show::Progress,
            limit,
        )?;
        let report = suite.report(&title, &collected)?;
        keep(&report, scratch, driver.name())?;
        reports.push(report);
    }
    let cuts = cut_power(lane, arguments.power_cuts, scratch);
    out("==> summary");
    for phase in lane.phases() {
        out(format!("    {}: {}", phase.name, elapsed(phase.took)));
    }
    for report in &reports {
        out(format!("    {}", report.line()));
    }
    if arguments.power_cuts > 0 {
        let verdict = if cuts.is_ok() { "passed" } else { "failed" };
        out(format!(
            "    power cuts: {} {verdict}",
            arguments.power_cuts
        ));
    }
    let (passed, failed, skipped) = reports
        .iter()
        .map(Report::counts)
        .fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
    out(format!("    consoles and results: {}", scratch.display()));
    out(format!(
        "{passed} passed, {failed} failed, {skipped} skipped"
    ));
    let failures: Vec<_> = reports
        .iter()
        .filter_map(|report| report.check().err())
        .chain(cuts.err())
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Runs the system tests about cgroups and security modules, on nodes with each driver.
fn run_nodes(lane: &Lane, arguments: &Arguments, scratch: &Path) -> Result<()> {
    let nodes = Nodes::build(&arguments.filters())?;
    let mut failures = Vec::new();
    for driver in arguments.drivers() {
        let title = format!("nodes, cgroup v2, {}", driver.name());
        out(format!("==> {title}: {} tests", nodes.names().len()));
        let options = RunOptions {
            driver,
            jobs: arguments.jobs,
            test_limit: Duration::from_secs(arguments.test_limit),
        };
        let limit = Duration::from_secs(arguments.limit);
        let name = format!("nodes-{}", driver.name());
        let collected = lane.run(
            &name,
            &nodes.payload(&options, lane.module()),
            Show::Progress,
            limit,
        )?;
        let report = nodes.report(&title, &collected)?;
        keep(&report, scratch, &name)?;
        failures.extend(report.check().err().map(|error| format!("{error:#}")));
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Prints a report and writes it beside the console.
fn keep(report: &Report, scratch: &Path, name: &str) -> Result<()> {
    let text = report.text();
    out(text.trim_end());
    fs::write(scratch.join(format!("{name}.txt")), &text).context("write the report")?;
    let json = serde_json::to_vec_pretty(&report.json()).context("write the report as JSON")?;
    fs::write(scratch.join(format!("{name}.json")), json).context("write the report as JSON")
}

fn cut_power(lane: &Lane, count: u32, scratch: &Path) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    out("==> power cuts");
    let store = StoreCuts::prepare(scratch)?;
    for round in 1..=count {
        let begun = Instant::now();
        let checked = lane.check_power_cuts("power", 3 * round)?;
        let found = checked.text("found")?;
        let took = elapsed(begun.elapsed());
        out(format!("    {round}: {}; {took}", found.trim()));
        let begun = Instant::now();
        let checked = store.check(lane, round)?;
        let found = checked.text("found")?;
        let took = elapsed(begun.elapsed());
        out(format!("    {round}, store: {}; {took}", found.trim()));
    }
    Ok(())
}

fn run_script(lane: &Lane, arguments: &Arguments, script: &str) -> Result<()> {
    let mut payload = Payload::script(script);
    for file in &arguments.file {
        let (name, path) = file
            .split_once('=')
            .with_context(|| format!("--file {file:?} is not NAME=PATH"))?;
        payload = payload.program(name, Path::new(path));
    }
    let limit = Duration::from_secs(arguments.limit);
    let after = arguments.cut_after.map(Duration::try_from_secs_f64);
    let after = after.transpose().context("--cut-after")?;
    let moment = match (&arguments.cut_at, after) {
        (Some(text), _) => Some(Moment::Line(text.clone())),
        (None, Some(time)) => Some(Moment::After(time)),
        (None, None) => None,
    };
    let collected = match moment {
        None => lane.run("script", &payload, Show::Everything, limit)?,
        Some(moment) => {
            let check = Payload::script(&arguments.check);
            lane.power_cut(
                "script",
                &Cut {
                    workload: &payload,
                    moment,
                    check: &check,
                    show: Show::Everything,
                    limit,
                },
            )?
        }
    };
    let files = lane.scratch().join("script");
    // Ignored: usually there are none of an earlier run.
    let _ = fs::remove_dir_all(&files);
    fs::create_dir_all(&files).with_context(|| format!("create {}", files.display()))?;
    for (name, bytes) in &collected.files {
        // A name of the guest's: only the last part of it, so that it cannot lead out.
        let Some(name) = Path::new(name).file_name() else {
            continue;
        };
        fs::write(files.join(name), bytes).context("write a result")?;
    }
    out(format!(
        "booted in {}, ran {}; {} files in {}",
        elapsed(collected.booted),
        elapsed(collected.ran),
        collected.files.len(),
        files.display()
    ));
    if collected.exit_code != 0 {
        bail!("the script ended with exit code {}", collected.exit_code);
    }
    Ok(())
}
