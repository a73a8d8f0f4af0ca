//! The credentials of a pull, as the CRI sends them, and to which registry they belong.

use std::fmt;

use axil_snapshotter::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use super::redact::Secret;
use crate::ports::images::PullAuth;

/// Longest accepted credential field, in bytes.
const MAX_FIELD_BYTES: usize = 64 << 10;

/// Checked credentials. Nothing of them can be printed.
#[derive(Clone)]
pub struct Credentials {
    /// `None` means the registry of the reference.
    server: Option<String>,
    pub(super) kind: Kind,
}

/// How the credentials prove who pulls.
#[derive(Clone)]
pub(super) enum Kind {
    Basic { username: Secret, password: Secret },
    IdentityToken(Secret),
    RegistryToken(Secret),
}

impl Credentials {
    /// Checks what the CRI sent; all fields empty are no credentials. When several kinds are
    /// given, the order is user name, identity token, `auth`, registry token, as in containerd.
    ///
    /// # Errors
    /// Names the field and never its value.
    pub fn from_pull_auth(auth: &PullAuth) -> Result<Option<Self>, CredentialsError> {
        let fields = [
            ("username", &auth.username),
            ("password", &auth.password),
            ("auth", &auth.auth),
            ("server_address", &auth.server_address),
            ("identity_token", &auth.identity_token),
            ("registry_token", &auth.registry_token),
        ];
        for (field, value) in fields {
            check_field(field, value)?;
        }
        let kind = if !auth.username.is_empty() {
            basic("username", &auth.username, &auth.password)?
        } else if !auth.identity_token.is_empty() {
            Kind::IdentityToken(Secret::new(auth.identity_token.as_str()))
        } else if !auth.auth.is_empty() {
            decode(&auth.auth)?
        } else if !auth.registry_token.is_empty() {
            Kind::RegistryToken(Secret::new(auth.registry_token.as_str()))
        } else if !auth.password.is_empty() {
            return Err(CredentialsError {
                field: "username",
                problem: "is empty although there is a password",
            });
        } else {
            return Ok(None);
        };
        Ok(Some(Self {
            server: (!auth.server_address.is_empty()).then(|| server(&auth.server_address)),
            kind,
        }))
    }

    /// Tells whether the credentials are for the registry of a reference.
    pub(super) fn belong_to(&self, reference_host: &str) -> bool {
        match &self.server {
            Some(named) => *named == server(reference_host),
            None => true,
        }
    }

    /// Returns a hash that tells credentials apart in a cache.
    pub(super) fn fingerprint(&self) -> Digest {
        let text = match &self.kind {
            Kind::Basic { username, password } => {
                let (user, password) = (username.reveal(), password.reveal());
                format!("basic:{}:{user}:{password}", user.len())
            }
            Kind::IdentityToken(token) => format!("identity:{}", token.reveal()),
            Kind::RegistryToken(token) => format!("registry:{}", token.reveal()),
        };
        Digest::sha256_of(text.as_bytes())
    }

    /// Returns the texts that must never appear in an error.
    pub(super) fn secrets(&self) -> Vec<String> {
        match &self.kind {
            Kind::Basic { username, password } => {
                vec![password.reveal().to_owned(), encode(username, password)]
            }
            Kind::IdentityToken(token) => {
                let as_password = encode(&Secret::new(""), token);
                vec![token.reveal().to_owned(), as_password]
            }
            Kind::RegistryToken(token) => vec![token.reveal().to_owned()],
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Basic { .. } => "basic",
            Kind::IdentityToken(_) => "identity token",
            Kind::RegistryToken(_) => "registry token",
        };
        f.debug_struct("Credentials")
            .field("kind", &kind)
            .finish_non_exhaustive()
    }
}

/// Returns the value of a Basic `Authorization` header.
pub(super) fn basic_header(username: &Secret, password: &Secret) -> HeaderValue {
    sensitive(&format!("Basic {}", encode(username, password))).expect("base64 is a header value")
}

