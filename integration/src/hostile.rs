//! A registry that means harm: it serves one image honestly except where a test's trick answers instead, and
//! remembers every request with its headers.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::http::{Reply, Request, Server};
use crate::images::Image;

/// What answers instead of the registry; `None` leaves the request to the honest part.
type Trick = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

/// A request as it was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The path with its query.
    pub path: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The header `Cookie`.
    pub cookie: Option<String>,
}

#[derive(Default)]
struct State {
    trick: Option<Trick>,
    seen: Vec<Seen>,
}

/// The registry; gone when dropped.
pub struct Hostile {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hostile").field(&self.address()).finish()
    }
}

impl Hostile {
    /// Starts with an image under every repository and tag, without a trick.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(image: Image) -> Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let served = Arc::clone(&state);
        let server = Server::start(move |request| {
            let mut state = served.lock().unwrap_or_else(PoisonError::into_inner);
            let header = |name: &str| request.headers.get(name).cloned();
            let query = match request.query.as_str() {
                "" => String::new(),
                query => format!("?{query}"),
            };
            state.seen.push(Seen {
                path: format!("{}{query}", request.path),
                authorization: header("authorization"),
                cookie: header("cookie"),
            });
            let tricked = state.trick.as_ref().and_then(|trick| trick(request));
            tricked.unwrap_or_else(|| honest(&image, request))
        })?;
        Ok(Self { server, state })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Plays a trick from now on, instead of the one before.
    pub fn play(&self, trick: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        self.with(|state| state.trick = Some(Box::new(trick)));
    }

    /// Is honest from now on.
    pub fn behave(&self) {
        self.with(|state| state.trick = None);
    }

    /// Every request so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.with(|state| state.seen.clone())
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers as a plain registry without ranges.
#[must_use]
pub fn honest(image: &Image, request: &Request) -> Reply {
    let name = request.path.rsplit('/').next().unwrap_or_default();
    let digest = match request.path.contains("/manifests/") && !name.contains(':') {
        true => image.manifest.as_str(),
        false => name,
    };
    match image.blobs.get(digest) {
        Some((media_type, bytes)) => Reply::new(200, media_type, bytes.as_slice()),
        None => Reply::new(
            404,
            "application/json",
            r#"{"errors":[{"code":"NOT_FOUND"}]}"#,
        ),
    }
}

/// A body that goes on for ever.
#[must_use]
pub fn endless(content_type: &str) -> Reply {
    Reply {
        endless: Some(Duration::ZERO),
        ..Reply::new(200, content_type, vec![b' '; 64 * 1024])
    }
}

/// A body of `length` bytes that comes one byte at a time.
#[must_use]
pub fn drip(content_type: &str, length: usize) -> Reply {
    Reply {
        endless: Some(Duration::from_millis(20)),
        ..Reply::new(200, content_type, " ").header("content-length", length.to_string())
    }
}

/// A body that is said to be longer or shorter than it is.
#[must_use]
pub fn lie(content_type: &str, body: &[u8], length: usize) -> Reply {
    Reply::new(200, content_type, body).header("content-length", length.to_string())
}

/// An answer with more headers than anyone reads.
#[must_use]
pub fn many_headers() -> Reply {
    let mut reply = Reply::new(200, "application/json", "{}");
    for number in 0..20_000 {
        reply = reply.header(&format!("x-{number}"), "x".repeat(100));
    }
    reply
}

/// A redirect.
#[must_use]
pub fn redirect(to: &str) -> Reply {
    Reply::new(307, "text/plain", "").header("location", to)
}

/// A demand for authorization.
#[must_use]
pub fn challenge(text: &str) -> Reply {
    Reply::new(401, "text/plain", "").header("www-authenticate", text)
}
