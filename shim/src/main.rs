//! The shim's program: reads the command line and does the one thing it asks for.

use std::io::{self, Write as _};
use std::process::ExitCode;

use axil_shim::args::{self, Action, Args};
use axil_shim::error::chain;
use axil_shim::{bootstrap, cleanup, server};

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(error) => return fail(&error),
    };
    let done = match args.action {
        Action::Version => version(),
        Action::Start => start(&args),
        Action::Delete => delete(&args),
        Action::Serve => return serve(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.as_ref()),
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn version() -> Done {
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    writeln!(io::stdout(), "{name}:\n  Version:  {version}")?;
    Ok(())
}

fn start(args: &Args) -> Done {
    let answer = bootstrap::start(args)?;
    io::stdout().write_all(answer.as_bytes())?;
    Ok(())
}

fn delete(args: &Args) -> Done {
    io::stdout().write_all(&cleanup::delete(args)?)?;
    Ok(())
}

fn serve(args: &Args) -> ExitCode {
    match server::serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        // The starter reads the reason from the readiness pipe, which is stdout.
        Err(error) => {
            let _ = io::stdout().write_all(chain(&error).as_bytes());
            fail(&error)
        }
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    let line = format!("{}: {}\n", env!("CARGO_PKG_NAME"), chain(error));
    let _ = io::stderr().write_all(line.as_bytes());
    ExitCode::FAILURE
}
