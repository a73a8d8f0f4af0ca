//! Authorization: what a server's challenge is answered with, and the tokens that are kept.
//!
//! Rules (CVE-2020-15157 and kin): credentials go to the registry the operator configured, and to
//! the token realm it names, over TLS unless the registry itself speaks plain HTTP. The scope asked
//! for is `pull` of the repository at hand, whatever else the challenge lists.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Deserialize;

use super::challenge::Challenge;
use super::credentials::{Kind, basic_header, bearer_header};
use super::error::Problem;
use super::exchange::{Ask, Exchange, read_limited};
use super::origin::{Origin, Scheme, Target, encoded};
use super::redact::{Secret, shown};
use super::source::{Host, Source};

/// Longest value of a challenge that is sent to the realm, in bytes.
const MAX_PARAMETER_BYTES: usize = 2048;
/// Life of a token whose response names none (distribution's token specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Longest time a token is kept.
const MAX_LIFE: Duration = Duration::from_secs(3600);
/// Most kept authorizations, over all registries, repositories and credentials.
const MAX_KEPT: usize = 256;
/// What we call ourselves towards a token server.
const CLIENT_ID: &str = "axil";

/// A value for the `Authorization` header, and the secret inside it, to keep it out of errors.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    pub(super) secret: Secret,
}

/// Whom an authorization was made for. Different credentials never share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    origin: Origin,
    repository: String,
    fingerprint: String,
}

#[derive(Debug, Clone)]
struct Kept {
    authorization: Authorization,
    /// `None`: does not expire.
    expires: Option<Instant>,
}

/// Authorizations that worked, until they expire.
#[derive(Debug, Default)]
pub(super) struct Authorizations(Mutex<HashMap<Key, Kept>>);

impl Authorizations {
    /// Returns what to send with a first request: a kept authorization, or the registry token.
    pub(super) fn known(&self, source: &Source, host: &Host) -> Option<Authorization> {
        let credentials = source.credentials_for(host).map(|c| &c.kind);
        if let Some(Kind::RegistryToken(token)) = credentials {
            return Some(Authorization {
                header: bearer_header(token.reveal())?,
                secret: token.clone(),
            });
        }
        let kept = self.lock().get(&key(source, host)).cloned()?;
        let valid = kept.expires.is_none_or(|expires| Instant::now() < expires);
        valid.then_some(kept.authorization)
    }

    fn keep(&self, key: Key, kept: Kept) {
        let now = Instant::now();
        let mut map = self.lock();
        if map.len() >= MAX_KEPT {
            map.retain(|_, kept| kept.expires.is_some_and(|expires| now < expires));
        }
        if map.len() >= MAX_KEPT {
            // All are alive: losing them costs one more round trip each.
            map.clear();
        }
        map.insert(key, kept);
    }

