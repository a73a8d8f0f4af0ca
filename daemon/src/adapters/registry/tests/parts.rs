//! Large blobs in parts, from servers that serve ranges and from those that do not, or lie.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::{RangeOptions, Registry, RegistryOptions};
use super::fixture::{Image, options, ranged, read, source};
use super::server::{Act, Reply, Seen, Server, head, reply};
use crate::domain::failure::Class;

const SIZE: usize = 1_000_000;
const PART: usize = 150_000;

/// Parts of [`PART`] bytes, four at once.
fn in_parts() -> RegistryOptions {
    RegistryOptions {
        ranges: RangeOptions {
            per_blob: 4,
            bytes: PART as u64,
            threshold: 2 * PART as u64,
            buffer_bytes: 8 << 20,
        },
        ..options()
    }
}

#[tokio::test]
async fn large_blobs_come_in_parts_and_in_order() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let server = Server::start(move |seen, _| {
        let mut answer = ranged(&served.layer, seen);
        // The first part is the slowest one.
        if seen.range_start() == Some(0) {
            answer.insert(0, Act::Pause(Duration::from_millis(100)));
        }
        answer
    })
    .await;
    let layer = image.layer_descriptor();
    for (offset, parts) in [(0, 7), (1, 7), (650_000, 3), (700_001, 1), (999_999, 1)] {
        let registry = Registry::new(in_parts());
        let source = source(&registry, &server).await;
        let before = server.seen().len();
        let bytes = read(&registry, &source, &layer, offset as u64)
            .await
            .unwrap();
        assert!(bytes == image.layer[offset..], "from {offset}");
        assert_eq!(server.seen().len() - before, parts, "from {offset}");
    }
    assert!(
        server.connections.load(Ordering::SeqCst) > 4,
        "parts come side by side"
    );
    let seen = server.seen();
    assert_eq!(seen[0].header("range"), Some("bytes=0-149999"));
    let last = seen
        .iter()
        .filter(|seen| seen.header("range") == Some("bytes=900000-"));
    assert_eq!(last.count(), 1);
}

#[tokio::test]
async fn without_memory_parts_come_one_after_the_other() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let server = Server::start(move |seen, _| ranged(&served.layer, seen)).await;
    let mut options = in_parts();
    options.ranges.buffer_bytes = 0;
    let registry = Registry::new(options);
    let source = source(&registry, &server).await;
    let bytes = read(&registry, &source, &image.layer_descriptor(), 0).await;
    assert!(bytes.unwrap() == image.layer);
    assert_eq!(server.seen().len(), 7);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn servers_without_ranges_are_asked_for_the_whole_once() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let whole = Server::start(move |_, _| reply(200, &[], &served.layer)).await;
    let registry = Registry::new(in_parts());
    let from = source(&registry, &whole).await;
    let bytes = read(&registry, &from, &image.layer_descriptor(), 0).await;
    assert!(bytes.unwrap() == image.layer);
    assert_eq!(whole.seen().len(), 1);

    for status in [400, 405, 416, 501] {
        let served = image.clone();
        let refusing = Server::start(move |seen, _| match seen.range_start() {
            Some(_) => reply(status, &[], b""),
            None => reply(200, &[], &served.layer),
        })
        .await;
        let from = source(&registry, &refusing).await;
        let bytes = read(&registry, &from, &image.layer_descriptor(), 0).await;
        assert!(bytes.unwrap() == image.layer, "{status}");
        assert_eq!(refusing.seen().len(), 2, "{status}");
    }
}

