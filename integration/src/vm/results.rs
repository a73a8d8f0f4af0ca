//! What a guest brought back: an exit code and files, and of those the outcome of each test.
//!
//! The results disk was written by the guest, so it is read as a stranger's archive: names and sizes have
//! bounds, and nothing is unpacked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::say::elapsed;

/// Largest file that is taken.
const LARGEST: u64 = 16 << 20;
/// Most files that are taken.
const MOST: usize = 10_000;

/// What a guest left.
#[derive(Debug)]
pub struct Collected {
    /// Of the payload's `run`.
    pub exit_code: i32,
    /// Files below `$RESULTS`, by their path there.
    pub files: BTreeMap<String, Vec<u8>>,
    /// From the start of qemu until the payload ran.
    pub booted: Duration,
    /// How long the payload ran, until its results were on the disk.
    pub ran: Duration,
}

impl Collected {
    /// A file as text.
    ///
    /// # Errors
    /// When it is not there.
    pub fn text(&self, name: &str) -> Result<String> {
        let bytes = self.files.get(name);
        let bytes = bytes.with_context(|| format!("the guest left no {name}"))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// Reads a results disk: the exit code and the files.
///
/// # Errors
/// When it holds no archive, no exit code, or more than is taken.
pub fn read(disk: &Path) -> Result<(i32, BTreeMap<String, Vec<u8>>)> {
    let file = File::open(disk).with_context(|| format!("open {}", disk.display()))?;
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries().context("read the results")? {
        let entry = entry.context("read the results")?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().context("read a name")?.display().to_string();
        let name = name.trim_start_matches("./").to_owned();
        ensure!(entry.size() <= LARGEST, "result {name:?} is too large");
        ensure!(files.len() < MOST, "more than {MOST} results");
        let mut bytes = Vec::new();
        entry
            .take(LARGEST)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read {name}"))?;
        files.insert(name, bytes);
    }
    let code = files
        .get("exit-code")
        .context("the guest left no exit code")?;
    let code = String::from_utf8_lossy(code);
    let code = code.trim();
    let code = code
        .parse()
        .with_context(|| format!("the guest's exit code is {code:?}"))?;
    Ok((code, files))
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Without an error.
    Passed,
    /// It said that it cannot run there, and why.
    Skipped(String),
    /// With an error, or not in time.
    Failed(String),
}

impl Outcome {
    /// One word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Skipped(_) => "skipped",
            Self::Failed(_) => "failed",
        }
    }

    /// Of a test's exit code and output, as libtest and the tests' guard write it.
    fn of(code: i32, output: &str) -> Self {
        let reason = output.lines().find_map(|line| {
            let (_, reason) = line.split_once("skipped: ")?;
            Some(reason.trim().to_owned())
        });
        match (code, reason) {
            (0, Some(reason)) => Self::Skipped(reason),
            // A test binary that ran nothing succeeds too.
            (0, None) if output.contains("1 passed") => Self::Passed,
            (0, None) => Self::Failed("the binary has no such test".to_owned()),
            (124 | 137, _) => Self::Failed("it did not end in time".to_owned()),
            (code, _) => Self::Failed(format!("exit code {code}")),
        }
    }
}

/// One test of a run.
#[derive(Debug, Clone)]
pub struct TestResult {
    /// Path of the test in its binary.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// What it printed.
    pub output: String,
}

