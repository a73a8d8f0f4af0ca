//! What a runtime handler is called, and which annotations of a pod reach its OCI runtime.
//!
//! ```text
//! pattern  = name | prefix "*"      of characters that names of annotations have
//! ```

use std::collections::BTreeMap;

/// The handler of pods that name none.
pub const DEFAULT_HANDLER: &str = "axil";

/// Longest name of a handler: the API server takes DNS labels (RFC 1123).
const MAX_NAME: usize = 63;

/// Longest name of an annotation: a prefix of 253 bytes, a slash and 63 more.
const MAX_PATTERN: usize = 317;

/// Tells what is wrong with the name of a handler.
///
/// # Errors
/// It is no DNS label, or the default handler's.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let inside = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let edge = |c: Option<&u8>| c.is_some_and(|&c| c != b'-');
    let bytes = name.as_bytes();
    if bytes.len() > MAX_NAME || !bytes.iter().copied().all(inside) {
        return Err("a handler's name is at most 63 of a-z 0-9 -");
    }
    if !edge(bytes.first()) || !edge(bytes.last()) {
        return Err("a handler's name begins and ends with a letter or digit");
    }
    if name == DEFAULT_HANDLER {
        return Err("\"axil\" is the default handler: its keys are in [runtime]");
    }
    Ok(())
}

/// How the root file systems of a handler's containers are made, where that is not for all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandlerSnapshotter {
    /// Layers mounted together.
    Overlayfs,
    /// Layers copied, for runtimes that cannot show an overlay to their containers.
    Copy,
}

impl HandlerSnapshotter {
    /// The one of this name in the configuration.
    ///
    /// # Errors
    /// There is none.
    pub fn named(text: &str) -> Result<Self, &'static str> {
        match text {
            "overlayfs" => Ok(Self::Overlayfs),
            "copy" => Ok(Self::Copy),
            _ => Err("must be overlayfs or copy; without it images.snapshotter holds"),
        }
    }
}

/// Annotations that an OCI runtime may be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnnotationPatterns(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    Prefix(String),
}

impl AnnotationPatterns {
    /// Reads patterns.
    ///
    /// # Errors
    /// The pattern that is none, and why.
    pub fn parse(texts: &[String]) -> Result<Self, (String, &'static str)> {
        let patterns = texts
            .iter()
            .map(|text| Pattern::parse(text).map_err(|why| (text.clone(), why)));
        patterns.collect::<Result<_, _>>().map(Self)
    }

    /// The allowed ones among the annotations of a pod and of its container, which go before.
    #[must_use]
    pub fn pick(
        &self,
        pod: &BTreeMap<String, String>,
        container: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let all = pod.iter().chain(container);
        let allowed = all.filter(|(name, _)| self.0.iter().any(|pattern| pattern.matches(name)));
        allowed.map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (name, whole) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, false),
            None => (text, true),
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
        if name.is_empty() {
            return Err("names no annotation");
        }
        if name.len() > MAX_PATTERN || !name.chars().all(fits) {
            return Err("is no name of an annotation, with or without * at its end");
        }
        Ok(if whole {
            Self::Exact(name.to_owned())
        } else {
            Self::Prefix(name.to_owned())
        })
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Prefix(prefix) => name.starts_with(prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    #[test]
    fn a_handler_has_the_name_of_a_runtime_class() {
        for good in ["crun", "a", "runc-1", "0x"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "axil", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_allowed_annotations_are_picked_and_the_container_goes_before() {
        let allowed = [
            "module.wasm.image/*".to_owned(),
            "run.oci.handler".to_owned(),
        ];
        let patterns = AnnotationPatterns::parse(&allowed).unwrap();
        let pod = map(&[
            ("module.wasm.image/variant", "compat"),
            ("run.oci.handler", "krun"),
            ("run.oci.handler2", "x"),
            ("run.oci.hooks.stderr", "/etc/shadow"),
        ]);
        let container = map(&[("run.oci.handler", "wasm"), ("other", "y")]);
        let picked = patterns.pick(&pod, &container);
        let expected = [
            ("module.wasm.image/variant", "compat"),
            ("run.oci.handler", "wasm"),
        ];
        assert_eq!(picked, map(&expected));
        assert!(
            AnnotationPatterns::default()
                .pick(&pod, &container)
                .is_empty()
        );
    }

    #[test]
    fn a_pattern_that_names_nothing_is_refused() {
        for bad in ["", "*", "a*b", "a b", "a\n", "**", &"a".repeat(400)] {
            let (pattern, _) = AnnotationPatterns::parse(&[bad.to_owned()]).unwrap_err();
            assert_eq!(pattern, bad);
        }
    }
}
