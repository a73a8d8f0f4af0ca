//! A registry that holds one blob back until the test lets it go, so that what happens meanwhile can be looked at.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axil_proto::cri::AuthConfig;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::eventually::eventually;
use crate::hostile::{challenge, honest};
use crate::http::{Request, Server};
use crate::images::{Compression, Entry, Image, Layer};

/// How long the blob is held back at most.
const HELD: Duration = Duration::from_secs(60);

/// Those who may pull from a registry with accounts: user names and passwords.
pub const ACCOUNTS: [(&str, &str); 2] = [("one", "first secret"), ("two", "second secret")];

/// An account as the CRI has it.
#[must_use]
pub fn account((username, password): (&str, &str)) -> Option<AuthConfig> {
    Some(AuthConfig {
        username: username.to_owned(),
        password: password.to_owned(),
        ..AuthConfig::default()
    })
}

/// An account as registries see it.
#[must_use]
pub fn header((username, password): (&str, &str)) -> String {
    format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    )
}

/// Bytes that do not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(300_000).collect()
}

fn layer(name: &str, seed: u64) -> Layer {
    Layer::new(Compression::Gzip).entry(name, 0o644, 0, Entry::Text(noise(seed)))
}

/// Two images on one base, each with a layer of its own.
///
/// # Panics
/// Never: no file is read.
#[must_use]
pub fn family() -> [Image; 2] {
    [("left", 2), ("right", 3)].map(|(name, seed)| {
        Image::build(&json!({}), &[layer("base", 1), layer(name, seed)])
            .unwrap_or_else(|error| panic!("build {name}: {error:#}"))
    })
}

/// One layer packed in two ways: two images with one configuration.
///
/// # Panics
/// Never: no file is read.
#[must_use]
pub fn twins() -> [Image; 2] {
    [Compression::Gzip, Compression::Zstd].map(|compression| {
        let layer = Layer::new(compression).entry("base", 0o644, 0, Entry::Text(noise(1)));
        Image::build(&json!({}), &[layer])
            .unwrap_or_else(|error| panic!("build {compression:?}: {error:#}"))
    })
}

#[derive(Debug, Default)]
struct State {
    is_open: bool,
    /// Paths and authorizations.
    requests: Vec<(String, Option<String>)>,
}

/// The registry; opened and gone when dropped.
#[derive(Debug)]
pub struct Gated {
    server: Server,
    state: Arc<(Mutex<State>, Condvar)>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gated {
    /// Serves an image in each of the repositories `left` and `right` and holds back what `held` is the digest of;
    /// with accounts to [`ACCOUNTS`] only.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(images: [Image; 2], held: &str, has_accounts: bool) -> Result<Self> {
        let state: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let (served, held) = (Arc::clone(&state), held.to_owned());
        let server = Server::start(move |request: &Request| {
            let authorization = request.headers.get("authorization").cloned();
            let is_known = |line: &String| ACCOUNTS.map(header).contains(line);
            let (mutex, opened) = &*served;
            let mut state = lock(mutex);
            state
                .requests
                .push((request.path.clone(), authorization.clone()));
            if has_accounts && !authorization.as_ref().is_some_and(is_known) {
                return challenge("Basic realm=\"here\"");
            }
            if request.path.contains(&held) {
                drop(opened.wait_timeout_while(state, HELD, |state| !state.is_open));
            } else {
                drop(state);
            }
            let [left, right] = &images;
            let is_left = request.path.starts_with("/v2/left/");
            honest(if is_left { left } else { right }, request)
        })?;
        Ok(Self { server, state })
    }

    /// The reference of the image in a repository.
    #[must_use]
    pub fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.server.address())
    }

    /// Lets the blob go.
    pub fn open(&self) {
        let (mutex, opened) = &*self.state;
        lock(mutex).is_open = true;
        opened.notify_all();
    }

    /// The authorizations of the requests whose path has this part, answered well or not.
    #[must_use]
    pub fn asked(&self, part: &str) -> Vec<Option<String>> {
        let state = lock(&self.state.0);
        let requests = state.requests.iter();
        let found = requests.filter(|(path, _)| path.contains(part));
        found
            .map(|(_, authorization)| authorization.clone())
            .collect()
    }

    /// Waits for a request whose path has this part.
    ///
    /// # Panics
    /// When none comes.
    pub fn wait_for(&self, part: &str) {
        eventually(&format!("a request for {part}"), || {
            (!self.asked(part).is_empty()).then_some(())
        });
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        self.open();
    }
}
