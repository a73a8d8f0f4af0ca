//! The commands of the operator. Each is a request of `control.rs`: to the daemon when it runs, otherwise
//! answered here, on the store it left.

pub mod archive;
pub mod fsck;
pub mod images;
pub mod pulls;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Subcommand;
use tokio::sync::mpsc;

use crate::app;
use crate::config::Config;
use crate::control::{self, Answer, Line, Request, client};
use crate::pieces::{Piece, WAITING};

/// The command itself failed; 1 to 4 say what a check found.
pub const FAILED: u8 = 8;

/// What else than serving can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check images, layers and documents.
    ///
    /// Exit code: 0 clean, 1 everything found was mended, 2 something waits for the next pull of its image, 4
    /// something is wrong, 8 the check could not be made.
    Fsck(fsck::Arguments),
    /// List, remove, import and export images.
    #[command(subcommand)]
    Images(images::Command),
    /// Show how far the pulls of the running daemon are.
    Pulls(pulls::Arguments),
}

/// Runs a command.
///
/// # Errors
/// What to tell the operator; the exit code is then [`FAILED`].
pub async fn run(command: Command, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Fsck(arguments) => fsck::run(&arguments, config).await,
        Command::Images(command) => images::run(command, config).await,
        Command::Pulls(arguments) => pulls::run(&arguments, config).await,
    }
}

/// A request without a body.
async fn ask(config: &Config, request: Request) -> anyhow::Result<Answer> {
    let (_none, body) = mpsc::channel(1);
    ask_with(config, request, body).await
}

/// Asks the daemon, or does it here.
async fn ask_with(
    config: &Config,
    request: Request,
    body: mpsc::Receiver<Piece>,
) -> anyhow::Result<Answer> {
    let socket = config.control_socket();
    match client::ask(&socket, &request, body).await? {
        Ok(answer) => Ok(answer),
        Err(_) if request.needs_daemon() => {
            anyhow::bail!("no daemon answers at {}", socket.display())
        }
        Err(body) => {
            let images = app::open_images(config)
                .await
                .context("no daemon answers, and without one")?;
            Ok(control::answer(&Arc::clone(&images), request, body).await?)
        }
    }
}

/// Passes the lines of an answer to `take` until it ends.
async fn each_line(answer: Answer, mut take: impl FnMut(Line)) -> anyhow::Result<()> {
    let Answer::Lines(mut lines) = answer else {
        anyhow::bail!("the answer is an archive");
    };
    while let Some(line) = lines.recv().await {
        match line {
            Line::Done => return Ok(()),
            Line::Failed(message) => anyhow::bail!(message),
            line @ (Line::Check(_) | Line::Image(_) | Line::Pulls(_)) => take(line),
        }
    }
    anyhow::bail!("the answer ended before it was complete")
}

/// A channel for a body.
fn body() -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    mpsc::channel(WAITING)
}

/// Writes a line to standard output.
#[expect(clippy::print_stdout, reason = "what the operator asked to see")]
fn say(line: impl std::fmt::Display) {
    println!("{line}");
}

/// Writes a line to standard error.
#[expect(clippy::print_stderr, reason = "what is not the result")]
fn remark(line: impl std::fmt::Display) {
    eprintln!("{line}");
}
