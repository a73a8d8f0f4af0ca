//! What the two processes tell each other, as JSON with a length before it. Paths may be any bytes, so they are
//! hexadecimal. Pure; what is read is bounded and checked here as far as it can be without context.

use serde::{Deserialize, Serialize};

use crate::content::digest::Digest;
use crate::error::ErrorClass;
use crate::layer::entry::LayerPath;
use crate::layer::inflate::Compression;
use crate::layer::limits::Limits;
use crate::layer::moves::{Move, Target};
use crate::layer::pipeline::Recipe;

/// Largest frame, in bytes: an attribute of the largest size in hexadecimal, or one batch of paths.
pub(super) const FRAME_MAX: usize = 1 << 20;
/// A batch of paths is sent when it has this many bytes.
pub(super) const BATCH: usize = 128 << 10;
/// Longest text of a failure, in bytes.
const TEXT_MAX: usize = 4096;

/// To the unpack process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Order {
    /// Unpack what comes in by the pipe into the directory that comes with this.
    Start(Job),
    /// What became of an attribute: an error number, or 0.
    Attribute(i32),
}

/// A recipe on the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    blob: String,
    compression: String,
    diff_id: String,
    limits: Limits,
}

impl Job {
    pub(super) fn new(recipe: &Recipe) -> Self {
        let compression = match recipe.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        Self {
            blob: recipe.blob.to_string(),
            compression: compression.to_owned(),
            diff_id: recipe.diff_id.to_string(),
            limits: recipe.limits,
        }
    }

    pub(super) fn recipe(&self) -> Result<Recipe, String> {
        let digest = |text: &str| text.parse::<Digest>().map_err(|error| error.to_string());
        Ok(Recipe {
            blob: digest(&self.blob)?,
            compression: match self.compression.as_str() {
                "none" => Compression::None,
                "gzip" => Compression::Gzip,
                "zstd" => Compression::Zstd,
                other => return Err(format!("compression {other:?} is not known")),
            },
            diff_id: digest(&self.diff_id)?,
            limits: self.limits,
        })
    }
}

/// From the unpack process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// It is shut in; image bytes are looked at from here on.
    Ready { landlock: bool },
    /// Inflated bytes so far.
    Inflated(u64),
    /// Set this attribute on the file whose descriptor comes with this.
    Attribute { name: Hex, value: Hex },
    /// Directories without an entry.
    Implied(Vec<Hex>),
    /// Hard links to what the layer does not have: link, target.
    Links(Vec<(Hex, Hex)>),
    /// What moved.
    Moves(Vec<MoveFrame>),
    /// All is applied.
    Done {
        opaque_root: bool,
        archive_bytes: Option<u64>,
    },
    /// It is not.
    Failed(Fault),
}

/// One move on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MoveFrame {
    before: u64,
    from: Hex,
    to: Option<Hex>,
    aside: Option<u64>,
}

impl MoveFrame {
    pub(super) fn new(made: &Move) -> Self {
        let (to, aside) = match &made.to {
            Target::Files(path) => (Some(Hex::of(path)), None),
            Target::Aside(number) => (None, Some(*number)),
        };
        Self {
            before: made.before,
            from: Hex::of(&made.from),
            to,
            aside,
        }
    }

    /// How much of a frame it takes.
    pub(super) fn length(&self) -> usize {
        self.from.length() + self.to.as_ref().map_or(0, Hex::length)
    }

    pub(super) fn read(&self) -> Result<Move, String> {
        let to = match (&self.to, self.aside) {
            (Some(to), None) => Target::Files(to.path()?),
            (None, Some(number)) => Target::Aside(number),
            _ => return Err("a move without one target".to_owned()),
        };
        Ok(Move {
            before: self.before,
            from: self.from.path()?,
            to,
        })
    }
}

/// Why a layer was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    /// The failure with its causes, outermost first.
    pub(super) text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FaultKind {
    /// The archive has another digest.
    DiffId(String),
    /// The blob is no compressed data.
    Inflate,
    /// The archive cannot be applied; whose fault that is.
    Apply(Blame),
    /// The process itself cannot work.
    Process,
}

/// The classes a layer's failure can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Blame {
    Archive,
    Exhausted,
    Unavailable,
    Machine,
}

impl Blame {
    pub(super) fn of(class: ErrorClass) -> Self {
        match class {
            ErrorClass::InvalidArgument => Self::Archive,
            ErrorClass::Exhausted => Self::Exhausted,
            ErrorClass::Unavailable => Self::Unavailable,
            _ => Self::Machine,
        }
    }

    pub(super) fn class(self) -> ErrorClass {
        match self {
            Self::Archive => ErrorClass::InvalidArgument,
            Self::Exhausted => ErrorClass::Exhausted,
            Self::Unavailable => ErrorClass::Unavailable,
            Self::Machine => ErrorClass::Internal,
        }
    }
}

impl Fault {
    pub(super) fn new(kind: FaultKind, error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Self::told(kind, &text)
    }

    pub(super) fn told(kind: FaultKind, text: &str) -> Self {
        Self {
            kind,
            text: printable(text),
        }
    }
}

/// Cuts and escapes a text: on the far side it comes from a process an image may have taken over.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if out.len() > TEXT_MAX {
            out.push_str("...");
            break;
        }
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Bytes in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hex(String);

impl Hex {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(hex::encode(bytes))
    }

    pub(super) fn of(path: &LayerPath) -> Self {
        Self::new(path.as_bytes())
    }

    /// How much of a frame it takes.
    pub(super) fn length(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&self) -> Result<Vec<u8>, String> {
        hex::decode(&self.0).map_err(|error| error.to_string())
    }

    pub(super) fn path(&self) -> Result<LayerPath, String> {
        LayerPath::from_record(&self.bytes()?)
            .ok_or_else(|| "not a path inside the layer".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_that_leads_out_is_not_taken() {
        for bad in [&b"../x"[..], b"/x", b"a//b", b"a/../b", b"a\0b"] {
            assert!(Hex::new(bad).path().is_err(), "{}", bad.escape_ascii());
        }
        assert!(Hex("zz".to_owned()).path().is_err());
        assert!(Hex::new(b"a/b").path().is_ok());
    }

    #[test]
    fn a_move_has_one_target() {
        let path = || Hex::new(b"a");
        for (to, aside) in [(None, None), (Some(path()), Some(1))] {
            let frame = MoveFrame {
                before: 1,
                from: path(),
                to,
                aside,
            };
            assert!(frame.read().is_err());
        }
    }

    #[test]
    fn what_is_told_has_one_line_and_an_end() {
        let told = printable(&format!("a\nb\u{1b}[31m{}", "x".repeat(100_000)));
        assert!(told.starts_with("a\\nb\\u{1b}[31m") && told.len() < TEXT_MAX + 16);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_report_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = serde_json::from_slice::<Report>(&bytes);
        }
    }
}
