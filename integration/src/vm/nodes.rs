//! System tests for the guest: nodes of real binaries where there is cgroup v2 alone. The programs are those of
//! this machine; the guest is the same release of the same distribution.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::boot::SecurityModule;
use super::payload::Payload;
use super::results::{self, Collected, Report};
use super::suite::{RUNNER, RunOptions, list, nothing_left};
use crate::binaries::{self, Binaries};
use crate::{eventually, guard, lab};

/// Test files whose subject is what a node reads from and writes to cgroups, and the lives of pods and containers
/// in them, and what the guest's security module makes of containers.
const TESTS: &[&str] = &[
    "apparmor",
    "selinux",
    "stats",
    "pod_metrics",
    "update_resources",
    "pod_lifecycle",
    "container_lifecycle",
];

/// How much slower than the machines that tests are written for an emulated guest may be.
const SLOWNESS: u32 = 10;

/// Those tests, built.
#[derive(Debug)]
pub struct Nodes {
    binaries: Binaries,
    programs: Vec<PathBuf>,
    /// Test file and test.
    names: Vec<(&'static str, String)>,
}

impl Nodes {
    /// Builds the node's binaries and the tests, and lists those whose names contain one of `filters`, or all.
    ///
    /// # Errors
    /// When something does not build or no test is left.
    pub fn build(filters: &[String]) -> Result<Self> {
        let binaries = Binaries::for_tests()?;
        let programs = binaries::tests("axil-integration", TESTS)?;
        let mut names = Vec::new();
        for (file, program) in TESTS.iter().zip(&programs) {
            let wanted =
                |name: &String| filters.is_empty() || filters.iter().any(|f| name.contains(f));
            let tests = list(program)?.into_iter().filter(wanted);
            names.extend(tests.map(|name| (*file, name)));
        }
        ensure!(
            !names.is_empty(),
            "no system test of {TESTS:?} has one of {filters:?} in its name"
        );
        Ok(Self {
            binaries,
            programs,
            names,
        })
    }

    /// The tests, each with the file it is in.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let name = |(file, test): &(&str, String)| format!("{file}::{test}");
        self.names.iter().map(name).collect()
    }

    /// What a guest with this security module needs to run the tests.
    #[must_use]
    pub fn payload(&self, options: &RunOptions, module: SecurityModule) -> Payload {
        let plan: String = (self.names.iter().enumerate())
            .map(|(number, (file, test))| format!("{number} {file} {test}\n"))
            .collect();
        let script = format!(
            "mkdir node && mv axild containerd-shim-axil-v1 runc-lite node\n\
             export JOBS={} LIMIT={} {}=1 {}={} {}={SLOWNESS} {}=$PWD/node {}={}\n. ./suite",
            options.jobs,
            options.test_limit.as_secs(),
            guard::REQUIRE,
            guard::HAS,
            module.name(),
            eventually::SLOWNESS,
            binaries::BIN_DIR,
            lab::CGROUP_DRIVER,
            options.driver.name(),
        );
        let payload = Payload::script(&script)
            .text("suite", RUNNER)
            .text("plan", &plan);
        let node = ["axild", "containerd-shim-axil-v1", "runc-lite"];
        let payload = node.iter().fold(payload, |payload, name| {
            payload.program(name, &self.binaries.dir().join(name))
        });
        let tests = TESTS.iter().zip(&self.programs);
        tests.fold(payload, |payload, (file, program)| {
            payload.program(file, program)
        })
    }

    /// Reads what the guest brought back.
    ///
    /// # Errors
    /// When the runner itself failed.
    pub fn report(&self, title: &str, collected: &Collected) -> Result<Report> {
        let mut tests = results::of_tests(&self.names(), &collected.files);
        tests.push(nothing_left(collected)?);
        Ok(Report {
            title: title.to_owned(),
            tests,
            booted: collected.booted,
            ran: collected.ran,
        })
    }
}
