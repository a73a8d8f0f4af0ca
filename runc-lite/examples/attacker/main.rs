//! What a hostile container runs: one attack per name, until a time is over or the container is killed.
//!
//! Every attack prints a line for each thing it got (`GOT …`) and at the end, or after each victim, what it
//! tried (`TRIED …`); the tests read these lines. It is a program of its own because the attacks need
//! system calls that no busybox applet makes. It holds no exploit of a kernel, only the bytes of the
//! advisories in `tests/privileged/attacks.rs`.
#![expect(
    clippy::print_stdout,
    reason = "the lines on standard output are the result"
)]

mod calls;
mod crawl;
mod exchange;
mod leave;
mod overwrite;
mod sys;
mod terminal;

use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: attacker crawl SECONDS | overwrite SECONDS | exchange SECONDS A B | \
                     terminal | leave PATH | who | calls | keys NAME | add-key NAME";

/// The end of an attack that may take `seconds`.
fn deadline(seconds: &str) -> Option<Instant> {
    let seconds = seconds.parse().ok()?;
    Some(Instant::now() + Duration::from_secs(seconds))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let end = words.get(1).and_then(|word| deadline(word));
    match (words.as_slice(), end) {
        (["crawl", _], Some(end)) => crawl::run(end),
        (["overwrite", _], Some(end)) => overwrite::run(end),
        (["exchange", _, a, b], Some(end)) => exchange::run(end, a, b),
        (["terminal"], _) => terminal::run(),
        (["leave", path], _) => leave::run(path),
        (["who"], _) => println!("{}", rustix::process::geteuid()),
        (["calls"], _) => calls::run(),
        (["keys", name], _) => calls::search_keys(name),
        (["add-key", name], _) => calls::add_key(name),
        _ => {
            println!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
