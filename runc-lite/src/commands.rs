//! The command line, in runc's words: global options, then one file per verb.

mod create;
mod delete;
mod descriptors;
mod events;
mod exec;
mod features;
mod help;
mod kill;
mod list;
mod pause;
mod ps;
mod resume;
mod rootless;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::prelude::*;

use crate::cgroup::{CgroupError, Driver};
use crate::error_chain;
use crate::log::{Format, Level, Log};
use crate::process::ProcessError;
use crate::resctrl::ResctrlError;
use crate::seccomp::SeccompError;
use crate::spec::SpecError;
use crate::state::{ContainerId, StateError};

/// Where containers are kept when `--root` does not say.
const DEFAULT_ROOT: &str = "/run/runc-lite";
/// Version of the runtime specification this runtime follows.
pub(crate) const OCI_VERSION: &str = "1.3.0";

/// What ends a command without success.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// The command line cannot be understood.
    #[error("{reason} (see --help)")]
    Usage { reason: String },
    /// Not a failure: the command was asked how it is used.
    #[error("help is wanted")]
    Help,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Resctrl(#[from] ResctrlError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The container is not in a state for this.
    #[error("{reason}")]
    Refused { reason: String },
    #[error("cannot {operation} {object}")]
    Io {
        operation: &'static str,
        object: String,
        source: std::io::Error,
    },
}

impl From<lexopt::Error> for CommandError {
    fn from(error: lexopt::Error) -> CommandError {
        match error {
            // No command has an option of these names, so that each of them gives its help.
            lexopt::Error::UnexpectedOption(name) if name == "-h" || name == "--help" => {
                CommandError::Help
            }
            error => usage(error.to_string()),
        }
    }
}

fn usage(reason: impl Into<String>) -> CommandError {
    CommandError::Usage {
        reason: reason.into(),
    }
}

fn refused(reason: impl Into<String>) -> CommandError {
    CommandError::Refused {
        reason: reason.into(),
    }
}

fn io_error(
    operation: &'static str,
    object: impl Into<String>,
    source: std::io::Error,
) -> CommandError {
    CommandError::Io {
        operation,
        object: object.into(),
        source,
    }
}

/// What the global options say.
#[derive(Debug)]
struct Globals {
    root: PathBuf,
    /// Whether the caller named the root; only the default one need not exist.
    root_is_given: bool,
    cgroup_driver: Driver,
    /// Whether the cgroup may be done without where the caller may not make it.
    rootless: bool,
    log: Log,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    let named_pause = Path::new(&program)
        .file_name()
        .is_some_and(|name| name == "pause");
    if named_pause || (arguments.len() == 1 && arguments[0] == "pause") {
        return pause::run();
    }
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut log = Log::none();
    match dispatch(&mut parser, &mut log) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let text = error_chain(&failure.error);
            log.write(Level::Error, &text);
            if !log.is_stderr() {
                // Nobody may be left to read it.
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            ExitCode::from(failure.code)
        }
    }
}

struct Failure {
    error: CommandError,
    code: u8,
}

fn dispatch(parser: &mut lexopt::Parser, log: &mut Log) -> Result<u8, Failure> {
    let general = |error| Failure { error, code: 1 };
    let (globals, command) = match parse_globals(parser).map_err(general)? {
        Parsed::Command(globals, command) => (globals, command),
        Parsed::Print(text) => return print(&text).map(|()| 0).map_err(general),
    };
    let result = match command.to_str() {
        Some("create") => create::run(&globals, parser).map(|()| 0),
        Some("run") => run::run(&globals, parser),
        Some("start") => start::run(&globals, parser).map(|()| 0),
        Some("exec") => exec::run(&globals, parser),
        Some("kill") => kill::run(&globals, parser).map(|()| 0),
        Some("delete") => delete::run(&globals, parser).map(|()| 0),
        Some("state") => state::run(&globals, parser).map(|()| 0),
        Some("list") => list::run(&globals, parser).map(|()| 0),
        Some("features") => features::run(parser).map(|()| 0),
        Some("spec") => spec::run(parser).map(|()| 0),
        // Without an id it is the sandbox process, see `main`.
        Some("pause") => pause::freeze(&globals, parser).map(|()| 0),
        Some("resume") => resume::run(&globals, parser).map(|()| 0),
        Some("ps") => ps::run(&globals, parser).map(|()| 0),
        Some("update") => update::run(&globals, parser).map(|()| 0),
        Some("events") => events::run(&globals, parser).map(|()| 0),
        Some("checkpoint") => Err(absent("checkpoint", help::CHECKPOINT_IS_ABSENT, parser)),
        Some("restore") => Err(absent("restore", help::RESTORE_IS_ABSENT, parser)),
        Some("help") => help(parser).map(|()| 0),
        Some("version") => print(&version()).map(|()| 0),
        _ => Err(no_such_command(&command)),
    };
    if let (Err(CommandError::Help), Some(name)) = (&result, command.to_str()) {
        let text = help::of(name).unwrap_or_else(help::general);
        return print(&text).map(|()| 0).map_err(general);
    }
    // runc's convention: 255 tells the runtime's own failure from an exit code of the program.
    let code = if command == "exec" { 255 } else { 1 };
    *log = globals.log;
    result.map_err(|error| Failure { error, code })
}

