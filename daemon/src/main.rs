//! axild: reads the command line and the configuration, runs the daemon, answers with an exit code. Started by
//! the name of the unpack process, or of the holder of a user namespace, it is that.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use axild::commands::{self, Command};
use axild::config::{self, Config};
use axild::engine::steps::STEPS;
use clap::Parser;

/// CRI daemon of axil, a Kubernetes node runtime. Without a command it serves; the commands ask the daemon that
/// runs, or work on its store when none does.
#[derive(Debug, Parser)]
#[command(name = "axild", version)]
struct Arguments {
    /// Configuration file; without one /etc/axil/config.toml is read if it exists.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Directory of images, layers and records.
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    /// Directory of run-time files.
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
    /// Socket of the CRI.
    #[arg(long, value_name = "unix:///PATH")]
    listen: Option<String>,
    /// Address of the metrics endpoint; empty serves none.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<String>,
    /// Print the default configuration file and exit.
    #[arg(long)]
    print_config: bool,
    /// Print the steps of every verb, one per line, and exit.
    #[arg(long)]
    list_steps: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where the configuration is looked for when none is named.
const DEFAULT_CONFIG: &str = "/etc/axil/config.toml";

fn main() -> ExitCode {
    // Order: before anything else. This program is its own unpack process, so that the two are of one version.
    if axil_snapshotter::worker::is_asked_for() {
        return axil_snapshotter::worker::main();
    }
    if axild::adapters::namespaces::is_asked_for() {
        return axild::adapters::namespaces::main();
    }
    let arguments = Arguments::parse();
    let failed = match arguments.command {
        Some(_) => ExitCode::from(commands::FAILED),
        None => ExitCode::FAILURE,
    };
    run(arguments).unwrap_or_else(|error| {
        complain(&error);
        failed
    })
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a program that cannot go on"
)]
fn complain(error: &anyhow::Error) {
    eprintln!("axild: {error:#}");
}

#[expect(clippy::print_stdout, reason = "what the operator asked to see")]
fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.print_config {
        print!("{}", config::default_file());
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.list_steps {
        for (verb, steps) in STEPS {
            for step in *steps {
                println!("{verb}/{step}");
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let default = PathBuf::from(DEFAULT_CONFIG);
    let file = arguments
        .config
        .or_else(|| default.exists().then_some(default));
    let mut config = Config::load(file.as_deref())?;
    let set = |value: &mut PathBuf, given: Option<PathBuf>| {
        if let Some(given) = given {
            *value = given;
        }
    };
    set(&mut config.root, arguments.root);
    set(&mut config.state, arguments.state);
    if let Some(listen) = arguments.listen {
        config.listen = listen;
    }
    if let Some(listen) = arguments.metrics {
        config.metrics.listen = listen;
    }
    config.check()?;
    if arguments.command.is_some() {
        // What a command has to say it says itself.
        "error".clone_into(&mut config.log.level);
    }
    axild::telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match arguments.command {
        Some(command) => {
            let done = runtime.block_on(commands::run(command, &config));
            // A thread that reads standard input would be waited for otherwise.
            runtime.shutdown_background();
            done
        }
        None => runtime
            .block_on(axild::app::serve(config))
            .map(|()| ExitCode::SUCCESS),
    }
}
