//! One question to one host: authorization, redirects, and what a status means. Retrying and other
//! hosts are the callers' part.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderName, LOCATION, RETRY_AFTER,
    USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde::Deserialize;

use super::RegistryOptions;
use super::auth::{Authorization, Authorizations};
use super::challenge::challenges;
use super::error::Problem;
use super::origin::{Scheme, Target};
use super::redact::scrubbed;
use super::slots::Slots;
use super::source::{Host, Source};

/// Most bytes read of an error's body.
const MAX_DETAIL_BYTES: u64 = 16 << 10;
/// How long the body of an error is waited for.
const DETAIL_WAIT: Duration = Duration::from_secs(2);
/// Bytes reserved before a body proves that it has more.
const FIRST_RESERVATION: u64 = 64 << 10;

/// Asks servers, with the tokens that earlier answers left.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) options: RegistryOptions,
    pub(super) authorizations: Authorizations,
    pub(super) slots: Slots,
    user_agent: HeaderValue,
}

/// What a question carries besides its target.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask {
    pub(super) headers: HeaderMap,
    /// How long the head of each answer is waited for.
    pub(super) wait: Duration,
}

/// An answer, and whether the host itself gave it or a server it redirected to.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    is_own: bool,
}

impl Exchange {
    pub(super) fn new(options: RegistryOptions, user_agent: HeaderValue) -> Self {
        Self {
            slots: Slots::new(options.transfers_per_host, options.ranges.buffer_bytes),
            options,
            authorizations: Authorizations::default(),
            user_agent,
        }
    }

    /// Gets `path` below the host's prefix and the repository; answers a 401 of the host once.
    /// Returns only answers with a status of `expected`.
    pub(super) async fn get(
        &self,
        source: &Source,
        host: &Host,
        path: &str,
        ask: &Ask,
        expected: &[StatusCode],
    ) -> Result<Response<Incoming>, Problem> {
        let prefix = &host.config.path;
        let path = format!("{prefix}/{}/{path}", source.repository());
        let mut target = Target::at(&host.config.origin, path);
        if let Some(namespace) = &host.config.namespace {
            target.push_query("ns", namespace);
        }
        let mut authorization = self.authorizations.known(source, host);
        let mut answered = false;
        loop {
            let mut ask = ask.clone();
            if let Some(authorization) = &authorization {
                ask.headers
                    .insert(AUTHORIZATION, authorization.header.clone());
            }
            let answer = self.follow(host, target.clone(), ask).await?;
            let refused = answer.response.status() == StatusCode::UNAUTHORIZED;
            if !refused || !answer.is_own || answered {
                if refused {
                    self.authorizations.forget(source, host);
                }
                return self
                    .accepted(source, authorization.as_ref(), answer.response, expected)
                    .await;
            }
            self.authorizations.forget(source, host);
            let offered = challenges(answer.response.headers());
            drop(answer);
            authorization = Some(self.authorize(source, host, &offered).await?);
            answered = true;
        }
    }

