//! A registry inside the test: serves images from memory, and can be told to misbehave.
//!
//! It speaks the read half of the distribution protocol. Tests about pushing, authentication and TLS use
//! the real one in [`crate::registry`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use serde_json::json;

use crate::http::{Reply, Request, Server};
use crate::images::{Image, MANIFEST, digest};

/// One way to misbehave, applied to the next request it fits, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Sends other bytes of the same length for this blob or manifest.
    OtherBytes(String),
    /// Closes the connection after so many bytes of this blob.
    Cut(String, usize),
    /// Sends so many bytes of this blob and then nothing.
    Stall(String, usize),
    /// Answers this blob or manifest with an HTTP status.
    Status(String, u16),
    /// Says another digest than the manifest has, for this tag.
    OtherDigest(String),
}

#[derive(Debug, Default)]
struct Shelves {
    /// `(repository, tag)` → manifest digest.
    tags: BTreeMap<(String, String), String>,
    /// Digest → media type and bytes.
    blobs: BTreeMap<String, (String, Vec<u8>)>,
    faults: VecDeque<Fault>,
    /// Every request: method, path and the range asked for.
    requests: Vec<String>,
}

/// The registry; gone when dropped.
#[derive(Debug)]
pub struct Shelf {
    server: Server,
    shelves: Arc<Mutex<Shelves>>,
}

fn lock(shelves: &Mutex<Shelves>) -> MutexGuard<'_, Shelves> {
    shelves.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelf {
    /// Starts an empty one on a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start() -> Result<Self> {
        let shelves = Arc::new(Mutex::new(Shelves::default()));
        let served = Arc::clone(&shelves);
        let server = Server::start(move |request| lock(&served).answer(request))?;
        Ok(Self { server, shelves })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Puts an image on the shelf and answers its reference.
    pub fn put(&self, repository: &str, tag: &str, image: &Image) -> String {
        let mut shelves = lock(&self.shelves);
        shelves.blobs.extend(image.blobs.clone());
        shelves.tags.insert(
            (repository.to_owned(), tag.to_owned()),
            image.manifest.clone(),
        );
        format!("{}/{repository}:{tag}", self.address())
    }

    /// Puts any document under a tag, as is.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> String {
        let mut shelves = lock(&self.shelves);
        let name = digest(bytes);
        shelves
            .blobs
            .insert(name.clone(), (media_type.to_owned(), bytes.to_vec()));
        shelves
            .tags
            .insert((repository.to_owned(), tag.to_owned()), name);
        format!("{}/{repository}:{tag}", self.address())
    }

    /// Misbehaves once, at the next request the fault fits.
    pub fn misbehave(&self, fault: Fault) {
        lock(&self.shelves).faults.push_back(fault);
    }

    /// The faults that met no request yet.
    #[must_use]
    pub fn faults_left(&self) -> usize {
        lock(&self.shelves).faults.len()
    }

    /// Forgets the faults that met no request.
    pub fn behave(&self) {
        lock(&self.shelves).faults.clear();
    }

    /// The requests so far: `GET /v2/… bytes=…`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shelves).requests.clone()
    }
}

impl Shelves {
    fn answer(&mut self, request: &Request) -> Reply {
        let range = request
            .headers
            .get("range")
            .map(String::as_str)
            .unwrap_or_default();
        self.requests
            .push(format!("{} {} {range}", request.method, request.path));
        let Some(path) = request.path.strip_prefix("/v2/") else {
            return unknown("NOT_FOUND");
        };
        if path.is_empty() {
            return Reply::new(200, "application/json", "{}");
        }
        if let Some((repository, reference)) = path.split_once("/manifests/") {
            return self.manifest(request, repository, reference);
        }
        match path.split_once("/blobs/") {
            Some((_, name)) => self.blob(request, name, range),
            None => unknown("UNSUPPORTED"),
        }
    }

