//! A part of a blob, or all of it, as a stream of chunks that survives broken transfers: it comes
//! back with a range request at the byte it had, to the same host or the next.

use std::sync::Arc;
use std::time::Duration;

use axil_snapshotter::Digest;
use bytes::Bytes;
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::adapters::registry::error::{Problem, RegistryError};
use crate::adapters::registry::exchange::{Ask, Exchange, content_length, header};
use crate::adapters::registry::origin::Origin;
use crate::adapters::registry::redact::shown;
use crate::adapters::registry::retry::Retry;
use crate::adapters::registry::slots::Slot;
use crate::adapters::registry::source::Source;

/// Fewest bytes that count as progress within one progress timeout (one byte now and then does not
/// keep a transfer alive), and after which earlier failures are forgiven.
const MIN_PROGRESS_BYTES: u64 = 16 << 10;
/// How long the end of a body is waited for once all bytes are there.
const END_WAIT: Duration = Duration::from_secs(2);

/// What is fetched, and of whom.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) exchange: Arc<Exchange>,
    pub(super) source: Source,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl Blob {
    /// The hosts to ask, in their order.
    pub(super) fn hosts(&self) -> Vec<usize> {
        self.source.order(|host| host.pull)
    }

    fn origin(&self, host: usize) -> &Origin {
        &self.source.host(host).config.origin
    }

    /// The host whose slots a part that starts now needs.
    pub(super) fn first_origin(&self) -> Option<&Origin> {
        self.hosts().first().map(|host| self.origin(*host))
    }

    pub(super) fn error(&self, host: Option<usize>, problem: Problem) -> RegistryError {
        let host = match host {
            Some(host) => self.origin(host).authority(),
            None => self.source.reference().host().to_owned(),
        };
        RegistryError {
            what: format!("blob {} of {}", self.digest, self.source.reference()),
            host,
            problem,
        }
    }
}

/// The bytes from an offset to before an end, exactly.
#[derive(Debug)]
pub(super) struct Part {
    blob: Arc<Blob>,
    /// The offset of the next byte to hand out.
    position: u64,
    end: u64,
    /// Where a host sends the whole blob instead of a part, the rest of it is taken.
    widens: bool,
    /// Hosts to ask, the current one first.
    hosts: Vec<usize>,
    retry: Retry,
    /// Bytes handed out since the last failure.
    since_failure: u64,
    slot: Option<Slot>,
    transfer: Option<Transfer>,
}

/// One answer being read.
#[derive(Debug)]
struct Transfer {
    body: Incoming,
    /// Bytes to drop: the host sent the blob from its start.
    skip: u64,
    /// Time waited and bytes received in the current window of progress. The consumer's own
    /// pauses do not count.
    waited: Duration,
    received: u64,
}

impl Part {
    /// A part that is handed on as it comes.
    pub(super) fn in_turn(blob: Arc<Blob>, position: u64, end: u64) -> Self {
        Self::new(blob, position, end, None, true)
    }

    /// A part that is fetched before its turn, in a slot that was free.
    pub(super) fn early(blob: Arc<Blob>, position: u64, end: u64, slot: Slot) -> Self {
        Self::new(blob, position, end, Some(slot), false)
    }

    fn new(blob: Arc<Blob>, position: u64, end: u64, slot: Option<Slot>, widens: bool) -> Self {
        Self {
            hosts: blob.hosts(),
            retry: Retry::new(&blob.exchange.options),
            blob,
            position,
            end,
            widens,
            since_failure: 0,
            slot,
            transfer: None,
        }
    }

