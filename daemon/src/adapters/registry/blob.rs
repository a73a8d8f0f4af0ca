//! A blob as a stream of chunks that survives broken transfers: it comes back with a range request
//! at the byte it had, to the same host or the next. The digest over the whole is the consumer's
//! check; size, order and range are checked here.

use std::sync::Arc;
use std::time::Duration;

use axil_snapshotter::Digest;
use bytes::Bytes;
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::error::{Problem, RegistryError};
use super::exchange::{Ask, Exchange, content_length, header};
use super::redact::shown;
use super::retry::Retry;
use super::source::Source;

/// Fewest bytes that count as progress within one progress timeout: one byte now and then does
/// not keep a transfer alive.
const MIN_PROGRESS_BYTES: u64 = 16 << 10;
/// Bytes after which earlier failures are forgiven.
const FORGIVING_BYTES: u64 = 1 << 20;
/// How long the end of a body is waited for once all bytes are there.
const END_WAIT: Duration = Duration::from_secs(2);

/// The bytes of a blob from an offset to its end, exactly.
#[derive(Debug)]
pub struct BlobStream {
    exchange: Arc<Exchange>,
    source: Source,
    digest: Digest,
    size: u64,
    /// The offset of the next byte to hand out.
    position: u64,
    /// Hosts to ask, the current one first.
    hosts: Vec<usize>,
    retry: Retry,
    /// Bytes handed out since the last failure.
    since_failure: u64,
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

impl BlobStream {
    pub(super) async fn open(
        exchange: Arc<Exchange>,
        source: &Source,
        digest: &Digest,
        size: u64,
        offset: u64,
    ) -> Result<Self, RegistryError> {
        let hosts = source.order(|host| host.pull);
        let retry = Retry::new(exchange.options.max_retries, exchange.options.retry_backoff);
        let mut stream = Self {
            exchange,
            source: source.clone(),
            digest: digest.clone(),
            size,
            position: offset,
            hosts,
            retry,
            since_failure: 0,
            transfer: None,
        };
        if offset > size {
            return Err(stream.error(Problem::Offset { offset, size }));
        }
        if stream.hosts.is_empty() {
            return Err(stream.error(Problem::NoHost { capability: "pull" }));
        }
        if offset < size {
            stream.connect().await?;
        }
        Ok(stream)
    }

    /// Returns the next chunk, never empty, and `None` at the end of the blob. Not to be called
    /// again after an error.
    ///
    /// # Errors
    /// Everything that no retry and no other host could mend.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.position < self.size {
            if self.transfer.is_none() {
                self.connect().await?;
            }
            match self.read().await {
                Ok(Some(chunk)) => {
                    let length = chunk.len() as u64;
                    self.position += length;
                    self.since_failure += length;
                    if self.since_failure >= FORGIVING_BYTES {
                        self.retry.reset();
                    }
                    return Ok(Some(chunk));
                }
                Ok(None) => {
                    let problem = Problem::Truncated {
                        received: self.position,
                        expected: self.size,
                    };
                    self.recover(problem).await?;
                }
                Err(problem) => self.recover(problem).await?,
            }
        }
        self.finish().await?;
        Ok(None)
    }

    /// Returns the offset of the next chunk in the blob.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Asks until a host answers with the bytes from `position` on.
    async fn connect(&mut self) -> Result<(), RegistryError> {
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
        self.transfer = None;
        self.since_failure = 0;
        let has_next = self.hosts.len() > 1;
        let next_is_better = has_next && matches!(problem, Problem::Connect { .. });
        if let Some(pause) = self.retry.pause(&problem).filter(|_| !next_is_better) {
            tracing::debug!(
                digest = %self.digest,
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
        let options = &self.exchange.options;
        self.retry = Retry::new(options.max_retries, options.retry_backoff);
        Ok(())
    }

    async fn ask(&self) -> Result<Transfer, Problem> {
        let host = self.source.host(self.hosts[0]);
        let mut headers = HeaderMap::new();
        if self.position > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.position))
                .expect("digits are a header value");
            headers.insert(RANGE, range);
        }
        let ask = Ask {
            headers,
            wait: self.exchange.options.progress_timeout,
        };
        let path = format!("blobs/{}", self.digest);
        let expected = [
            StatusCode::OK,
            StatusCode::PARTIAL_CONTENT,
            StatusCode::RANGE_NOT_SATISFIABLE,
        ];
        let response = self
            .exchange
            .get(&self.source, host, &path, &ask, &expected)
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
    fn check_head(&self, response: &Response<Incoming>) -> Result<u64, Problem> {
        let (skip, length) = match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(Problem::Range {
                    reason: format!("the host has no byte {} of {}", self.position, self.size),
                });
            }
            StatusCode::PARTIAL_CONTENT => {
                let range = header(response.headers(), CONTENT_RANGE).unwrap_or_default();
                check_range(range, self.position, self.size)?;
                (0, self.size - self.position)
            }
            // The server does not do ranges.
            _ => (self.position, self.size),
        };
        match content_length(response.headers()) {
            Some(found) if found != length => Err(Problem::Size {
                expected: length,
                found,
            }),
            _ => Ok(skip),
        }
    }

    /// Reads the next chunk of the transfer; `None` when the body ended.
    async fn read(&mut self) -> Result<Option<Bytes>, Problem> {
        let left = self.size - self.position;
        let timeout = self.exchange.options.progress_timeout;
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
                    expected: self.size,
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
        let wait = END_WAIT.min(self.exchange.options.progress_timeout);
        match transfer.frame(wait).await {
            Ok(Some(more)) => Err(self.error(Problem::Size {
                expected: self.size,
                found: self.size + more.len() as u64,
            })),
            // All bytes are there and the consumer has their digest: how the body ends is of no
            // interest.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn error(&self, problem: Problem) -> RegistryError {
        let host = match self.hosts.first() {
            Some(index) => self.source.host(*index).config.origin.authority(),
            None => self.source.reference().host().to_owned(),
        };
        RegistryError {
            what: format!("blob {} of {}", self.digest, self.source.reference()),
            host,
            problem,
        }
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

/// Checks `Content-Range: bytes <first>-<last>/<size>` against what was asked for.
fn check_range(value: &str, position: u64, size: u64) -> Result<(), Problem> {
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
    if first == position && last.checked_add(1) == Some(size) && total.is_none_or(|t| t == size) {
        return Ok(());
    }
    Err(Problem::Range {
        reason: format!(
            "asked for bytes {position} to the end of {size}, got \"{}\"",
            shown(value)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_range_asked_for_is_taken() {
        assert!(check_range("bytes 5-9/10", 5, 10).is_ok());
        assert!(check_range("bytes 5-9/*", 5, 10).is_ok());
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
            assert!(check_range(bad, 5, 10).is_err(), "{bad:?} was accepted");
        }
    }
}
