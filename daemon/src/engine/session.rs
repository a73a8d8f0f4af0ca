//! The client's end of a streaming session, as a verb sees it: queues and signs, no wire.

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::domain::failure::Failure;
pub use crate::ports::TerminalSize;

/// Which streams a request wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamsAsked {
    /// Input from the client.
    pub stdin: bool,
    /// Standard output to the client.
    pub stdout: bool,
    /// Standard error to the client.
    pub stderr: bool,
    /// A terminal, which has one output.
    pub terminal: bool,
}

impl StreamsAsked {
    /// Refuses what no session can have.
    ///
    /// # Errors
    /// `InvalidArgument` that names the field.
    pub fn check(self) -> Result<(), Failure> {
        if self.terminal && self.stderr {
            let why = "must be false with tty: a terminal has one output";
            return Err(Failure::invalid("stderr", true, why));
        }
        if !(self.stdin || self.stdout || self.stderr) {
            let why = "one of stdin, stdout and stderr must be true";
            return Err(Failure::invalid("stdin", false, why));
        }
        Ok(())
    }
}

/// A client.
#[derive(Debug)]
pub struct Session {
    /// Its input; closed when it has no more. Absent when none was asked for.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// Takes standard output; full while the client does not read. Closed when it is gone.
    pub stdout: Option<mpsc::Sender<Bytes>>,
    /// As `stdout`.
    pub stderr: Option<mpsc::Sender<Bytes>>,
    /// The newest size of its terminal.
    pub resize: Option<watch::Receiver<Option<TerminalSize>>>,
    /// True once it is gone.
    pub gone: watch::Receiver<bool>,
}

/// Returns when the client is gone.
pub(crate) async fn is_gone(mut gone: watch::Receiver<bool>) {
    // A wire that was dropped is gone as well.
    let _dropped = gone.wait_for(|gone| *gone).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_a_stream_and_a_terminal_no_standard_error() {
        let asked = |stdin, stdout, stderr, terminal| StreamsAsked {
            stdin,
            stdout,
            stderr,
            terminal,
        };
        for good in [
            asked(true, false, false, false),
            asked(false, true, true, false),
            asked(true, true, false, true),
        ] {
            good.check().unwrap();
        }
        let error = asked(true, true, true, true).check().unwrap_err();
        assert!(error.message.starts_with("stderr"), "{error}");
        assert!(asked(false, false, false, true).check().is_err());
    }
}
