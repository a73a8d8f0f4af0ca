//! The `WWW-Authenticate` header: hostile text in, challenges out. Never fails; what cannot be read
//! is left out.
//!
//! Grammar: RFC 9110, section 11.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Most challenges read from one answer.
const MAX_CHALLENGES: usize = 16;
/// Most parameters read of one challenge.
const MAX_PARAMETERS: usize = 16;

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Challenge {
    /// The scheme in lower case, e.g. `bearer`.
    pub(super) scheme: String,
    /// The parameters; names are lower case, the first of a name counts.
    pub(super) parameters: BTreeMap<String, String>,
}

/// Reads all challenges of an answer in their order.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        if let Ok(text) = value.to_str() {
            parse(text, &mut found);
        }
    }
    found.truncate(MAX_CHALLENGES);
    found
}

fn parse(text: &str, found: &mut Vec<Challenge>) {
    let mut rest = text;
    while found.len() <= MAX_CHALLENGES {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            // No token where one must be: the rest cannot be read.
            return;
        }
        let after_space = after.trim_start_matches([' ', '\t']);
        let Some(value) = after_space.strip_prefix('=') else {
            found.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: BTreeMap::new(),
            });
            rest = after_space;
            continue;
        };
        let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
        rest = after;
        if let Some(challenge) = found.last_mut()
            && challenge.parameters.len() < MAX_PARAMETERS
        {
            let name = word.to_ascii_lowercase();
            challenge.parameters.entry(name).or_insert(value);
        }
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && !"!#$%&'*+-.^_`|~".contains(c))
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Reads a token or a quoted string; of anything else everything up to the next comma is skipped.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.trim().to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, c)) = characters.next() {
        match c {
            '"' => return (value, quoted.get(index + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.append(WWW_AUTHENTICATE, value);
        }
        challenges(&headers)
    }

    #[test]
    fn reads_what_registries_send() {
        let found = read(
            r#"Bearer realm="https://auth.x/token",service="registry.x",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].parameters["realm"], "https://auth.x/token");
        assert_eq!(found[0].parameters["scope"], "repository:a/b:pull,push");
        let found = read(r#"Basic realm="a \"b\", c", BEARER Realm = x , service=y"#);
        assert_eq!(found[0].parameters["realm"], "a \"b\", c");
        assert_eq!(found[1].scheme, "bearer");
        assert_eq!(found[1].parameters["realm"], "x");
        assert_eq!(found[1].parameters["service"], "y");
        let found = read("Negotiate abc==, Basic");
        assert_eq!(found.last().unwrap().scheme, "basic");
    }

    #[test]
    fn hostile_headers_are_bounded() {
        assert!(read(&"Basic,".repeat(10_000)).len() <= MAX_CHALLENGES);
        let many: String = (0..1000).map(|n| format!("p{n}=x,")).collect();
        assert!(read(&format!("Bearer {many}"))[0].parameters.len() <= MAX_PARAMETERS);
        for text in [
            "",
            ",",
            "=",
            "\"",
            "Bearer realm=\"",
            "Bearer realm=\"\\",
            "Bearer =",
        ] {
            let _ = read(text);
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "\\PC*", tokens in "[a-zA-Z=, \"\\\\]{0,80}") {
            let _ = read(&text);
            let _ = read(&tokens);
        }
    }
}
