//! What the fuzz targets do with the parsers of this client, which are its own.

use std::path::Path;

use http::HeaderMap;
use http::HeaderValue;
use http::header::WWW_AUTHENTICATE;

use super::challenge::challenges;
use super::origin::Target;
use super::{auth, hosts};
use crate::domain::failure::chain;

/// A `hosts.toml`: any text gives servers, the registry itself last, or an error that names the file.
pub(crate) fn hosts_toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let file = Path::new("/certs.d/h.x/hosts.toml");
    match hosts::parse(text, file, "h.x") {
        Ok(found) => {
            let last = found.last().expect("the registry itself is there");
            assert!(last.trusted, "the registry itself is trusted");
            for host in &found {
                assert_eq!(host.trusted, host.origin == last.origin, "others are not");
                let clean = host.path.is_empty() || host.path.starts_with('/');
                assert!(clean && !host.path.ends_with('/'), "{:?}", host.path);
                assert!(
                    !host.origin.to_string().contains('@'),
                    "no account in a URL"
                );
                // A path that was parsed can be asked for.
                let target = Target::at(&host.origin, format!("{}/a/b/manifests/1", host.path));
                assert!(target.uri().is_ok(), "{target}");
            }
        }
        Err(error) => assert!(chain(&error).contains("hosts.toml"), "{error}"),
    }
}

/// A `WWW-Authenticate` header, or several in lines: any bytes give few challenges, and a realm and a scope
/// that stay within what was asked for.
pub(crate) fn registry_challenge(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let found = challenges(&headers);
    assert!(found.len() <= 16, "few challenges");
    for challenge in found {
        assert!(challenge.parameters.len() <= 16, "few parameters");
        assert_eq!(challenge.scheme, challenge.scheme.to_ascii_lowercase());
        let parameter = |name: &str| challenge.parameters.get(name).map(String::as_str);
        if let Some(realm) = parameter("realm")
            && let Ok(mut target) = Target::parse(realm)
        {
            target.push_query("scope", "repository:a/b:pull");
            assert!(target.uri().is_ok(), "a realm that was parsed can be asked");
            let shown = target.to_string();
            // In a path @ is a letter like any other (RFC 3986, section 3.3).
            let host = shown.split('/').nth(2).unwrap_or_default();
            assert!(!shown.contains('?') && !host.contains('@'), "{shown}");
        }
        let scope = auth::scope("a/b", parameter("scope"));
        assert!(
            scope.starts_with("repository:") && scope.ends_with("a/b:pull"),
            "{scope}"
        );
    }
}
