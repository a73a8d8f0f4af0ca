//! Test suites for the guest: static test binaries of the workspace, run test by test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::payload::Payload;
use super::results::{self, Collected, Outcome, Report, TestResult};
use crate::{binaries, children};

pub(super) const RUNNER: &str = include_str!("guest/suite");

/// What the guest has that other machines lack, as the guard of the tests names it.
const HAS: &str = "cgroup-v2,systemd,apparmor";

/// Who makes the cgroups of the containers under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The runtime itself.
    Cgroupfs,
    /// systemd, asked over D-Bus.
    Systemd,
}

impl Driver {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cgroupfs, Self::Systemd];

    /// As operators write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// The privileged tests of runc-lite, built for the guest.
#[derive(Debug)]
pub struct Suite {
    runtime: PathBuf,
    binary: PathBuf,
    attacker: PathBuf,
    names: Vec<String>,
}

/// How a suite is run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Who makes cgroups.
    pub driver: Driver,
    /// Tests at a time.
    pub jobs: u32,
    /// Bound of one test.
    pub test_limit: Duration,
}

impl Suite {
    /// Builds the runtime and its tests, and lists those whose names contain one of `filters`, or all.
    ///
    /// # Errors
    /// When something does not build or no test is left.
    pub fn build(filters: &[String]) -> Result<Self> {
        let runtime = binaries::static_runtime()?;
        let binary = binaries::static_test("runc-lite", "privileged")?;
        let attacker = binaries::static_example("runc-lite", "attacker")?;
        let names = list(&binary)?;
        let wanted = |name: &String| filters.is_empty() || filters.iter().any(|f| name.contains(f));
        let names: Vec<_> = names.into_iter().filter(wanted).collect();
        ensure!(
            !names.is_empty(),
            "no privileged test of runc-lite has one of {filters:?} in its name"
        );
        Ok(Self {
            runtime,
            binary,
            attacker,
            names,
        })
    }

    /// The tests.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What the guest needs to run the tests.
    #[must_use]
    pub fn payload(&self, options: &RunOptions) -> Payload {
        let plan: String = (self.names.iter().enumerate())
            .map(|(number, name)| format!("{number} tests {name}\n"))
            .collect();
        let script = format!(
            "export JOBS={} LIMIT={} AXIL_TEST_REQUIRE=1 AXIL_TEST_HAS={HAS} \
             AXIL_TEST_CGROUP_DRIVER={}\n. ./suite",
            options.jobs,
            options.test_limit.as_secs(),
            options.driver.name(),
        );
        Payload::script(&script)
            .text("suite", RUNNER)
            .text("plan", &plan)
            .program("runc-lite", &self.runtime)
            .program("tests", &self.binary)
            .program("attacker", &self.attacker)
    }

    /// Reads what the guest brought back.
    ///
    /// # Errors
    /// When the runner itself failed.
    pub fn report(&self, title: &str, collected: &Collected) -> Result<Report> {
        let mut tests = results::of_tests(&self.names, &collected.files);
        tests.push(nothing_left(collected)?);
        Ok(Report {
            title: title.to_owned(),
            tests,
            booted: collected.booted,
            ran: collected.ran,
        })
    }
}

/// Whether the guest was as before when the tests had ended, as a test of its own.
pub(super) fn nothing_left(collected: &Collected) -> Result<TestResult> {
    let left = collected.text("left")?;
    Ok(TestResult {
        name: "the tests left nothing behind".to_owned(),
        outcome: if left.trim().is_empty() {
            Outcome::Passed
        } else {
            Outcome::Failed("cgroups, mounts, processes or units are left".to_owned())
        },
        took: Duration::ZERO,
        output: left,
    })
}

pub(super) fn list(binary: &Path) -> Result<Vec<String>> {
    let mut command = Command::new(binary);
    command.args(["--list", "--format", "terse"]);
    let done = children::output(&mut command, &[])?;
    ensure!(done.status.success(), "list the tests: {}", done.text());
    let text = String::from_utf8(done.stdout).context("read the list of tests")?;
    Ok(parse_list(&text))
}

/// `path::of::test: test`, one a line.
fn parse_list(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_left_behind_is_a_failure() {
        let suite = Suite {
            runtime: PathBuf::new(),
            binary: PathBuf::new(),
            attacker: PathBuf::new(),
            names: parse_list("a::b: test\na::c: benchmark\n"),
        };
        assert_eq!(suite.names(), ["a::b"]);
        let mut collected = Collected {
            exit_code: 0,
            files: BTreeMap::from([
                ("0.out".to_owned(), b"1 passed".to_vec()),
                ("0.end".to_owned(), b"0 1".to_vec()),
                ("left".to_owned(), b"\n".to_vec()),
            ]),
            booted: Duration::ZERO,
            ran: Duration::ZERO,
        };
        let report = suite.report("t", &collected).unwrap();
        assert_eq!(report.counts(), (2, 0, 0));
        let left = b"/sys/fs/cgroup/axil-test-1\n".to_vec();
        collected.files.insert("left".to_owned(), left);
        let report = suite.report("t", &collected).unwrap();
        assert_eq!(report.counts(), (1, 1, 0));
        assert!(report.text().contains("/sys/fs/cgroup/axil-test-1"));
        collected.files.remove("left");
        assert!(suite.report("t", &collected).is_err());
    }
}