/// A command of runc that is left out on purpose.
///
/// `-h` gives its help. `--help` fails as the command does: podman takes a `checkpoint --help`
/// that succeeds for the promise of a checkpoint, and would go on with it.
fn absent(name: &str, reason: &str, parser: &mut lexopt::Parser) -> CommandError {
    match parser.next() {
        Ok(Some(Short('h'))) => CommandError::Help,
        _ => refused(format!("{name} is {reason}")),
    }
}

fn no_such_command(command: &OsString) -> CommandError {
    // In the words that scripts written for runc look for.
    usage(format!(
        "No help topic for '{}': there is no such command",
        command.to_string_lossy()
    ))
}

/// `help [COMMAND]`.
fn help(parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    match parser.next()? {
        None => print(&help::general()),
        Some(Value(command)) => {
            let text = command.to_str().and_then(help::of);
            print(&text.ok_or_else(|| no_such_command(&command))?)
        }
        Some(other) => Err(other.unexpected().into()),
    }
}

fn version() -> String {
    let number = env!("CARGO_PKG_VERSION");
    // Set by those who build from a repository; a build from an archive knows no commit.
    let commit = option_env!("AXIL_COMMIT").map_or(String::new(), |id| format!("commit: {id}\n"));
    format!("runc-lite version {number}\n{commit}spec: {OCI_VERSION}\n")
}

enum Parsed {
    Command(Globals, OsString),
    Print(String),
}

fn parse_globals(parser: &mut lexopt::Parser) -> Result<Parsed, CommandError> {
    let mut given_root = None;
    let mut log_path: Option<PathBuf> = None;
    let mut format = Format::Text;
    let mut debug = false;
    let mut cgroup_driver = Driver::Cgroupfs;
    let mut rootless_value = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("root") => given_root = Some(root_directory(&parser.value()?)?),
            Long("log") => log_path = Some(PathBuf::from(parser.value()?)),
            Long("log-format") => {
                format = match parser.value()?.to_str() {
                    Some("text") => Format::Text,
                    Some("json") => Format::Json,
                    other => {
                        return Err(usage(format!("--log-format {other:?} is not text or json")));
                    }
                };
            }
            Long("debug") => debug = true,
            Long("systemd-cgroup") => cgroup_driver = Driver::Systemd,
            Long("rootless") => {
                rootless_value = Some(parser.value()?);
            }
            Short('h') | Long("help") => return Ok(Parsed::Print(help::general())),
            Short('v') | Long("version") => {
                return Ok(Parsed::Print(version()));
            }
            Value(command) => {
                let log = match log_path {
                    Some(path) => Log::open(&path, format, debug).map_err(|e| {
                        io_error("open the log file", path.display().to_string(), e)
                    })?,
                    None => Log::stderr(format, debug),
                };
                let globals = Globals {
                    root_is_given: given_root.is_some(),
                    root: given_root.unwrap_or_else(rootless::default_root),
                    cgroup_driver,
                    rootless: rootless::parse(rootless_value.as_deref())?,
                    log,
                };
                return Ok(Parsed::Command(globals, command));
            }
            Short(_) | Long(_) => return Err(argument.unexpected().into()),
        }
    }
    Ok(Parsed::Print(help::general()))
}

/// The value of `--root`. The root directory itself is always a mistake, such as an empty variable.
fn root_directory(value: &OsString) -> Result<PathBuf, CommandError> {
    if value.is_empty() {
        return Err(usage("--root is empty"));
    }
    let root = absolute(Path::new(value))?;
    let lexical = crate::spec::clean_path(&root.to_string_lossy());
    if lexical == "/" {
        return Err(usage(format!("--root {value:?} is the root directory /")));
    }
    Ok(root)
}

fn print(text: &str) -> Result<(), CommandError> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| io_error("write to", "standard output", e))
}

/// `path` from the caller's directory, without resolving links.
fn absolute(path: &Path) -> Result<PathBuf, CommandError> {
    std::path::absolute(path).map_err(|e| io_error("resolve", path.display().to_string(), e))
}

/// Parses a container id given as an argument.
fn parse_id(argument: Option<OsString>) -> Result<ContainerId, CommandError> {
    let argument = argument.ok_or_else(|| usage("a container id is needed"))?;
    let text = argument
        .to_str()
        .ok_or_else(|| usage(format!("container id {argument:?} is not valid text")))?;
    Ok(ContainerId::parse(text)?)
}

/// The one argument of a verb without options: the id.
fn only_id(parser: &mut lexopt::Parser) -> Result<ContainerId, CommandError> {
    let mut id = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Value(value) if id.is_none() => id = Some(value),
            other => return Err(other.unexpected().into()),
        }
    }
    parse_id(id)
}

fn text_value(parser: &mut lexopt::Parser, option: &str) -> Result<String, CommandError> {
    let value = parser.value()?;
    value
        .into_string()
        .map_err(|value| usage(format!("--{option} {value:?} is not valid text")))
}

fn number_value(parser: &mut lexopt::Parser, option: &str) -> Result<u32, CommandError> {
    let text = text_value(parser, option)?;
    text.parse()
        .map_err(|_| usage(format!("--{option} {text:?} is not a number")))
}

/// Goes on from a read-only copy of this binary: for the verbs whose children enter a container.
fn run_sealed(globals: &Globals) -> Result<(), CommandError> {
    crate::process::run_from_sealed_copy(&globals.root)
        .map_err(|e| io_error("run from", "a read-only copy of this binary", e))
}