    /// Gets a target and follows redirects. `Authorization` and the host's own headers stay with
    /// the origin of the first target; a way back does not bring them back.
    pub(super) async fn follow(
        &self,
        host: &Host,
        mut target: Target,
        ask: Ask,
    ) -> Result<Answer, Problem> {
        let first = target.origin.clone();
        let mut is_own = true;
        let max = self.options.max_redirects;
        for _ in 0..=max {
            let mut request = self.request(Method::GET, &target, Bytes::new())?;
            for (name, value) in &ask.headers {
                if is_own || *name != AUTHORIZATION {
                    request.headers_mut().append(name, value.clone());
                }
            }
            if is_own && target.origin == host.config.origin {
                for (name, value) in &host.config.headers {
                    request.headers_mut().insert(name, value.clone());
                }
            }
            let client = host.client_for(&target);
            let response = client.send(request, ask.wait).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, is_own });
            }
            let next = location(&target, response.headers())?;
            tracing::debug!(from = %target, to = %next, "following a redirect");
            is_own = is_own && next.origin == first;
            target = next;
        }
        Err(Problem::Redirect {
            reason: format!("more than {max} in a row"),
        })
    }

    /// Makes a request with the headers that all requests have.
    pub(super) fn request(
        &self,
        method: Method,
        target: &Target,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Problem> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = target.uri()?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, self.user_agent.clone());
        // A digest is of the bytes as stored: a transfer encoding of content would hide them.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Ok(request)
    }

    /// Lets a response with an expected status through and turns any other into a problem with
    /// the server's words.
    pub(super) async fn accepted(
        &self,
        source: &Source,
        authorization: Option<&Authorization>,
        response: Response<Incoming>,
        expected: &[StatusCode],
    ) -> Result<Response<Incoming>, Problem> {
        let status = response.status();
        if expected.contains(&status) {
            return match header(response.headers(), CONTENT_ENCODING) {
                None | Some("identity") => Ok(response),
                Some(encoding) => Err(Problem::Encoding {
                    encoding: scrubbed(encoding, &[]),
                }),
            };
        }
        let retry_after = retry_after(response.headers());
        let mut secrets = source.secrets();
        secrets.extend(authorization.map(|a| a.secret.reveal().to_owned()));
        let body = tokio::time::timeout(DETAIL_WAIT, read_limited(response, MAX_DETAIL_BYTES));
        let detail = match body.await {
            Ok(Ok(body)) => detail(&body, &secrets),
            // The status alone has to do.
            Ok(Err(_)) | Err(_) => String::new(),
        };
        Err(match status {
            StatusCode::NOT_FOUND => Problem::NotFound { detail },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Problem::Denied { status, detail },
            _ => Problem::Status {
                status,
                retry_after,
                detail,
            },
        })
    }
}

/// Resolves a redirect; TLS is never left by one.
fn location(from: &Target, headers: &HeaderMap) -> Result<Target, Problem> {
    let refuse = |reason: String| Problem::Redirect { reason };
    let Some(location) = header(headers, LOCATION) else {
        return Err(refuse("it has no readable Location".into()));
    };
    let next = from
        .join(location)
        .map_err(|problem| refuse(problem.to_string()))?;
    if from.origin.scheme == Scheme::Https && next.origin.scheme == Scheme::Http {
        return Err(refuse(format!("{} is not https", next.origin)));
    }
    Ok(next)
}

/// Returns a header's value when it is readable text.
pub(super) fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Returns the announced length of a body.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    header(headers, CONTENT_LENGTH)?.trim().parse().ok()
}

/// Reads a body of at most `limit` bytes. The caller bounds the time.
pub(super) async fn read_limited(
    response: Response<Incoming>,
    limit: u64,
) -> Result<Vec<u8>, Problem> {
    let announced = content_length(response.headers()).unwrap_or(0);
    if announced > limit {
        return Err(Problem::TooLarge { limit });
    }
    let reserve = usize::try_from(announced.min(FIRST_RESERVATION)).unwrap_or(0);
    let mut bytes = Vec::with_capacity(reserve);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| Problem::Transport {
            source: source.into(),
        })?;
        if let Some(data) = frame.data_ref() {
            if (bytes.len() + data.len()) as u64 > limit {
                return Err(Problem::TooLarge { limit });
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes)
}

/// Reads `Retry-After`: seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = header(headers, RETRY_AFTER)?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let from_now = date.duration_since(SystemTime::now());
    Some(from_now.unwrap_or(Duration::ZERO))
}

/// The error document of the distribution specification.
#[derive(Deserialize)]
struct RawErrors {
    errors: Vec<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    code: String,
    message: Option<String>,
}

/// Returns the server's words about an error, cleaned, starting with `: `, or nothing.
fn detail(body: &[u8], secrets: &[String]) -> String {
    let Ok(raw) = serde_json::from_slice::<RawErrors>(body) else {
        return String::new();
    };
    let Some(first) = raw.errors.first() else {
        return String::new();
    };
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    let message = first.message.as_deref().unwrap_or_default();
    let text = scrubbed(&format!("{} {message}", first.code), &secrets);
    match text.is_empty() {
        true => text,
        false => format!(": {text}"),
    }
}