    /// The offset before which it ends. It grows to the blob's size when a host turns out to serve
    /// no ranges.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Returns the next chunk, never empty, and `None` at the end. Not to be called again after an
    /// error.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.position < self.end {
            if self.transfer.is_none() {
                self.connect().await?;
            }
            match self.read().await {
                Ok(Some(chunk)) => {
                    let length = chunk.len() as u64;
                    self.position += length;
                    self.since_failure += length;
                    if self.since_failure >= MIN_PROGRESS_BYTES {
                        self.retry.reset();
                    }
                    return Ok(Some(chunk));
                }
                Ok(None) => {
                    let problem = Problem::Truncated {
                        received: self.position,
                        expected: self.end,
                    };
                    self.recover(problem).await?;
                }
                Err(problem) => self.recover(problem).await?,
            }
        }
        self.finish().await?;
        Ok(None)
    }

    /// Asks until a host answers with the bytes from `position` on.
    pub(super) async fn connect(&mut self) -> Result<(), RegistryError> {
        loop {
            match self.ask().await {
                Ok(transfer) => {
                    self.transfer = Some(transfer);
                    return Ok(());
                }
                Err(problem) => self.recover(problem).await?,
            }
        }
    }

    /// Waits before the next try, moves on to the next host, or gives up.
    async fn recover(&mut self, problem: Problem) -> Result<(), RegistryError> {
        let started = self.transfer.take().is_some();
        // Others may go on while this one waits.
        self.slot = None;
        self.since_failure = 0;
        if self.widens && self.end < self.blob.size && !started && dislikes_ranges(&problem) {
            tracing::debug!(digest = %self.blob.digest, error = %problem, "no parts from here");
            self.end = self.blob.size;
            return Ok(());
        }
        let has_next = self.hosts.len() > 1;
        let next_is_better = has_next && matches!(problem, Problem::Connect { .. });
        if let Some(pause) = self.retry.pause(&problem).filter(|_| !next_is_better) {
            tracing::debug!(
                digest = %self.blob.digest,
                position = self.position,
                error = %problem,
                "a transfer broke, trying again"
            );
            tokio::time::sleep(pause).await;
            return Ok(());
        }
        let error = self.error(problem);
        if !has_next {
            return Err(error);
        }
        tracing::debug!(error = %error, "a mirror failed, asking the next host");
        self.hosts.remove(0);
        self.retry = Retry::new(&self.blob.exchange.options);
        Ok(())
    }

    async fn ask(&mut self) -> Result<Transfer, Problem> {
        let blob = Arc::clone(&self.blob);
        let host = blob.source.host(self.hosts[0]);
        if self.slot.is_none() {
            let slots = &blob.exchange.slots;
            self.slot = Some(slots.for_transfer(&host.config.origin).await);
        }
        let mut headers = HeaderMap::new();
        let range = match (self.position, self.end < blob.size) {
            (0, false) => None,
            (position, false) => Some(format!("bytes={position}-")),
            (position, true) => Some(format!("bytes={position}-{}", self.end - 1)),
        };
        if let Some(range) = range {
            let range = HeaderValue::from_str(&range).expect("digits are a header value");
            headers.insert(RANGE, range);
        }
        let ask = Ask {
            headers,
            wait: blob.exchange.options.progress_timeout,
        };
        let path = format!("blobs/{}", blob.digest);
        let expected = [
            StatusCode::OK,
            StatusCode::PARTIAL_CONTENT,
            StatusCode::RANGE_NOT_SATISFIABLE,
        ];
        let response = blob
            .exchange
            .get(&blob.source, host, &path, &ask, &expected)
            .await?;
        let skip = self.check_head(&response)?;
        Ok(Transfer {
            body: response.into_body(),
            skip,
            waited: Duration::ZERO,
            received: 0,
        })
    }

    /// Checks that the answer is for the bytes asked for; returns how many to skip.
    fn check_head(&mut self, response: &Response<Incoming>) -> Result<u64, Problem> {
        let size = self.blob.size;
        let (skip, length) = match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(Problem::Range {
                    reason: format!("the host has no byte {} of {size}", self.position),
                });
            }
            StatusCode::PARTIAL_CONTENT => {
                let range = header(response.headers(), CONTENT_RANGE).unwrap_or_default();
                check_range(range, self.position, self.end, size)?;
                (0, self.end - self.position)
            }
            // The server does not do ranges.
            _ if self.widens => (self.position, size),
            _ => {
                return Err(Problem::Range {
                    reason: "the host sends the whole".into(),
                });
            }
        };
        if let Some(found) = content_length(response.headers())
            && found != length
        {
            return Err(Problem::Size {
                expected: length,
                found,
            });
        }
        if length == size {
            self.end = size;
        }
        Ok(skip)
    }

    /// Reads the next chunk of the transfer; `None` when the body ended.
    async fn read(&mut self) -> Result<Option<Bytes>, Problem> {
        let left = self.end - self.position;
        let timeout = self.blob.exchange.options.progress_timeout;
        let Some(transfer) = &mut self.transfer else {
            return Ok(None);
        };
        loop {
            let Some(mut chunk) = transfer.frame(timeout).await? else {
                return Ok(None);
            };
            let skipped = transfer.skip.min(chunk.len() as u64);
            transfer.skip -= skipped;
            // At most the chunk's length, which is a usize.
            let _ = chunk.split_to(usize::try_from(skipped).unwrap_or(chunk.len()));
            if chunk.is_empty() {
                continue;
            }
            let length = chunk.len() as u64;
            if length > left {
                return Err(Problem::Size {
                    expected: self.end,
                    found: self.position + length,
                });
            }
            return Ok(Some(chunk));
        }
    }

    /// Checks that nothing follows the last byte.
    async fn finish(&mut self) -> Result<(), RegistryError> {
        let Some(mut transfer) = self.transfer.take() else {
            return Ok(());
        };
        transfer.waited = Duration::ZERO;
        let wait = END_WAIT.min(self.blob.exchange.options.progress_timeout);
        match transfer.frame(wait).await {
            Ok(Some(more)) => Err(self.error(Problem::Size {
                expected: self.end,
                found: self.end + more.len() as u64,
            })),
            // All bytes are there and the consumer has their digest: how the body ends is of no
            // interest.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn error(&self, problem: Problem) -> RegistryError {
        self.blob.error(self.hosts.first().copied(), problem)
    }
}

