//! The shim's command line, in containerd's convention: single-dash flags, then an action.

use std::ffi::OsString;
use std::path::PathBuf;

/// What this invocation is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the server of a pod, or find it, and print its address.
    Start,
    /// Clean up what a dead shim left of one task.
    Delete,
    /// Be the server. Only `start` asks for it.
    Serve,
    /// Print the version.
    Version,
}

/// A parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// The containerd namespace of the task.
    pub namespace: String,
    /// The id of the task, or of the pod when serving.
    pub id: String,
    /// The daemon's own address; passed on, not used.
    pub address: String,
    /// The bundle; the working directory unless given.
    pub bundle: Option<PathBuf>,
    /// The path of the socket that is served; only with [`Action::Serve`].
    pub socket: Option<PathBuf>,
    /// Whether decisions are logged too.
    pub debug: bool,
}

/// Why a command line is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A flag that does not exist.
    #[error("unknown flag {flag:?}")]
    UnknownFlag {
        /// As written.
        flag: String,
    },
    /// A flag without its value.
    #[error("flag -{flag} needs a value")]
    MissingValue {
        /// Its name.
        flag: String,
    },
    /// An action that does not exist.
    #[error("unknown action {action:?}, expected \"start\" or \"delete\"")]
    UnknownAction {
        /// As written.
        action: String,
    },
    /// More than one action.
    #[error("unexpected argument {argument:?} after the action")]
    Trailing {
        /// As written.
        argument: String,
    },
    /// An argument that is not UTF-8.
    #[error("argument {argument:?} is not UTF-8")]
    Encoding {
        /// Lossy.
        argument: String,
    },
    /// `-namespace` or `-id` has no acceptable value.
    #[error("flag -{flag} {reason}, got {value:?}")]
    Value {
        /// Its name.
        flag: &'static str,
        /// What is wrong.
        reason: String,
        /// As written.
        value: String,
    },
}

/// Parses the arguments that follow the program name.
///
/// # Errors
/// The first argument that cannot be understood, or a missing identity.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Args, ArgsError> {
    let mut args = Args {
        action: Action::Serve,
        namespace: String::new(),
        id: String::new(),
        address: String::new(),
        bundle: None,
        socket: None,
        debug: false,
    };
    let mut action = None;
    let mut rest = arguments.into_iter().map(text);
    while let Some(argument) = rest.next() {
        let argument = argument?;
        if action.is_some() {
            return Err(ArgsError::Trailing { argument });
        }
        let Some(flag) = argument.strip_prefix('-') else {
            action = Some(parse_action(&argument)?);
            continue;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (flag.to_owned(), None),
        };
        let mut value = || match inline.clone() {
            Some(value) => Ok(value),
            None => rest
                .next()
                .unwrap_or_else(|| Err(ArgsError::MissingValue { flag: name.clone() })),
        };
        match name.as_str() {
            "v" | "version" => action = Some(Action::Version),
            "debug" => args.debug = inline.as_deref() != Some("false"),
            "namespace" => args.namespace = value()?,
            "id" => args.id = value()?,
            "address" => args.address = value()?,
            "bundle" => args.bundle = Some(PathBuf::from(value()?)),
            "socket" => args.socket = Some(PathBuf::from(value()?)),
            // Events go over ttrpc, so the publishing binary is not needed.
            "publish-binary" => drop(value()?),
            _ => return Err(ArgsError::UnknownFlag { flag: argument }),
        }
    }
    args.action = action.unwrap_or(Action::Serve);
    if args.action != Action::Version {
        check_identity("namespace", &args.namespace)?;
        check_identity("id", &args.id)?;
    }
    Ok(args)
}

fn text(argument: OsString) -> Result<String, ArgsError> {
    argument.into_string().map_err(|raw| ArgsError::Encoding {
        argument: raw.to_string_lossy().into_owned(),
    })
}

fn parse_action(action: &str) -> Result<Action, ArgsError> {
    match action {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        _ => Err(ArgsError::UnknownAction {
            action: action.to_owned(),
        }),
    }
}

/// Both become path components: of the socket's hash and of the runtime's state directory.
fn check_identity(flag: &'static str, value: &str) -> Result<(), ArgsError> {
    match value.parse::<axil_proto::ids::ContainerId>() {
        Ok(_) => Ok(()),
        Err(error) => Err(ArgsError::Value {
            flag,
            reason: error.to_string(),
            value: value.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Args, ArgsError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn reads_what_containerd_writes() {
        let args = of("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/c -id abc -debug start").unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!(
            (args.namespace.as_str(), args.id.as_str()),
            ("k8s.io", "abc")
        );
        assert!(args.debug);
        let args = of("-namespace n -id abc -bundle /b delete").unwrap();
        assert_eq!(args.action, Action::Delete);
        assert_eq!(args.bundle, Some(PathBuf::from("/b")));
        assert_eq!(of("--namespace=n --id=x").unwrap().action, Action::Serve);
        assert_eq!(of("-v").unwrap().action, Action::Version);
    }

    #[test]
    fn refuses_by_name() {
        let check = |line: &str, part: &str| {
            let error = of(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        };
        check("-namespace n -id x stop", "\"stop\"");
        check("-namespace n -id", "-id needs a value");
        check("-namespace n start", "-id");
        check("-id x start", "-namespace");
        check("-namespace n -id ../x start", "../x");
        check("-namespace n -id x -colour start", "-colour");
        check("-namespace n -id x start now", "\"now\"");
    }
}
