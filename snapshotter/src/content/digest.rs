//! The digest of a blob as a validated value: `sha256:<64 hex>` or `sha512:<128 hex>`.
//!
//! Grammar and registered algorithms: OCI image specification, descriptor, "Digests".

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// Longest part of a refused value that an error repeats, in characters.
const SHOWN_CHARS: usize = 80;

/// A hash algorithm registered by the OCI image specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, which every implementation has to support.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Returns the name used before the colon.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns the number of hexadecimal characters of a digest.
    #[must_use]
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A checked digest. Its text is safe to use as a file name: lower-case hexadecimal of exact length.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

impl Digest {
    /// Computes the SHA-256 digest of `bytes`.
    #[must_use]
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Self {
            algorithm: Algorithm::Sha256,
            hex: hex::encode(Sha256::digest(bytes)).into(),
        }
    }

    /// Computes the digest of `bytes` with `algorithm`.
    #[must_use]
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Returns the algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the lower-case hexadecimal part, of the length the algorithm demands.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Tells whether `bytes` have this digest.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        Self::of(self.algorithm, bytes) == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, hex)) = text.split_once(':') else {
            return Err(ParseDigestError::NoSeparator { value: shown(text) });
        };
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => {
                return Err(ParseDigestError::Algorithm {
                    value: shown(text),
                    name: shown(name),
                });
            }
        };
        if hex.len() != algorithm.hex_len() {
            return Err(ParseDigestError::Length {
                value: shown(text),
                expected: algorithm.hex_len(),
                found: hex.len(),
            });
        }
        // Upper case is refused: the specification demands lower case, and one content must
        // have one name.
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseDigestError::Hex { value: shown(text) });
        }
        Ok(Self {
            algorithm,
            hex: hex.into(),
        })
    }
}

/// Hashes a stream with the algorithm of the digest it will be compared with.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Starts an empty hash.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// Returns the digest of everything added.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest {
                algorithm: Algorithm::Sha256,
                hex: hex::encode(state.finalize()).into(),
            },
            State::Sha512(state) => Digest {
                algorithm: Algorithm::Sha512,
                hex: hex::encode(state.finalize()).into(),
            },
        }
    }
}

/// Why a text is not a digest. Values are cut to 80 characters and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// There is no `:` between algorithm and hexadecimal part.
    #[error("digest \"{value}\" has no \":\" between algorithm and value")]
    NoSeparator {
        /// The refused text.
        value: String,
    },
    /// The algorithm is not registered, or not supported here.
    #[error("digest \"{value}\": algorithm \"{name}\" is not one of sha256, sha512")]
    Algorithm {
        /// The refused text.
        value: String,
        /// The algorithm it names.
        name: String,
    },
    /// The hexadecimal part is too short or too long.
    #[error("digest \"{value}\": expected {expected} characters after \":\", found {found}")]
    Length {
        /// The refused text.
        value: String,
        /// Characters the algorithm demands.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A character is not lower-case hexadecimal.
    #[error("digest \"{value}\" has characters other than 0-9 and a-f after \":\"")]
    Hex {
        /// The refused text.
        value: String,
    },
}

/// Cuts and escapes a refused value for an error message.
fn shown(value: &str) -> String {
    let mut text: String = value
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(char::escape_default)
        .collect();
    if value.chars().nth(SHOWN_CHARS).is_some() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_the_empty_text() {
        assert_eq!(Digest::sha256_of(b"").to_string(), EMPTY);
    }

    #[test]
    fn refuses_what_is_not_a_digest() {
        let hex64 = "a".repeat(64);
        for text in [
            "",
            ":",
            "sha256",
            "sha256:",
            &format!("sha1:{}", "a".repeat(40)),
            &format!("SHA256:{hex64}"),
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha256:{}", "a".repeat(63)),
            &format!("sha256:{}", "a".repeat(65)),
            &format!("sha512:{hex64}"),
            &format!("sha256:{}/", "a".repeat(63)),
            &format!("sha256:../{}", "a".repeat(61)),
            &format!(" sha256:{hex64}"),
            &format!("sha256:{hex64}\n"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn errors_are_bounded_and_escaped() {
        let error = format!("md5:\n{}", "x".repeat(1 << 20))
            .parse::<Digest>()
            .unwrap_err();
        let text = error.to_string();
        assert!(text.len() < 300, "{}", text.len());
        assert!(!text.contains('\n'));
    }

    proptest! {
        #[test]
        fn parse_and_print_are_inverse(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let digest = Digest::of(algorithm, &bytes);
                prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest.clone()));
                prop_assert!(digest.matches(&bytes));
            }
        }

        #[test]
        fn parse_never_panics(text in "\\PC*") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
