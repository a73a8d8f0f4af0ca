//! Lists as streams: the entries of a list in messages far below the limit of gRPC, made while the client reads.

use std::pin::Pin;

use prost::Message;
use tokio_stream::Stream;
use tonic::Status;

/// Encoded bytes after which a message is sent; an entry is never split.
const FULL: usize = 256 << 10;

/// Most entries of one message.
const MOST: usize = 1000;

/// What a streaming call answers.
pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Entries, some at a time.
struct Chunks<I: Iterator> {
    entries: std::iter::Peekable<I>,
}

impl<I> Iterator for Chunks<I>
where
    I: Iterator,
    I::Item: Message,
{
    type Item = Vec<I::Item>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut chunk = vec![self.entries.next()?];
        let mut bytes = chunk[0].encoded_len();
        while chunk.len() < MOST {
            let fits = |entry: &I::Item| bytes + entry.encoded_len() <= FULL;
            let Some(entry) = self.entries.next_if(fits) else {
                break;
            };
            bytes += entry.encoded_len();
            chunk.push(entry);
        }
        Some(chunk)
    }
}

/// A stream of messages with at least one entry each, which ends after the last.
pub(super) fn stream<I, T>(
    entries: I,
    message: impl Fn(Vec<I::Item>) -> T + Send + 'static,
) -> Streamed<T>
where
    I: Iterator + Send + 'static,
    I::Item: Message,
    T: Send + 'static,
{
    let chunks = Chunks {
        entries: entries.peekable(),
    };
    Box::pin(tokio_stream::iter(
        chunks.map(move |chunk| Ok(message(chunk))),
    ))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    async fn sizes(entries: Vec<String>) -> Vec<usize> {
        let mut stream = stream(entries.into_iter(), |chunk| chunk);
        let mut sizes = Vec::new();
        while let Some(chunk) = stream.next().await {
            sizes.push(chunk.unwrap().len());
        }
        sizes
    }

    #[tokio::test]
    async fn messages_are_bounded_and_never_empty() {
        assert_eq!(sizes(Vec::new()).await, Vec::<usize>::new());
        assert_eq!(sizes(vec!["a".to_owned(); 2500]).await, [1000, 1000, 500]);
        let large = "x".repeat(100 << 10);
        assert_eq!(sizes(vec![large; 5]).await, [2, 2, 1]);
        let huge = "x".repeat(FULL * 2);
        assert_eq!(sizes(vec![huge, "a".to_owned()]).await, [1, 1]);
    }

    #[tokio::test]
    async fn nothing_is_lost_or_sent_twice() {
        let entries: Vec<String> = (0..5000)
            .map(|n| format!("{n}-{}", "y".repeat(200)))
            .collect();
        let mut stream = stream(entries.clone().into_iter(), |chunk| chunk);
        let mut seen = Vec::new();
        while let Some(chunk) = stream.next().await {
            seen.extend(chunk.unwrap());
        }
        assert_eq!(seen, entries);
    }
}