    fn manifest(&mut self, request: &Request, repository: &str, reference: &str) -> Reply {
        let key = (repository.to_owned(), reference.to_owned());
        let name = self
            .tags
            .get(&key)
            .cloned()
            .unwrap_or_else(|| reference.to_owned());
        let Some((media_type, bytes)) = self.blobs.get(&name).cloned() else {
            return unknown("MANIFEST_UNKNOWN");
        };
        let mut told = name.clone();
        let mut reply = Reply::new(200, &media_type, bytes);
        match self.take(|fault| match fault {
            Fault::OtherBytes(d) | Fault::Status(d, _) => *d == name,
            // A body that contradicts the header is only seen by whoever reads the body.
            Fault::OtherDigest(tag) => *tag == reference && request.method == "GET",
            Fault::Cut(..) | Fault::Stall(..) => false,
        }) {
            Some(Fault::Status(_, status)) => return Reply::new(status, "text/plain", "no"),
            Some(Fault::OtherBytes(_)) => reply.body.push(b' '),
            Some(Fault::OtherDigest(_)) => told = digest(b"another manifest"),
            Some(Fault::Cut(..) | Fault::Stall(..)) | None => {}
        }
        if media_type.is_empty() {
            reply = Reply::new(200, MANIFEST, reply.body);
        }
        let length = reply.body.len().to_string();
        reply
            .header("docker-content-digest", told)
            .header("content-length", length)
    }

    fn blob(&mut self, request: &Request, name: &str, range: &str) -> Reply {
        let Some((_, bytes)) = self.blobs.get(name).cloned() else {
            return unknown("BLOB_UNKNOWN");
        };
        let total = bytes.len();
        let start = first_byte(range).unwrap_or(0);
        if start > 0 && start >= total {
            return Reply::new(416, "text/plain", "")
                .header("content-range", format!("bytes */{total}"));
        }
        let status = if first_byte(range).is_some() {
            206
        } else {
            200
        };
        let mut reply = Reply::new(status, "application/octet-stream", &bytes[start..])
            .header("accept-ranges", "bytes");
        if status == 206 {
            reply = reply.header(
                "content-range",
                format!("bytes {start}-{}/{total}", total - 1),
            );
        }
        if request.method == "HEAD" {
            return reply;
        }
        match self.take(|fault| match fault {
            Fault::OtherBytes(d) | Fault::Cut(d, _) | Fault::Stall(d, _) | Fault::Status(d, _) => {
                *d == name
            }
            Fault::OtherDigest(_) => false,
        }) {
            Some(Fault::OtherBytes(_)) => reply.body.reverse(),
            Some(Fault::Cut(_, after)) => reply.cut_after = Some(after),
            Some(Fault::Stall(_, after)) => reply.stall_after = Some(after),
            Some(Fault::Status(_, status)) => return Reply::new(status, "text/plain", "no"),
            Some(Fault::OtherDigest(_)) | None => {}
        }
        reply
    }

    fn take(&mut self, fits: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let place = self.faults.iter().position(fits)?;
        self.faults.remove(place)
    }
}

/// `N` of `bytes=N-`.
fn first_byte(range: &str) -> Option<usize> {
    range
        .strip_prefix("bytes=")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

fn unknown(code: &str) -> Reply {
    let body = json!({ "errors": [{ "code": code, "message": "not on this shelf" }] });
    Reply::new(404, "application/json", body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;
    use crate::images::{Compression, Layer};

    fn shelf() -> (Shelf, Image, u16) {
        let layer = Layer::new(Compression::Plain).text("a", "b");
        let image = Image::build(&json!({}), &[layer]).unwrap();
        let shelf = Shelf::start().unwrap();
        shelf.put("library/x", "1", &image);
        let port = shelf.address().rsplit_once(':').unwrap().1.parse().unwrap();
        (shelf, image, port)
    }

    #[test]
    fn serves_manifests_by_tag_and_digest() {
        let (_shelf, image, port) = shelf();
        for reference in ["1", image.manifest.as_str()] {
            let path = format!("/v2/library/x/manifests/{reference}");
            let answer = http::get("127.0.0.1", port, &path).unwrap();
            assert_eq!(digest(answer.body.as_bytes()), image.manifest);
        }
        assert_eq!(
            http::get("127.0.0.1", port, "/v2/library/x/manifests/2")
                .unwrap()
                .status,
            404
        );
    }

    #[test]
    fn misbehaves_once() {
        let (shelf, image, port) = shelf();
        let path = format!("/v2/library/x/blobs/{}", image.config);
        shelf.misbehave(Fault::Status(image.config, 500));
        assert_eq!(http::get("127.0.0.1", port, &path).unwrap().status, 500);
        assert_eq!(http::get("127.0.0.1", port, &path).unwrap().status, 200);
    }
}
