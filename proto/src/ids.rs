//! Identifiers that cross process borders: parsed once, valid ever after.

use std::fmt;
use std::str::FromStr;

/// Longest identifier accepted, in bytes. Ours have 64; foreign ones are kept below a path component.
pub const MAX_ID_LENGTH: usize = 128;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// It is empty.
    #[error("{kind} id is empty")]
    Empty {
        /// Which identifier.
        kind: &'static str,
    },
    /// It is longer than [`MAX_ID_LENGTH`].
    #[error("{kind} id has {length} bytes, more than {MAX_ID_LENGTH}")]
    TooLong {
        /// Which identifier.
        kind: &'static str,
        /// Bytes given.
        length: usize,
    },
    /// It holds something other than ASCII letters, digits, `-`, `_` and `.`, or starts with a sign.
    #[error(
        "{kind} id {text:?} may hold only letters, digits, '-', '_' and '.', and starts with a letter or digit"
    )]
    Characters {
        /// Which identifier.
        kind: &'static str,
        /// The text given.
        text: String,
    },
}

fn check(kind: &'static str, text: &str) -> Result<(), ParseIdError> {
    if text.is_empty() {
        return Err(ParseIdError::Empty { kind });
    }
    if text.len() > MAX_ID_LENGTH {
        return Err(ParseIdError::TooLong {
            kind,
            length: text.len(),
        });
    }
    let starts = text.as_bytes()[0].is_ascii_alphanumeric();
    let rest = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if starts && rest {
        Ok(())
    } else {
        Err(ParseIdError::Characters {
            kind,
            text: text.to_owned(),
        })
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text of the identifier.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                check($kind, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(
    /// Names a pod (a CRI pod sandbox) on this node.
    PodId,
    "pod"
);
id!(
    /// Names a container on this node.
    ContainerId,
    "container"
);
id!(
    /// Names an extra process within a container.
    ExecId,
    "exec"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_runtimes_use() {
        for text in ["a", "0123456789abcdef", "my-pod_1.2"] {
            assert_eq!(text.parse::<PodId>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn refuses_what_could_leave_a_directory() {
        for text in ["", ".", "..", "../x", "a/b", "a\nb", "a\0", "-x", "ü"] {
            assert!(text.parse::<ContainerId>().is_err(), "{text:?}");
        }
        assert!("x".repeat(MAX_ID_LENGTH + 1).parse::<ExecId>().is_err());
    }
}
