//! Image references as Kubernetes users write them, in one canonical form, and the names that CRI
//! calls accept for an image (a reference, an id, a short id). No registry is asked here.
//!
//! Grammar and lengths follow the distribution project's reference grammar:
//!
//! ```text
//! reference  = [ host [ ":" port ] "/" ] path [ ":" tag ] [ "@" digest ]
//! host       = label *( "." label ) | "[" ipv6 "]"
//! path       = component *( "/" component )             at most 255 characters
//! component  = run *( ( "." | "_" | "__" | 1*"-" ) run )   run = 1*( a-z | 0-9 )
//! tag        = ( word ) *127( word | "." | "-" )        word = A-Z a-z 0-9 _
//! ```

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use axil_snapshotter::{Algorithm, Digest, ParseDigestError};

use crate::domain::failure::Class;

/// The host that a reference without a host means.
pub const DEFAULT_HOST: &str = "docker.io";
/// The tag that a reference with neither tag nor digest means.
pub const DEFAULT_TAG: &str = "latest";

/// Longest accepted reference text, in bytes: host, path, tag and digest at their limits.
const MAX_REFERENCE_BYTES: usize = 1024;
/// Longest host name without port, in bytes (RFC 1035).
const MAX_HOST_BYTES: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;
/// Longest path of a repository, in bytes.
const MAX_REPOSITORY_BYTES: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG_BYTES: usize = 128;
/// Shortest prefix of an image id that may stand for the id without `sha256:`, in hexadecimal characters. A
/// shorter one is more likely a name: `cafe` must not become whatever image has an id that begins so.
const MIN_BARE_PREFIX: usize = 6;
/// Longest part of a refused value that an error repeats, in characters.
const SHOWN_CHARS: usize = 80;

/// A checked image reference in canonical form: it always has a host, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: Box<str>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a reference, filling in what docker's short forms leave out: `nginx` is
    /// `docker.io/library/nginx:latest`.
    ///
    /// # Errors
    /// Names the value and the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        let refuse = |problem| ParseReferenceError {
            value: shown(text),
            problem,
        };
        Self::parse_parts(text).map_err(refuse)
    }

    fn parse_parts(text: &str) -> Result<Self, ReferenceProblem> {
        if text.is_empty() {
            return Err(ReferenceProblem::Empty);
        }
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(ReferenceProblem::TooLong {
                part: "reference",
                limit: MAX_REFERENCE_BYTES,
                found: text.len(),
            });
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (host, path) = split_host(name);
        let (path, tag) = match path.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        check_host(host)?;
        let host = if host == "index.docker.io" {
            DEFAULT_HOST
        } else {
            host
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        // Refused as docker does: it could not be told from an image id.
        if path.len() == Algorithm::Sha256.hex_len() && is_hex(path) {
            return Err(ReferenceProblem::LooksLikeId);
        }
        let repository = if host == DEFAULT_HOST && !path.contains('/') && !path.is_empty() {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        check_repository(&repository)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.into()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.into()),
        };
        Ok(Self {
            host: host.into(),
            repository: repository.into(),
            tag,
            digest,
        })
    }

    /// Returns the registry host with its port if one was given, e.g. `docker.io`, `[::1]:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the path of the repository without the host, e.g. `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns host and repository, e.g. `docker.io/library/nginx`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// Returns the tag, `None` only when a digest was given without one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest. When there is one it decides what is pulled, whatever the tag says.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns the name an image is stored under: with its digest when it has one, else with its tag.
    #[must_use]
    pub fn stored_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.name()),
            (None, tag) => format!("{}:{}", self.name(), tag.as_deref().unwrap_or(DEFAULT_TAG)),
        }
    }

    /// Puts what docker's short forms leave out before a name that has `*` for unknown parts. The rest is not
    /// looked at.
    #[must_use]
    pub fn complete_pattern(text: &str) -> String {
        let (host, path) = split_host(text);
        if path.starts_with('*') {
            return text.to_owned();
        }
        let library = host == DEFAULT_HOST && !path.contains('/');
        let library = if library { "library/" } else { "" };
        format!("{host}/{library}{path}")
    }

    /// Returns the reference of the same repository by `digest` alone, as the CRI's repo digests
    /// are written.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            host: self.host.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// What a CRI call names an image by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageKey {
    /// A whole image id: the digest of the image's config.
    Id(Digest),
    /// The start of an image id (`sha256:` and 1 to 63 hexadecimal characters), given without
    /// `sha256:`. The caller knows the ids and whether the prefix is unambiguous.
    IdPrefix(String),
    /// A reference. A name such as `deadbeefcafe` may also be a short id: then the prefix is
    /// given, to be tried when no image has the reference.
    Reference {
        /// The text as a reference.
        reference: Reference,
        /// The text as the start of an image id, when it could be one.
        id_prefix: Option<String>,
    },
}

/// Parses what a CRI call names an image by: 64 hexadecimal characters with or without `sha256:`
/// are an id, `sha256:` with fewer characters is a short id, all else is a reference.
///
/// # Errors
/// Names the value and what is wrong with it as a reference or as an id.
pub fn parse_image_key(text: &str) -> Result<ImageKey, ParseReferenceError> {
    let refuse = |problem| ParseReferenceError {
        value: shown(text),
        problem,
    };
    if let Some(hex) = text.strip_prefix("sha256:") {
        if is_hex(hex) && hex.len() < Algorithm::Sha256.hex_len() {
            return Ok(ImageKey::IdPrefix(hex.to_owned()));
        }
        return match text.parse() {
            Ok(digest) => Ok(ImageKey::Id(digest)),
            Err(source) => Err(refuse(ReferenceProblem::Digest(source))),
        };
    }
    if is_hex(text) && text.len() == Algorithm::Sha256.hex_len() {
        return match format!("sha256:{text}").parse() {
            Ok(digest) => Ok(ImageKey::Id(digest)),
            Err(source) => Err(refuse(ReferenceProblem::Digest(source))),
        };
    }
    let id_prefix = (is_hex(text) && text.len() >= MIN_BARE_PREFIX).then(|| text.to_owned());
    Ok(ImageKey::Reference {
        reference: Reference::parse(text)?,
        id_prefix,
    })
}

