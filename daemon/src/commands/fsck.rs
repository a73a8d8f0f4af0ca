//! `axild fsck`: checks the store and tells what was found, for people or as JSON.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Args;

use super::{ask, each_line, remark, say};
use crate::config::Config;
use crate::control::{Line, Request};
use crate::engine::fsck::{Event, FsckOptions, Outcome, Report};

/// Options of `axild fsck`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Check layers in full: their content against the image, and every owner, permission, time and attribute.
    #[arg(long)]
    deep: bool,
    /// Mend what is found: damaged things go, and what images need of them is pulled again.
    #[arg(long)]
    repair: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let options = FsckOptions {
        deep: arguments.deep,
        repair: arguments.repair,
    };
    let mut report = None;
    let shows_progress = !arguments.json && std::io::stderr().is_terminal();
    let answer = ask(config, Request::Fsck(options)).await?;
    each_line(answer, |line| match line {
        Line::Check(Event::Report(found)) => report = Some(found),
        Line::Check(Event::Progress { what, done, of }) if shows_progress => {
            remark(format_args!("{what} {done}/{of}"));
        }
        _ => {}
    })
    .await?;
    let report = report.ok_or_else(|| anyhow::anyhow!("the check ended without a report"))?;
    if arguments.json {
        say(serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(ExitCode::from(code_of(&report)))
}

/// 0 clean, 1 all mended, 2 some wait for a pull, 4 something is wrong.
fn code_of(report: &Report) -> u8 {
    let has = |outcomes: &[Outcome]| {
        report
            .findings
            .iter()
            .any(|finding| outcomes.contains(&finding.outcome))
    };
    if has(&[Outcome::Found, Outcome::Failed]) {
        4
    } else if has(&[Outcome::Pending]) {
        2
    } else {
        u8::from(has(&[Outcome::Repaired]))
    }
}

fn print(report: &Report) {
    for finding in &report.findings {
        let outcome = match finding.outcome {
            Outcome::Found => "",
            Outcome::Repaired => " (repaired)",
            Outcome::Pending => " (out of use until its image is pulled again)",
            Outcome::Failed => " (not repaired)",
        };
        say(format_args!(
            "{}: {}{outcome}",
            finding.object, finding.problem
        ));
        if !finding.note.is_empty() {
            say(format_args!("    {}", finding.note));
        }
    }
    for path in &report.swept {
        say(format_args!("{path}: unfinished, was removed at the start"));
    }
    if !report.unverifiable.is_empty() {
        let count = report.unverifiable.len();
        say(format_args!(
            "{count} layers cannot be checked in full; pulling their images anew, once removed, changes that"
        ));
    }
    let verified = if report.deep {
        format!(
            ", {} bytes compared with their diff ids",
            report.verified_bytes
        )
    } else {
        String::new()
    };
    say(format_args!(
        "{}: {} images, {} documents, {} layers{verified}; {} unused",
        if report.clean { "clean" } else { "NOT CLEAN" },
        report.images,
        report.blobs,
        report.layers,
        report.unused
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fsck::Finding;

    #[test]
    fn the_exit_code_says_the_worst() {
        let report = |outcomes: &[Outcome]| Report {
            findings: outcomes
                .iter()
                .map(|outcome| Finding {
                    object: "blob x".to_owned(),
                    problem: "y".to_owned(),
                    outcome: *outcome,
                    note: String::new(),
                })
                .collect(),
            ..Report::default()
        };
        for (outcomes, code) in [
            (&[][..], 0),
            (&[Outcome::Repaired], 1),
            (&[Outcome::Repaired, Outcome::Pending], 2),
            (&[Outcome::Pending, Outcome::Failed], 4),
            (&[Outcome::Found], 4),
        ] {
            assert_eq!(code_of(&report(outcomes)), code, "{outcomes:?}");
        }
    }
}
