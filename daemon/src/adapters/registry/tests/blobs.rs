//! Blob streams from hostile servers.

use std::time::{Duration, Instant};

use super::fixture::{Image, ranged, read, registry, source};
use super::server::{Act, Server, head, reply};
use crate::domain::failure::Class;

const SIZE: usize = 300_000;

#[tokio::test]
async fn blobs_arrive_whole_and_from_an_offset() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let server = Server::start(move |seen, _| served.answer(seen)).await;
    let registry = registry();
    let source = source(&registry, &server).await;
    let layer = image.layer_descriptor();
    assert_eq!(
        read(&registry, &source, &layer, 0).await.unwrap(),
        image.layer
    );
    let tail = read(&registry, &source, &layer, 299_990).await.unwrap();
    assert_eq!(tail, image.layer[299_990..]);
    assert!(
        read(&registry, &source, &layer, SIZE as u64)
            .await
            .unwrap()
            .is_empty()
    );
    let error = read(&registry, &source, &layer, SIZE as u64 + 1)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::InvalidArgument);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn broken_transfers_continue_where_they_broke() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let server = Server::start(move |seen, before| {
        let start = seen.range_start().unwrap_or(0);
        let status = if start == 0 { 200 } else { 206 };
        let range = format!("bytes {start}-{}/{SIZE}", SIZE - 1);
        let left = &served.layer[start..];
        let mut bytes = head(status, &[("content-range", &range)], Some(left.len()));
        match before {
            0 => bytes.extend_from_slice(&left[..100_000]),
            1 => bytes.extend_from_slice(&left[..50_000]),
            _ => bytes.extend_from_slice(left),
        }
        vec![Act::Send(bytes)]
    })
    .await;
    let registry = registry();
    let source = source(&registry, &server).await;
    let bytes = read(&registry, &source, &image.layer_descriptor(), 0)
        .await
        .unwrap();
    assert_eq!(bytes, image.layer);
    let starts: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| seen.range_start())
        .collect();
    assert_eq!(starts, [None, Some(100_000), Some(150_000)]);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_its_start() {
    let image = Image::new(SIZE);
    let served = image.clone();
    let server = Server::start(move |_, before| match before {
        0 => {
            let mut bytes = head(200, &[], Some(SIZE));
            bytes.extend_from_slice(&served.layer[..123_457]);
            vec![Act::Send(bytes)]
        }
        _ => reply(200, &[], &served.layer),
    })
    .await;
    let registry = registry();
    let source = source(&registry, &server).await;
    let bytes = read(&registry, &source, &image.layer_descriptor(), 0)
        .await
        .unwrap();
    assert_eq!(bytes, image.layer);
}

#[tokio::test]
async fn lying_ranges_are_refused() {
    let lies = [
        "bytes 0-299999/300000",
        "bytes 100001-299999/300000",
        "bytes 100000-299998/300000",
        "bytes 100000-299999/400000",
        "nonsense",
        "",
    ];
    for lie in lies {
        let image = Image::new(SIZE);
        let served = image.clone();
        let server = Server::start(move |seen, _| match seen.range_start() {
            None => {
                let mut bytes = head(200, &[], Some(SIZE));
                bytes.extend_from_slice(&served.layer[..100_000]);
                vec![Act::Send(bytes)]
            }
            Some(start) => reply(206, &[("content-range", lie)], &served.layer[start..]),
        })
        .await;
        let registry = registry();
        let source = source(&registry, &server).await;
        let error = read(&registry, &source, &image.layer_descriptor(), 0)
            .await
            .expect_err(lie);
        assert_eq!(error.class(), Class::DataLoss, "{lie}: {error}");
        assert_eq!(server.seen().len(), 2, "a lie is not asked for again");
    }
}

#[tokio::test]
async fn sizes_other_than_the_descriptors_are_refused() {
    let image = Image::new(SIZE);
    for case in [
        "long",
        "short",
        "chunked long",
        "chunked short",
        "unasked range",
    ] {
        let layer = image.layer.clone();
        let server = Server::start(move |seen, _| {
            let chunked = [("transfer-encoding", "chunked")];
            let chunk = |bytes: &[u8]| {
                let size = format!("{:x}\r\n", bytes.len()).into_bytes();
                [size.as_slice(), bytes, b"\r\n"].concat()
            };
            match case {
                "long" => reply(200, &[], &[layer.as_slice(), b"x"].concat()),
                "short" => reply(200, &[], &layer[1..]),
                "chunked long" => {
                    let mut bytes = head(200, &chunked, None);
                    bytes.extend(chunk(&layer));
                    bytes.extend(chunk(b"more"));
                    bytes.extend(b"0\r\n\r\n");
                    vec![Act::Send(bytes)]
                }
                "chunked short" => match seen.range_start() {
                    None => {
                        let mut bytes = head(200, &chunked, None);
                        bytes.extend(chunk(&layer[..1000]));
                        bytes.extend(b"0\r\n\r\n");
                        vec![Act::Send(bytes)]
                    }
                    Some(_) => reply(416, &[], b""),
                },
                _ => reply(206, &[("content-range", "bytes 1-2/3")], b"xx"),
            }
        })
        .await;
        let registry = registry();
        let source = source(&registry, &server).await;
        let error = read(&registry, &source, &image.layer_descriptor(), 0)
            .await
            .expect_err(case);
        assert_eq!(error.class(), Class::DataLoss, "{case}: {error}");
    }
}

#[tokio::test]
async fn stalls_and_drips_end_within_their_bound() {
    let image = Image::new(SIZE);
    for (case, pause) in [("silent", 60_000), ("stall", 60_000), ("drip", 10)] {
        let server = Server::start(move |_, _| {
            let act = Act::Forever(b"x".to_vec(), Duration::from_millis(pause));
            match case {
                "silent" => vec![Act::Pause(Duration::from_millis(pause))],
                _ => vec![Act::Send(head(200, &[], Some(SIZE))), act],
            }
        })
        .await;
        let registry = registry();
        let source = source(&registry, &server).await;
        let started = Instant::now();
        let error = read(&registry, &source, &image.layer_descriptor(), 0)
            .await
            .expect_err(case);
        assert_eq!(error.class(), Class::DeadlineExceeded, "{case}: {error}");
        // The first try and two more, of 500 ms each.
        assert_eq!(server.seen().len(), 3, "{case}");
        assert!(started.elapsed() < Duration::from_secs(5), "{case}");
    }
}

#[tokio::test]
async fn a_slow_consumer_is_not_a_stalled_server() {
    let image = Image::new(3_000_000);
    let served = image.clone();
    let server = Server::start(move |seen, _| ranged(&served.layer, seen)).await;
    let registry = registry();
    let source = source(&registry, &server).await;
    let mut stream = registry
        .blob(&source, &image.layer_descriptor(), 0)
        .await
        .unwrap();
    let mut length = stream.next().await.unwrap().unwrap().len();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    while let Some(chunk) = stream.next().await.unwrap() {
        length += chunk.len();
    }
    assert_eq!(length, image.layer.len());
    assert_eq!(server.seen().len(), 1);
}
