//! The attacks of the test suite that are races, for as long as one likes:
//!
//! ```text
//! cargo run -p runc-lite --example attack-loops -- [--seconds N] [NAME...]
//! ```
//!
//! Each named attack, or every one, goes on for N seconds (60 unless told), round after round. What it tried is
//! counted and told. The first thing that gets through is told loudly and the exit code is 1. It needs root, as
//! the privileged tests do; `AXIL_TEST_RUNTIME` names another runtime to attack.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it is a test: it fails by panicking and tells what it did on standard output"
)]

#[expect(dead_code, reason = "the tests use all of it, the loops a part")]
#[path = "../../tests/privileged/attacks/arena.rs"]
mod arena;
#[expect(dead_code, reason = "the tests use all of it, the loops a part")]
#[path = "../../tests/privileged/bundle.rs"]
mod bundle;
#[path = "../../tests/privileged/guard.rs"]
mod guard;
#[path = "../../tests/privileged/attacks/loops.rs"]
mod loops;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use loops::Tried;

/// How long each attack goes on when nobody says.
const SECONDS: u64 = 60;

/// Name, the attack for a number of rounds, and the rounds after which the time is looked at.
type Attack = (&'static str, fn(usize) -> Tried, usize);

const ATTACKS: [Attack; 9] = [
    ("newcomers", loops::newcomers_under_attack, 20),
    ("executables", loops::executables_under_attack, 100),
    ("volume", loops::creations_under_exchange, 50),
    ("neighbour", loops::creations_beside_a_hostile_container, 50),
    ("directory", loops::directories_under_exchange, 50),
    ("masks", loops::masks_under_exchange, 50),
    ("terminals", loops::terminals_under_exchange, 50),
    ("lives", loops::lives_leave_no_mount, 20),
    ("one-id", loops::callers_of_one_id, 40),
];

struct Options {
    time: Duration,
    names: Vec<String>,
}

fn options() -> Result<Options, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_env();
    let (mut seconds, mut names) = (SECONDS, Vec::new());
    while let Some(argument) = parser.next().map_err(|e| e.to_string())? {
        match argument {
            Long("seconds") => {
                let value = parser.value().and_then(|value| value.parse());
                seconds = value.map_err(|e| format!("--seconds: {e}"))?;
            }
            Value(name) => names.push(name.to_string_lossy().into_owned()),
            other => return Err(other.unexpected().to_string()),
        }
    }
    let known = |name: &String| ATTACKS.iter().any(|(known, _, _)| known == name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        let all: Vec<_> = ATTACKS.iter().map(|(name, _, _)| *name).collect();
        return Err(format!("no attack {name:?}; there are {}", all.join(", ")));
    }
    let time = Duration::from_secs(seconds);
    Ok(Options { time, names })
}

/// Builds what is attacked and what attacks: cargo builds an example without its package's binary.
fn build() -> Result<(), String> {
    if std::env::var_os("AXIL_TEST_RUNTIME").is_some() {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--quiet", "-p", "runc-lite", "--bin", "runc-lite"];
    let status = Command::new(cargo)
        .args(arguments)
        .args(["--example", "attacker"])
        .status()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| "the build failed".to_owned())
}

/// One attack until its time is over; false when something got through.
fn attack((name, rounds, step): Attack, time: Duration) -> bool {
    let begin = Instant::now();
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    let mut through = false;
    while begin.elapsed() < time && !through {
        match std::panic::catch_unwind(|| rounds(step)) {
            Ok(tried) => {
                for (count, what) in tried {
                    *total.entry(what).or_default() += count;
                }
            }
            // The message is on standard error already.
            Err(_) => through = true,
        }
    }
    let tried: Vec<String> = total
        .iter()
        .map(|(what, n)| format!("{n} {what}"))
        .collect();
    let outcome = if through {
        "SOMETHING GOT THROUGH"
    } else {
        "nothing got through"
    };
    println!(
        "{name}: {outcome}; {} in {} s",
        tried.join(", "),
        begin.elapsed().as_secs()
    );
    !through
}

fn main() -> ExitCode {
    let options = match options().and_then(|options| build().map(|()| options)) {
        Ok(options) => options,
        Err(reason) => {
            println!("attack-loops: {reason}");
            return ExitCode::from(2);
        }
    };
    if !bundle::ready() {
        return ExitCode::from(2);
    }
    let chosen = |(name, _, _): &&Attack| {
        options.names.is_empty() || options.names.iter().any(|wanted| wanted == name)
    };
    let outcomes: Vec<bool> = ATTACKS
        .iter()
        .filter(chosen)
        .map(|one| attack(*one, options.time))
        .collect();
    if outcomes.iter().all(|held| *held) {
        ExitCode::SUCCESS
    } else {
        println!(
            "ATTACKS GOT THROUGH: {} of {}",
            outcomes.iter().filter(|held| !**held).count(),
            outcomes.len()
        );
        ExitCode::FAILURE
    }
}
