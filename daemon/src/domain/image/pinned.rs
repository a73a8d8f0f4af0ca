//! Which images are pinned: the operator's patterns, matched against the names of images. Nothing an image says
//! of itself pins it.
//!
//! ```text
//! pattern  = id | reference | text with "*"      "*" stands for any characters, "/" and ":" among them
//! ```

use super::reference::{ImageKey, ParseReferenceError, Reference, parse_image_key, shown};
use super::stored::StoredImage;

/// Longest pattern, in bytes: that of a reference.
const MAX_PATTERN_BYTES: usize = 1024;

/// The patterns of `images.pinned`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinnedPatterns(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// A canonical name or a whole id.
    Exact(String),
    /// What lies between the stars of a canonical name.
    Parts(Vec<String>),
}

/// Why a pattern is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Without a star it has to be a reference or an id.
    #[error("{0}")]
    Reference(#[from] ParseReferenceError),
    /// A short id could come to mean another image.
    #[error("\"{pattern}\" is the beginning of an id; pinned images are named by whole ids")]
    ShortId {
        /// The pattern.
        pattern: String,
    },
    /// It has a character that no name of an image has, or is too long.
    #[error(
        "\"{pattern}\" is longer than {MAX_PATTERN_BYTES} bytes or has a character no name of an image has"
    )]
    Text {
        /// The pattern, cut and escaped.
        pattern: String,
    },
}

impl PinnedPatterns {
    /// Reads patterns. A reference is brought into the form images are listed under: `busybox` pins
    /// `docker.io/library/busybox:latest`, and `busybox:*` every tag of it.
    ///
    /// # Errors
    /// Names the pattern that is none.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let patterns = texts.into_iter().map(Pattern::parse);
        patterns.collect::<Result<_, _>>().map(Self)
    }

    /// Tells whether an image has a pinned name or id.
    #[must_use]
    pub fn holds(&self, image: &StoredImage) -> bool {
        self.0.iter().any(|pattern| {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            names.chain([&image.id]).any(|name| pattern.matches(name))
        })
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, PatternError> {
        if !text.contains('*') {
            return match parse_image_key(text)? {
                ImageKey::Id(digest) => Ok(Self::Exact(digest.to_string())),
                ImageKey::IdPrefix(_) => Err(PatternError::ShortId {
                    pattern: shown(text),
                }),
                ImageKey::Reference { reference, .. } => Ok(Self::Exact(reference.stored_name())),
            };
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "*._-/:@[]".contains(c);
        if text.len() > MAX_PATTERN_BYTES || !text.chars().all(fits) {
            return Err(PatternError::Text {
                pattern: shown(text),
            });
        }
        let whole = Reference::complete_pattern(text);
        Ok(Self::Parts(whole.split('*').map(str::to_owned).collect()))
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Parts(parts) => glob(parts, name),
        }
    }
}

/// Whether `name` is `parts` with anything between them. Each part is taken where it comes first, which finds a
/// match if there is one: what is skipped can only be needed by the star before it.
fn glob(parts: &[String], name: &str) -> bool {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return false;
    };
    let Some(mut rest) = name.strip_prefix(first.as_str()) else {
        return false;
    };
    for part in &parts[1..parts.len() - 1] {
        match rest.find(part.as_str()) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::image::stored::{IMAGE_RECORD_VERSION, StoredConfig};

    fn image(tag: &str) -> StoredImage {
        StoredImage {
            version: IMAGE_RECORD_VERSION,
            id: format!("sha256:{}", "a".repeat(64)),
            manifest: String::new(),
            repo_tags: BTreeSet::from([tag.to_owned()]),
            repo_digests: BTreeSet::from([format!("quay.io/x/y@sha256:{}", "b".repeat(64))]),
            size_bytes: 0,
            chain: None,
            chains: vec![],
            annotations: std::collections::BTreeMap::new(),
            endorsements: BTreeSet::new(),
            config: StoredConfig::default(),
        }
    }

    fn pins(pattern: &str, tag: &str) -> bool {
        PinnedPatterns::parse([pattern]).unwrap().holds(&image(tag))
    }

    #[test]
    fn a_pattern_is_a_name_an_id_or_has_stars() {
        let tag = "docker.io/library/busybox:1.2";
        for pattern in [
            "busybox:1.2",
            "docker.io/library/busybox:1.2",
            "busybox:*",
            "busy*",
            "docker.io/*",
            "*/busybox:1.*",
            "*",
            "docker.*l*/busybox:*2",
            &format!("sha256:{}", "a".repeat(64)),
            &"a".repeat(64),
            "quay.io/x/*",
            "quay.io/x/y@*",
        ] {
            assert!(pins(pattern, tag), "{pattern}");
        }
        for pattern in [
            "busybox",
            "busybox:1",
            "busybox:1.2*3",
            "*busybox",
            "quay.io/busybox:*",
            "team/busybox:*",
            &"c".repeat(64),
        ] {
            assert!(!pins(pattern, tag), "{pattern}");
        }
        assert!(!PinnedPatterns::default().holds(&image(tag)));
    }

    #[test]
    fn the_parts_of_a_pattern_do_not_overlap() {
        assert!(!glob(&["ab".into(), "ba".into()], "aba"));
        assert!(glob(&["ab".into(), "ba".into()], "abba"));
        assert!(!glob(&["a".into(), "b".into(), "a".into()], "aa"));
        assert!(glob(&[String::new(), String::new()], ""));
    }

    #[test]
    fn what_no_image_can_be_called_is_refused() {
        for (pattern, words) in [
            ("", "empty"),
            ("Upper/Case", "lower case"),
            ("a b*", "no name"),
            ("a\n*", "no name"),
            ("sha256:abcdef012345", "whole ids"),
        ] {
            let error = PinnedPatterns::parse([pattern]).unwrap_err().to_string();
            assert!(error.contains(words), "{pattern:?}: {error}");
        }
        assert!(PinnedPatterns::parse([&*"a*".repeat(600)]).is_err());
    }
}