    /// Forgets an authorization that was refused.
    pub(super) fn forget(&self, source: &Source, host: &Host) {
        self.lock().remove(&key(source, host));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Kept>> {
        // A map of finished values is never left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(source: &Source, host: &Host) -> Key {
    Key {
        origin: host.config.origin.clone(),
        repository: format!("{}/{}", host.config.path, source.repository()),
        fingerprint: source
            .credentials_for(host)
            .map(|credentials| credentials.fingerprint().to_string())
            .unwrap_or_default(),
    }
}

impl Exchange {
    /// Answers the challenges of a 401 that `host` itself sent.
    pub(super) async fn authorize(
        &self,
        source: &Source,
        host: &Host,
        challenges: &[Challenge],
    ) -> Result<Authorization, Problem> {
        let credentials = source.credentials_for(host).map(|c| &c.kind);
        if let Some(Kind::RegistryToken(_)) = credentials {
            return Err(denied(": the registry token of the request was refused"));
        }
        let offered = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        if let Some(challenge) = offered("bearer") {
            let kept = self.fetch_token(source, host, challenge).await?;
            let authorization = kept.authorization.clone();
            self.authorizations.keep(key(source, host), kept);
            return Ok(authorization);
        }
        match (offered("basic"), credentials) {
            (Some(_), Some(Kind::Basic { username, password })) => {
                let authorization = Authorization {
                    header: basic_header(username, password),
                    secret: password.clone(),
                };
                let kept = Kept {
                    authorization: authorization.clone(),
                    expires: None,
                };
                self.authorizations.keep(key(source, host), kept);
                Ok(authorization)
            }
            (Some(_), _) => Err(denied(
                ": the registry asks for a user name and password, and the request has none for it",
            )),
            (None, _) => {
                let schemes: Vec<_> = challenges.iter().map(|c| shown(&c.scheme)).collect();
                let schemes = match schemes.as_slice() {
                    [] => "none".to_owned(),
                    some => some.join(", "),
                };
                Err(denied(&format!(
                    ": the registry offers no known authentication scheme (offered: {schemes})"
                )))
            }
        }
    }

    async fn fetch_token(
        &self,
        source: &Source,
        host: &Host,
        challenge: &Challenge,
    ) -> Result<Kept, Problem> {
        let parameter = |name: &str| {
            let value = challenge.parameters.get(name).map(String::as_str);
            value.filter(|value| !value.is_empty() && value.len() <= MAX_PARAMETER_BYTES)
        };
        let realm = realm(host, parameter("realm"))?;
        let scope = scope(source.repository(), parameter("scope"));
        let service = parameter("service").unwrap_or_default();
        let wait = self.options.document_timeout;
        let credentials = source.credentials_for(host).map(|c| &c.kind);
        let fetch = async {
            let response = match credentials {
                Some(Kind::IdentityToken(token)) => {
                    let form = form(service, &scope, token);
                    let posted = self.send_form(host, &realm, form).await?;
                    if lacks_post(posted.status()) {
                        let mut headers = HeaderMap::new();
                        headers.insert(AUTHORIZATION, basic_header(&Secret::new(""), token));
                        self.get_token(host, realm, service, &scope, headers)
                            .await?
                    } else {
                        posted
                    }
                }
                Some(Kind::Basic { username, password }) => {
                    let mut headers = HeaderMap::new();
                    headers.insert(AUTHORIZATION, basic_header(username, password));
                    self.get_token(host, realm, service, &scope, headers)
                        .await?
                }
                Some(Kind::RegistryToken(_)) | None => {
                    let headers = HeaderMap::new();
                    self.get_token(host, realm, service, &scope, headers)
                        .await?
                }
            };
            let response = self
                .accepted(source, None, response, &[StatusCode::OK])
                .await?;
            read_limited(response, self.options.max_token_bytes).await
        };
        let bytes = tokio::time::timeout(wait, fetch)
            .await
            .map_err(|_| Problem::Timeout {
                what: "token",
                after: wait,
            })??;
        parse_token(&bytes)
    }

    async fn get_token(
        &self,
        host: &Host,
        mut realm: Target,
        service: &str,
        scope: &str,
        headers: HeaderMap,
    ) -> Result<http::Response<hyper::body::Incoming>, Problem> {
        if !service.is_empty() {
            realm.push_query("service", service);
        }
        realm.push_query("scope", scope);
        let ask = Ask {
            headers,
            wait: self.options.document_timeout,
        };
        Ok(self.follow(host, realm, ask).await?.response)
    }

    /// Posts a form that carries a secret; a redirect is an answer like any other.
    async fn send_form(
        &self,
        host: &Host,
        realm: &Target,
        form: String,
    ) -> Result<http::Response<hyper::body::Incoming>, Problem> {
        let mut request = self.request(Method::POST, realm, form.into())?;
        request.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        let client = host.client_for(realm);
        client.send(request, self.options.document_timeout).await
    }
}

/// Tells whether a token server may know only GET, with the identity token as the password of nobody; containerd
/// met servers that say so by each of these.
fn lacks_post(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::UNAUTHORIZED
            | StatusCode::NOT_IMPLEMENTED
    )
}

/// Checks the realm: https, or plain http when the registry itself is.
fn realm(host: &Host, realm: Option<&str>) -> Result<Target, Problem> {
    let refuse = |reason: String| Problem::Realm { reason };
    let Some(realm) = realm else {
        return Err(refuse("the challenge names none".into()));
    };
    let realm = Target::parse(realm).map_err(|problem| refuse(problem.to_string()))?;
    if realm.origin.scheme == Scheme::Http && host.config.origin.scheme == Scheme::Https {
        return Err(refuse(format!("{} is not https", realm.origin)));
    }
    Ok(realm)
}

/// Returns the scope to ask for. A mirror may call the repository by a longer name; then the
/// challenge's name is taken, and never more than `pull`.
pub(super) fn scope(repository: &str, offered: Option<&str>) -> String {
    let suffix = format!("/{repository}");
    let longer = offered.unwrap_or_default().split(' ').find_map(|scope| {
        let name = scope.strip_prefix("repository:")?.rsplit_once(':')?.0;
        name.ends_with(&suffix).then_some(name)
    });
    format!("repository:{}:pull", longer.unwrap_or(repository))
}

fn form(service: &str, scope: &str, token: &Secret) -> String {
    format!(
        "grant_type=refresh_token&service={}&client_id={CLIENT_ID}&scope={}&refresh_token={}",
        encoded(service),
        encoded(scope),
        encoded(token.reveal())
    )
}

/// A token response: distribution's `token` or OAuth's `access_token`.
#[derive(Deserialize)]
struct RawToken {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

fn parse_token(bytes: &[u8]) -> Result<Kept, Problem> {
    let refuse = |reason: &str| Problem::Token {
        reason: reason.to_owned(),
    };
    // The parser's error could quote the token.
    let raw: RawToken =
        serde_json::from_slice(bytes).map_err(|_| refuse("it is not the expected JSON"))?;
    let token = raw
        .token
        .filter(|token| !token.is_empty())
        .or(raw.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| refuse("it has no token"))?;
    let header = bearer_header(&token).ok_or_else(|| refuse("its token has control characters"))?;
    let life = match raw.expires_in {
        None => DEFAULT_LIFE,
        Some(seconds) => Duration::try_from_secs_f64(seconds).unwrap_or(DEFAULT_LIFE),
    };
    // A tenth early, so that a token does not expire on its way.
    let life = life.min(MAX_LIFE).mul_f32(0.9);
    Ok(Kept {
        authorization: Authorization {
            header,
            secret: Secret::new(token),
        },
        expires: Some(Instant::now() + life),
    })
}

fn denied(detail: &str) -> Problem {
    Problem::Denied {
        status: StatusCode::UNAUTHORIZED,
        detail: detail.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_is_pull_of_this_repository_only() {
        let check = |offered: Option<&str>, expected: &str| {
            assert_eq!(scope("a/b", offered), expected, "{offered:?}");
        };
        check(None, "repository:a/b:pull");
        check(Some("repository:a/b:pull,push"), "repository:a/b:pull");
        check(Some("repository:secret/x:pull"), "repository:a/b:pull");
        check(Some("registry:catalog:*"), "repository:a/b:pull");
        check(
            Some("x repository:proxy/a/b:pull,delete"),
            "repository:proxy/a/b:pull",
        );
    }

    #[test]
    fn token_responses_are_read_or_refused() {
        let kept = parse_token(br#"{"token":"", "access_token":"t", "expires_in": 300}"#).unwrap();
        assert_eq!(kept.authorization.header, "Bearer t");
        assert!(kept.authorization.header.is_sensitive());
        for life in ["-5", "1e300", "0"] {
            let text = format!(r#"{{"token":"t","expires_in":{life}}}"#);
            let expires = parse_token(text.as_bytes()).unwrap().expires.unwrap();
            assert!(expires <= Instant::now() + MAX_LIFE);
        }
        for bad in [
            &b""[..],
            b"{}",
            b"[]",
            br#"{"token":"a\nb"}"#,
            br#"{"token":5}"#,
        ] {
            assert!(parse_token(bad).is_err());
        }
    }
}