#[tokio::test]
async fn what_early_parts_cannot_get_comes_in_one() {
    let image = Image::new(SIZE);
    let lies: [fn(&Seen, &[u8]) -> Reply; 5] = [
        // Too many at once.
        |_, _| reply(429, &[("retry-after", "3600")], b""),
        // The whole, another range, more than the range, less than the range.
        |_, layer| reply(200, &[], layer),
        |_, layer| {
            let range = format!("bytes 0-{}/{SIZE}", PART - 1);
            reply(206, &[("content-range", &range)], &layer[..PART])
        },
        |seen, layer| {
            let Some(range) = seen.range() else {
                return ranged(layer, seen);
            };
            let value = format!("bytes {}-{}/{SIZE}", range.start, range.end - 1);
            let mut bytes = head(206, &[("content-range", &value)], None);
            bytes.extend_from_slice(&layer[range.start..]);
            vec![Act::Send(bytes)]
        },
        |seen, layer| {
            let Some(range) = seen.range() else {
                return ranged(layer, seen);
            };
            let value = format!("bytes {}-{}/{SIZE}", range.start, range.end - 1);
            let mut bytes = head(206, &[("content-range", &value)], Some(range.len()));
            bytes.extend_from_slice(&layer[range.start..range.start + 10]);
            vec![Act::Send(bytes)]
        },
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let served = image.clone();
        let server = Server::start(move |seen, _| {
            let early = seen.range().is_some_and(|range| range.start > 0);
            match early {
                true => lie(seen, &served.layer),
                false => ranged(&served.layer, seen),
            }
        })
        .await;
        let registry = Registry::new(in_parts());
        let from = source(&registry, &server).await;
        let bytes = read(&registry, &from, &image.layer_descriptor(), 0).await;
        match bytes {
            Ok(bytes) => assert!(bytes == image.layer, "lie {number}"),
            Err(error) => panic!("lie {number}: {error}"),
        }
    }
}

#[tokio::test]
async fn parts_that_break_go_on_where_they_broke() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let server = Server::start(move |seen, before| {
        let start = seen.range_start().unwrap_or(0);
        let end = seen.range().map_or(SIZE, |range| range.end);
        let value = format!("bytes {start}-{}/{SIZE}", end - 1);
        let mut bytes = head(206, &[("content-range", &value)], Some(end - start));
        let most = 20_000 + before * 7919 % 60_000;
        bytes.extend_from_slice(&served.layer[start..end.min(start + most)]);
        vec![Act::Send(bytes)]
    })
    .await;
    let registry = Registry::new(in_parts());
    let from = source(&registry, &server).await;
    let bytes = read(&registry, &from, &image.layer_descriptor(), 0).await;
    assert!(bytes.unwrap() == image.layer);
    assert!(server.seen().len() > 12);
}

#[tokio::test]
async fn an_abandoned_blob_ends_its_transfers() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let server = Server::start(move |seen, _| ranged(&served.layer, seen)).await;
    let mut options = in_parts();
    options.transfers_per_host = 4;
    let registry = Registry::new(options);
    let from = source(&registry, &server).await;
    for _ in 0..20 {
        let mut stream = registry
            .blob(&from, &image.layer_descriptor(), 0)
            .await
            .unwrap();
        stream.next().await.unwrap();
    }
    // Every slot is free again, or this would wait for ever.
    let bytes = read(&registry, &from, &image.layer_descriptor(), 0).await;
    assert!(bytes.unwrap() == image.layer);
}

#[tokio::test]
async fn a_host_serves_so_many_transfers_at_once() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let server = Server::start(move |seen, _| {
        let mut answer = ranged(&served.layer, seen);
        answer.insert(0, Act::Pause(Duration::from_millis(20)));
        answer
    })
    .await;
    let mut options = in_parts();
    options.transfers_per_host = 2;
    options.progress_timeout = Duration::from_secs(20);
    let registry = Registry::new(options);
    let from = source(&registry, &server).await;
    let layer = image.layer_descriptor();
    let reads = (0..5).map(|_| async {
        let bytes = read(&registry, &from, &layer, 0).await;
        bytes.unwrap() == image.layer
    });
    let mut tasks = Vec::new();
    for read in reads {
        tasks.push(Box::pin(read));
    }
    let [a, b, c, d, e] = <[_; 5]>::try_from(tasks).unwrap_or_else(|_| unreachable!());
    let (a, b, c, d, e) = tokio::join!(a, b, c, d, e);
    assert!(a && b && c && d && e);
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_blob_that_is_nowhere_is_not_found_in_parts_either() {
    let image = Image::new(SIZE);
    let server = Server::start(|_, _| reply(404, &[], b"")).await;
    let registry = Registry::new(in_parts());
    let from = source(&registry, &server).await;
    let error = read(&registry, &from, &image.layer_descriptor(), 0)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::NotFound, "{error}");
    assert_eq!(server.seen().len(), 1);
}
