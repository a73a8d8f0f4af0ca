//! Secrets that cannot be printed, and the cleaning of text that a stranger sent before it reaches
//! an error or a log.

use std::fmt;

/// Longest part of a foreign text that an error repeats, in characters.
const SHOWN_CHARS: usize = 200;
/// Secrets shorter than this are not searched for: replacing them would garble any text.
const MIN_SCRUBBED_BYTES: usize = 4;

/// A secret text. It has no `Display`, and its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(Box<str>);

impl Secret {
    pub(super) fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the text, for a request header or body only.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Cuts and escapes a foreign value.
pub(super) fn shown(value: &str) -> String {
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

/// Cleans a text that a registry sent: the given secrets, userinfo and query of every URL are
/// removed (a server may reflect what it was sent), the rest is cut and escaped.
pub(super) fn scrubbed(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        if secret.len() >= MIN_SCRUBBED_BYTES {
            text = text.replace(secret, "<redacted>");
        }
    }
    let words: Vec<String> = text.split_whitespace().map(scrubbed_word).collect();
    shown(&words.join(" "))
}

fn scrubbed_word(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (rest, None),
    };
    let host = authority.rsplit('@').next().unwrap_or_default();
    match path {
        Some(path) => format!("{scheme}://{host}/{path}"),
        None => format!("{scheme}://{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "<redacted>");
    }

    #[test]
    fn reflected_secrets_and_url_parts_are_removed() {
        let text = "bad token abcd1234 at https://me:pw@h.x/v2/?sig=zzz#frag \n see (ftp://h)";
        assert_eq!(
            scrubbed(text, &["abcd1234", "", "at"]),
            "bad token <redacted> at https://h.x/v2/ see (ftp://h)"
        );
        assert!(scrubbed(&"x".repeat(1 << 20), &[]).len() < 300);
    }
}
