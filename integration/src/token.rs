//! The token server of a registry with token authentication: checks the account, signs what was asked for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::children;
use crate::http::{Reply, Request, Server};
use crate::registry::{PASSWORD, USER};
use crate::tls_front::TlsFront;

/// The server; gone when dropped.
#[derive(Debug)]
pub struct TokenServer {
    server: Server,
    front: Option<TlsFront>,
}

impl TokenServer {
    /// Starts on a free loopback port, signing with `key` in the name of `certificate` (both PEM); over TLS when it
    /// is given such a pair of its own for that.
    ///
    /// # Errors
    /// When the certificate cannot be read or no port can be bound.
    pub fn start(certificate: &Path, key: &Path, tls: Option<(&Path, &Path)>) -> Result<Self> {
        let der = children::output(
            Command::new("openssl")
                .args(["x509", "-outform", "der", "-in"])
                .arg(certificate),
            &[],
        )?;
        ensure!(
            der.status.success(),
            "read the token certificate: {}",
            der.text()
        );
        let signer = Signer {
            key: key.to_owned(),
            certificate: STANDARD.encode(der.stdout),
        };
        let server = Server::start(move |request| answer(&signer, request))?;
        let front = match tls {
            Some((certificate, key)) => Some(TlsFront::start(&server.address(), certificate, key)?),
            None => None,
        };
        Ok(Self { server, front })
    }

    /// Where tokens are got.
    #[must_use]
    pub fn realm(&self) -> String {
        match &self.front {
            Some(front) => format!("https://{}/token", front.address()),
            None => format!("http://{}/token", self.server.address()),
        }
    }
}

struct Signer {
    key: PathBuf,
    /// The certificate as DER in base64, for the `x5c` header (RFC 7515, 4.1.6).
    certificate: String,
}

fn answer(signer: &Signer, request: &Request) -> Reply {
    if request.path != "/token" {
        return Reply::new(404, "text/plain", "not here");
    }
    let expected = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    if request.headers.get("authorization") != Some(&expected) {
        return Reply::new(401, "text/plain", "unknown account")
            .header("www-authenticate", "Basic realm=\"axil\"");
    }
    match signer.sign(&access(&request.query)) {
        Ok(token) => {
            let body = json!({ "token": token, "expires_in": 300 });
            Reply::new(200, "application/json", body.to_string())
        }
        Err(error) => Reply::new(500, "text/plain", format!("{error:#}")),
    }
}

/// The `access` claim for the `scope` parameters: `repository:NAME:ACTION,ACTION`.
fn access(query: &str) -> Vec<Value> {
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="))
        .map(unescape)
        .filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let actions: Vec<&str> = actions.split(',').collect();
            Some(json!({ "type": kind, "name": name, "actions": actions }))
        })
        .collect()
}

/// Undoes percent-encoding; what is not valid stays as it is.
fn unescape(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut out = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        match piece
            .get(..2)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        {
            Some(byte) => {
                out.push(byte);
                out.extend_from_slice(&piece.as_bytes()[2..]);
            }
            None => out.extend_from_slice(format!("%{piece}").as_bytes()),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Signer {
    fn sign(&self, access: &[Value]) -> Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("read the clock")?
            .as_secs();
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": "axil-tokens",
            "sub": USER,
            "aud": "axil-registry",
            "iat": now,
            "nbf": now.saturating_sub(60),
            "exp": now + 300,
            "jti": format!("token-{}", COUNT.fetch_add(1, Ordering::Relaxed)),
            "access": access,
        });
        let text = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-sign"]).arg(&self.key);
        let signature = children::output(&mut openssl, text.as_bytes())?;
        ensure!(
            signature.status.success(),
            "sign a token: {}",
            signature.text()
        );
        Ok(format!(
            "{text}.{}",
            URL_SAFE_NO_PAD.encode(signature.stdout)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_asked_for() {
        let claim = access("service=x&scope=repository%3Ateam%2Fapp%3Apull,push");
        assert_eq!(claim[0]["name"], "team/app");
        assert_eq!(claim[0]["actions"][1], "push");
    }
}