/// Why a text is not an image reference. The value is cut to 80 characters and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image reference \"{value}\": {problem}")]
pub struct ParseReferenceError {
    /// The refused text.
    pub value: String,
    /// What is wrong with it.
    pub problem: ReferenceProblem,
}

impl ParseReferenceError {
    /// Returns the class of the error.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::InvalidArgument
    }
}

/// The part of a reference that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceProblem {
    /// There is no text.
    #[error("it is empty")]
    Empty,
    /// A part is longer than its limit.
    #[error("its {part} has {found} bytes, the limit is {limit}")]
    TooLong {
        /// The part: reference, host, host label, repository or tag.
        part: &'static str,
        /// Bytes allowed.
        limit: usize,
        /// Bytes found.
        found: usize,
    },
    /// The host is neither a host name nor an address in brackets.
    #[error("host \"{host}\" is not a host name or an IPv6 address in brackets")]
    Host {
        /// The refused host.
        host: String,
    },
    /// The port is not a number from 1 to 65535.
    #[error("port \"{port}\" is not a number from 1 to 65535")]
    Port {
        /// The refused port.
        port: String,
    },
    /// The repository has an upper-case letter.
    #[error("repository \"{repository}\" must be lower case")]
    UpperCase {
        /// The refused repository.
        repository: String,
    },
    /// A component of the repository does not fit the grammar.
    #[error(
        "repository component \"{component}\" is not lower-case letters and digits separated by \
         single \".\", \"_\", \"__\" or dashes"
    )]
    Component {
        /// The refused component.
        component: String,
    },
    /// The tag does not fit the grammar.
    #[error(
        "tag \"{tag}\" is not letters, digits, \"_\", \".\" and \"-\", not starting with the last two"
    )]
    Tag {
        /// The refused tag.
        tag: String,
    },
    /// The digest is not valid.
    #[error("{0}")]
    Digest(#[from] ParseDigestError),
    /// A name of 64 hexadecimal characters could be an image id.
    #[error("a repository cannot be named like an image id (64 hexadecimal characters)")]
    LooksLikeId,
}

/// Splits off the host. The first component is a host when it has a `.` or a `:`, is `localhost`,
/// or has an upper-case letter (no path component may have one).
fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_HOST, name),
    }
}

fn check_host(host: &str) -> Result<(), ReferenceProblem> {
    let bad = || ReferenceProblem::Host { host: shown(host) };
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
        address.parse::<Ipv6Addr>().map_err(|_| bad())?;
        return match rest.strip_prefix(':') {
            Some(port) => check_port(port),
            None if rest.is_empty() => Ok(()),
            None => Err(bad()),
        };
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    if name.len() > MAX_HOST_BYTES {
        return Err(ReferenceProblem::TooLong {
            part: "host",
            limit: MAX_HOST_BYTES,
            found: name.len(),
        });
    }
    for label in name.split('.') {
        if label.len() > MAX_LABEL_BYTES {
            return Err(ReferenceProblem::TooLong {
                part: "host label",
                limit: MAX_LABEL_BYTES,
                found: label.len(),
            });
        }
        let fits = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-');
        if !fits {
            return Err(bad());
        }
    }
    port.map_or(Ok(()), check_port)
}

fn check_port(port: &str) -> Result<(), ReferenceProblem> {
    let digits = port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(1..) if digits => Ok(()),
        _ => Err(ReferenceProblem::Port { port: shown(port) }),
    }
}

fn check_repository(repository: &str) -> Result<(), ReferenceProblem> {
    if repository.len() > MAX_REPOSITORY_BYTES {
        return Err(ReferenceProblem::TooLong {
            part: "repository",
            limit: MAX_REPOSITORY_BYTES,
            found: repository.len(),
        });
    }
    if repository.contains(|c: char| c.is_ascii_uppercase()) {
        return Err(ReferenceProblem::UpperCase {
            repository: shown(repository),
        });
    }
    match repository.split('/').find(|c| !is_component(c)) {
        None => Ok(()),
        Some(component) => Err(ReferenceProblem::Component {
            component: shown(component),
        }),
    }
}

/// Tells whether `text` is runs of lower-case letters and digits joined by one separator each.
fn is_component(text: &str) -> bool {
    let is_run = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(is_run)
        && text.ends_with(is_run)
        && text
            .split(is_run)
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), ReferenceProblem> {
    if tag.len() > MAX_TAG_BYTES {
        return Err(ReferenceProblem::TooLong {
            part: "tag",
            limit: MAX_TAG_BYTES,
            found: tag.len(),
        });
    }
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = tag.bytes().next().is_some_and(is_word);
    if first && tag.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-')) {
        Ok(())
    } else {
        Err(ReferenceProblem::Tag { tag: shown(tag) })
    }
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Cuts and escapes an untrusted value for an error message.
#[must_use]
pub fn shown(value: &str) -> String {
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
mod tests;