/// Returns the value of a Bearer `Authorization` header, `None` when the token has characters that
/// no header may have.
pub(super) fn bearer_header(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn encode(username: &Secret, password: &Secret) -> String {
    STANDARD.encode(format!("{}:{}", username.reveal(), password.reveal()))
}

fn check_field(field: &'static str, value: &str) -> Result<(), CredentialsError> {
    if value.len() > MAX_FIELD_BYTES {
        return Err(CredentialsError {
            field,
            problem: "is longer than 65536 bytes",
        });
    }
    if value.contains(['\0', '\r', '\n']) && field != "auth" {
        return Err(CredentialsError {
            field,
            problem: "has a line break or a NUL",
        });
    }
    Ok(())
}

fn basic(field: &'static str, username: &str, password: &str) -> Result<Kind, CredentialsError> {
    // RFC 7617: the first colon ends the user name.
    if username.contains(':') {
        return Err(CredentialsError {
            field,
            problem: "has a \":\"",
        });
    }
    Ok(Kind::Basic {
        username: Secret::new(username),
        password: Secret::new(password),
    })
}

fn decode(auth: &str) -> Result<Kind, CredentialsError> {
    let refuse = |problem| CredentialsError {
        field: "auth",
        problem,
    };
    let compact: String = auth.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = STANDARD
        .decode(compact)
        .map_err(|_| refuse("is not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8 inside base64"))?;
    // Docker pads with NUL.
    let text = text.trim_end_matches('\0');
    let (username, password) = text
        .split_once(':')
        .ok_or_else(|| refuse("is not base64 of \"user:password\""))?;
    basic("auth", username, password)
}

/// Reduces a server address (a host, or a URL as docker's config has it) to the host of a
/// reference.
fn server(address: &str) -> String {
    let (bare, default_port) = match address.split_once("://") {
        Some(("https", rest)) => (rest, ":443"),
        Some(("http", rest)) => (rest, ":80"),
        Some((_, rest)) => (rest, ""),
        None => (address, ""),
    };
    let host = bare.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.to_ascii_lowercase();
    let host = match default_port {
        "" => host.as_str(),
        port => host.strip_suffix(port).unwrap_or(&host),
    };
    match host {
        // The names of docker.io in docker's own configuration and API.
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        other => other,
    }
    .to_owned()
}

/// Why credentials cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("credential field \"{field}\" {problem}")]
pub struct CredentialsError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(username: &str, password: &str) -> PullAuth {
        PullAuth {
            username: username.into(),
            password: password.into(),
            ..PullAuth::default()
        }
    }

    fn header(auth: &PullAuth) -> String {
        let credentials = Credentials::from_pull_auth(auth).unwrap().unwrap();
        let Kind::Basic { username, password } = &credentials.kind else {
            panic!("basic credentials");
        };
        basic_header(username, password)
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn every_kind_is_read() {
        assert!(
            Credentials::from_pull_auth(&PullAuth::default())
                .unwrap()
                .is_none()
        );
        assert_eq!(header(&auth("me", "p:w")), "Basic bWU6cDp3");
        let encoded = PullAuth {
            auth: "bWU6cDp3\n".into(),
            ..PullAuth::default()
        };
        assert_eq!(header(&encoded), "Basic bWU6cDp3");
        let padded = PullAuth {
            auth: STANDARD.encode("me:pw\0\0"),
            ..PullAuth::default()
        };
        assert_eq!(header(&padded), "Basic bWU6cHc=");
    }

    #[test]
    fn errors_name_the_field_and_hide_the_value() {
        let cases = [
            auth("a:b", "hunter2"),
            auth("", "hunter2"),
            auth("me", "hunter2\r\nX: y"),
            PullAuth {
                auth: "hunter2!".into(),
                ..PullAuth::default()
            },
            PullAuth {
                auth: STANDARD.encode("hunter2"),
                ..PullAuth::default()
            },
            PullAuth {
                registry_token: "hunter2\n".into(),
                ..PullAuth::default()
            },
        ];
        for case in cases {
            let error = Credentials::from_pull_auth(&case).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(!format!("{case:?}").contains("hunter2"));
        }
        let good = Credentials::from_pull_auth(&auth("me", "hunter2")).unwrap();
        assert!(!format!("{good:?}").contains("hunter2"));
    }

    #[test]
    fn credentials_belong_to_one_registry() {
        let check = |address: &str, host: &str, expected: bool| {
            let mut auth = auth("me", "pw");
            auth.server_address = address.into();
            let credentials = Credentials::from_pull_auth(&auth).unwrap().unwrap();
            assert_eq!(credentials.belong_to(host), expected, "{address} {host}");
        };
        check("", "any.x", true);
        check("h.x", "h.x", true);
        check("H.x", "h.x", true);
        check("https://h.x/v2/", "h.x", true);
        check("https://h.x:443", "h.x", true);
        check("h.x:5000", "h.x:5000", true);
        check("https://index.docker.io/v1/", "docker.io", true);
        check("h.x", "h.x:5000", false);
        check("h.x", "evil.x", false);
        check("h.x.evil", "h.x", false);
        check("https://evil.x/h.x", "h.x", false);
    }
}