/// Tells whether an answer may be owed to the header `Range`.
fn dislikes_ranges(problem: &Problem) -> bool {
    match problem {
        Problem::Range { .. } => true,
        Problem::Status { status, .. } => matches!(
            *status,
            StatusCode::BAD_REQUEST
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::PRECONDITION_FAILED
                | StatusCode::NOT_IMPLEMENTED
        ),
        _ => false,
    }
}

impl Transfer {
    /// Reads the next non-empty piece of data, and watches that the transfer makes progress.
    async fn frame(&mut self, timeout: Duration) -> Result<Option<Bytes>, Problem> {
        loop {
            let started = Instant::now();
            let left = timeout.saturating_sub(self.waited);
            let frame = tokio::time::timeout(left, self.body.frame()).await;
            self.waited += started.elapsed();
            let stalled = Problem::Timeout {
                what: "progress",
                after: timeout,
            };
            let data = match frame {
                Err(_) => return Err(stalled),
                Ok(None) => return Ok(None),
                Ok(Some(Err(source))) => {
                    return Err(Problem::Transport {
                        source: source.into(),
                    });
                }
                // Trailers are of no interest.
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            self.received += data.len() as u64;
            if self.received >= MIN_PROGRESS_BYTES {
                self.received = 0;
                self.waited = Duration::ZERO;
            }
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

/// Checks `Content-Range: bytes <first>-<last>/<size>` against what was asked for: from `position`
/// to before `end`.
fn check_range(value: &str, position: u64, end: u64, size: u64) -> Result<(), Problem> {
    let numbers = || {
        let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = match total {
            "*" => None,
            total => Some(total.parse::<u64>().ok()?),
        };
        Some((
            first.trim().parse::<u64>().ok()?,
            last.trim().parse::<u64>().ok()?,
            total,
        ))
    };
    let Some((first, last, total)) = numbers() else {
        return Err(Problem::Range {
            reason: format!("Content-Range \"{}\" cannot be read", shown(value)),
        });
    };
    if first == position && last.checked_add(1) == Some(end) && total.is_none_or(|t| t == size) {
        return Ok(());
    }
    Err(Problem::Range {
        reason: format!(
            "asked for bytes {position} to {end} of {size}, got \"{}\"",
            shown(value)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_range_asked_for_is_taken() {
        assert!(check_range("bytes 5-9/10", 5, 10, 10).is_ok());
        assert!(check_range("bytes 5-9/*", 5, 10, 10).is_ok());
        assert!(check_range("bytes 5-7/10", 5, 8, 10).is_ok());
        assert!(check_range("bytes 5-9/10", 5, 8, 10).is_err());
        for bad in [
            "",
            "bytes */10",
            "bytes 4-9/10",
            "bytes 5-8/10",
            "bytes 5-9/11",
            "bytes 5-18446744073709551615/10",
            "bytes 5-99999999999999999999/10",
            "items 5-9/10",
            "bytes=5-9/10",
            "bytes -9/10",
        ] {
            assert!(check_range(bad, 5, 10, 10).is_err(), "{bad:?} was accepted");
        }
    }
}