/// Outcomes of the tests `names`, from the files of the runner in the guest: `<number>.out`, and `<number>.end`
/// with exit code and milliseconds. A test without them did not run, and that is a failure.
#[must_use]
pub fn of_tests(names: &[String], files: &BTreeMap<String, Vec<u8>>) -> Vec<TestResult> {
    let text = |name: String| {
        let bytes = files.get(&name);
        bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let result = |(number, name): (usize, &String)| {
        let output = text(format!("{number}.out")).unwrap_or_default();
        let end = text(format!("{number}.end")).unwrap_or_default();
        let mut numbers = end.split_ascii_whitespace();
        let code = numbers.next().and_then(|code| code.parse().ok());
        let ms = numbers.next().and_then(|ms| ms.parse().ok()).unwrap_or(0);
        let outcome = code.map_or_else(
            || Outcome::Failed("it did not run to its end".to_owned()),
            |code| Outcome::of(code, &output),
        );
        TestResult {
            name: name.clone(),
            outcome,
            took: Duration::from_millis(ms),
            output,
        }
    };
    names.iter().enumerate().map(result).collect()
}

/// The outcomes of one suite under one cgroup driver.
#[derive(Debug)]
pub struct Report {
    /// What ran, where.
    pub title: String,
    /// Test by test.
    pub tests: Vec<TestResult>,
    /// From the start of qemu until the tests ran.
    pub booted: Duration,
    /// How long the tests ran.
    pub ran: Duration,
}

impl Report {
    /// How many passed, failed, were skipped.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |word| {
            self.tests
                .iter()
                .filter(|t| t.outcome.word() == word)
                .count()
        };
        (count("passed"), count("failed"), count("skipped"))
    }

    /// One line: title, counts, times.
    #[must_use]
    pub fn line(&self) -> String {
        let (passed, failed, skipped) = self.counts();
        format!(
            "{}: {passed} passed, {failed} failed, {skipped} skipped; booted in {}, ran {}",
            self.title,
            elapsed(self.booted),
            elapsed(self.ran)
        )
    }

    /// A line for each test, and the output of those that failed.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.line());
        for test in &self.tests {
            let word = test.outcome.word();
            let why = match &test.outcome {
                Outcome::Passed => String::new(),
                Outcome::Skipped(reason) | Outcome::Failed(reason) => format!(": {reason}"),
            };
            // Ignored: a string takes everything.
            let _ = writeln!(
                text,
                "  {word:7} {:>8}  {}{why}",
                elapsed(test.took),
                test.name
            );
        }
        for test in &self.tests {
            if matches!(test.outcome, Outcome::Failed(_)) {
                let _ = writeln!(text, "\n--- {}\n{}", test.name, test.output.trim_end());
            }
        }
        text
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let test = |test: &TestResult| {
            let reason = match &test.outcome {
                Outcome::Passed => None,
                Outcome::Skipped(reason) | Outcome::Failed(reason) => Some(reason),
            };
            json!({
                "name": test.name,
                "outcome": test.outcome.word(),
                "reason": reason,
                "seconds": test.took.as_secs_f64(),
            })
        };
        json!({
            "title": self.title,
            "boot_seconds": self.booted.as_secs_f64(),
            "run_seconds": self.ran.as_secs_f64(),
            "tests": self.tests.iter().map(test).collect::<Vec<_>>(),
        })
    }

    /// An error when a test failed or none ran.
    ///
    /// # Errors
    /// Then.
    pub fn check(&self) -> Result<()> {
        let (passed, failed, _) = self.counts();
        if failed > 0 {
            bail!("{}: {failed} test(s) failed", self.title);
        }
        ensure!(passed > 0, "{}: no test ran", self.title);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        let pair = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
        list.iter().map(pair).collect()
    }

    #[test]
    fn outcomes_are_read_from_exit_code_and_output() {
        let names = ["a", "b", "c", "d", "e", "f"].map(str::to_owned);
        let files = files(&[
            (
                "0.out",
                "test a ... ok\ntest result: ok. 1 passed; 0 failed",
            ),
            ("0.end", "0 1500\n"),
            (
                "1.out",
                "test b ... skipped: the host has no v1\nok\n1 passed;",
            ),
            ("1.end", "0 20"),
            ("2.out", "panicked at"),
            ("2.end", "101 30"),
            ("3.out", "half"),
            ("3.end", "124 90000"),
            ("4.out", "test result: ok. 0 passed"),
            ("4.end", "0 3"),
        ]);
        let results = of_tests(&names, &files);
        let outcomes: Vec<_> = results.iter().map(|r| r.outcome.clone()).collect();
        let failed = |why: &str| Outcome::Failed(why.to_owned());
        assert_eq!(
            outcomes,
            [
                Outcome::Passed,
                Outcome::Skipped("the host has no v1".to_owned()),
                failed("exit code 101"),
                failed("it did not end in time"),
                failed("the binary has no such test"),
                failed("it did not run to its end"),
            ]
        );
        assert_eq!(results[0].took, Duration::from_millis(1500));
        let report = Report {
            title: "suite, driver".to_owned(),
            tests: results,
            booted: Duration::from_secs(19),
            ran: Duration::from_secs(60),
        };
        assert_eq!(report.counts(), (1, 4, 1));
        let line = "suite, driver: 1 passed, 4 failed, 1 skipped; booted in 19.0 s, ran 60.0 s";
        assert_eq!(report.line(), line);
        assert!(report.text().contains("--- c\npanicked at"));
        assert_eq!(report.json()["tests"][1]["reason"], "the host has no v1");
        let error = report.check().unwrap_err().to_string();
        assert_eq!(error, "suite, driver: 4 test(s) failed");
    }

    #[test]
    fn a_run_without_a_test_is_no_success() {
        let skipped = TestResult {
            name: "a".to_owned(),
            outcome: Outcome::Skipped("why".to_owned()),
            took: Duration::ZERO,
            output: String::new(),
        };
        let report = Report {
            title: "t".to_owned(),
            tests: vec![skipped],
            booted: Duration::ZERO,
            ran: Duration::ZERO,
        };
        assert_eq!(report.check().unwrap_err().to_string(), "t: no test ran");
    }

    fn disk(name: &str, entries: &[(&str, &[u8])]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("axil-results-{name}-{}", std::process::id()));
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        let file = tar.into_inner().unwrap();
        // A disk is longer than its archive.
        file.set_len(1 << 20).unwrap();
        path
    }

    #[test]
    fn a_results_disk_gives_code_and_files() {
        let path = disk("good", &[("./exit-code", b"3\n"), ("./0.out", b"text")]);
        let (code, files) = read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(code, 3);
        assert_eq!(files["0.out"], b"text");
    }

    #[test]
    fn a_disk_without_results_says_so() {
        let path = disk("none", &[("./0.out", b"text")]);
        let error = read(&path).unwrap_err();
        assert_eq!(error.to_string(), "the guest left no exit code");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert!(read(&path).is_err());
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
