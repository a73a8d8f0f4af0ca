//! Manifests and configs from hostile servers.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axil_snapshotter::Digest;

use super::super::{FetchImageError, Registry};
use super::fixture::{ELSEWHERE, Image, digest_text, options, reference, registry, source};
use super::server::{Act, Server, head, reply};
use crate::domain::failure::Class;
use crate::domain::image::manifest::{Descriptor, Platform};
use crate::domain::image::media::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::domain::image::reference::Reference;

#[tokio::test]
async fn an_image_is_resolved_through_its_index() {
    let image = Image::new(1000);
    let served = image.clone();
    let server = Server::start(move |seen, _| served.answer(seen)).await;
    // As a task of its own: everything is `Send`.
    let (registry_of_task, reference_of_task) = (registry(), reference(&server));
    let task = tokio::spawn(async move {
        let platform = Platform::host();
        let pull = registry_of_task.image(&reference_of_task, None, &platform);
        pull.await
    });
    let found = task.await.unwrap().unwrap();
    assert_eq!(found.digest, Digest::sha256_of(&image.index));
    assert_eq!(found.manifest_digest, Digest::sha256_of(&image.manifest));
    assert_eq!(
        found.manifest.config.digest,
        Digest::sha256_of(&image.config)
    );
    assert_eq!(found.config.user, "1000");
    assert_eq!(found.config.dropped_labels, 1);
    assert_eq!(found.documents.len(), 3);
    assert_eq!(found.mirror, server.host());
    let seen = server.seen();
    assert!(seen[0].header("accept").unwrap().contains(OCI_INDEX));
    assert!(seen[0].header("user-agent").unwrap().starts_with("axil/"));
    assert_eq!(seen[0].header("authorization"), None);
    assert!(seen.iter().all(|request| !request.path.contains("ns=")));
    assert_eq!(
        server.connections.load(Ordering::SeqCst),
        1,
        "connections are kept"
    );

    let other = Platform::new("linux", "s390x", None);
    let error = registry()
        .image(&reference(&server), None, &other)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    assert!(error.to_string().contains("linux/s390x"), "{error}");
    assert!(error.to_string().contains(ELSEWHERE), "{error}");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let image = Image::new(10);
    let server = Server::start(move |seen, _| image.answer(seen)).await;
    let missing = Reference::parse(&format!("{}/team/app:gone", server.host())).unwrap();
    let error = registry().resolve(&missing, None).await.unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    let text = error.to_string();
    assert!(
        text.contains(&missing.to_string()) && text.contains("manifest unknown"),
        "{text}"
    );
    assert_eq!(server.seen().len(), 1, "not found is not tried again");
}

#[tokio::test]
async fn digests_of_documents_are_verified() {
    let image = Image::new(10);
    let server = Server::start(move |seen, _| {
        let stated = digest_text(b"something else");
        if seen.path.contains("stated") {
            let headers = [
                ("content-type", OCI_MANIFEST),
                ("docker-content-digest", &*stated),
            ];
            return reply(200, &headers, &image.manifest);
        }
        reply(200, &[("content-type", OCI_MANIFEST)], &image.manifest)
    })
    .await;
    let registry = registry();
    let host = server.host();
    let wrong = Digest::sha256_of(b"wrong");
    for text in [format!("{host}/a:stated"), format!("{host}/a:t@{wrong}")] {
        let reference = Reference::parse(&text).unwrap();
        let error = registry.resolve(&reference, None).await.unwrap_err();
        assert_eq!(error.class(), Class::DataLoss, "{error}");
    }
    let by_digest = server.seen_at("/v2/a/manifests/sha256:");
    assert_eq!(
        by_digest.len(),
        1,
        "the digest goes before the tag, and once"
    );
    let source = source(&registry, &server).await;
    let mut descriptor = Descriptor {
        media_type: OCI_MANIFEST.into(),
        digest: wrong,
        size: 5,
    };
    let error = registry.document(&source, &descriptor).await.unwrap_err();
    assert_eq!(error.class(), Class::DataLoss, "{error}");
    assert!(
        error.to_string().contains("the descriptor says 5"),
        "{error}"
    );
    descriptor.size = 1 << 40;
    let error = registry.document(&source, &descriptor).await.unwrap_err();
    assert_eq!(error.class(), Class::DataLoss, "{error}");
}

#[tokio::test]
async fn cve_2020_1702_documents_without_end_are_cut() {
    let server = Server::start(|seen, _| {
        let zeros = Act::Forever(vec![b' '; 64 << 10], Duration::ZERO);
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 64 << 10], b"\r\n"].concat();
        let (head, body) = match seen.path.rsplit('/').next().unwrap() {
            "gigabyte" => (head(200, &[], Some(1 << 30)), zeros),
            "endless" => (head(200, &[], None), zeros),
            "chunked" => (
                head(200, &[("transfer-encoding", "chunked")], None),
                Act::Forever(chunk, Duration::ZERO),
            ),
            "headers" => (
                b"HTTP/1.1 200 X\r\n".to_vec(),
                Act::Forever(b"x-more: yes\r\n".repeat(100), Duration::ZERO),
            ),
            "drip" => (
                head(200, &[], Some(1000)),
                Act::Forever(b" ".to_vec(), Duration::from_millis(20)),
            ),
            _ => (Vec::new(), Act::Pause(Duration::from_secs(60))),
        };
        vec![Act::Send(head), body]
    })
    .await;
    let mut options = options();
    options.document_timeout = Duration::from_millis(700);
    options.max_retries = 0;
    let registry = Registry::new(options);
    for (tag, class) in [
        ("gigabyte", Class::Exhausted),
        ("endless", Class::Exhausted),
        ("chunked", Class::Exhausted),
        ("headers", Class::Unavailable),
        ("drip", Class::DeadlineExceeded),
        ("silent", Class::DeadlineExceeded),
    ] {
        let reference = Reference::parse(&format!("{}/a:{tag}", server.host())).unwrap();
        let started = Instant::now();
        let error = registry.resolve(&reference, None).await.unwrap_err();
        assert_eq!(error.class(), class, "{tag}: {error}");
        assert!(started.elapsed() < Duration::from_secs(5), "{tag}");
    }
}

#[tokio::test]
async fn busy_servers_are_asked_again_a_few_times() {
    let image = Image::new(10);
    let server = Server::start(move |seen, before| {
        let limited = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        match (seen.path.rsplit('/').next().unwrap(), before) {
            ("burst", 0) => reply(503, &[], b""),
            ("burst", 1) => vec![],
            ("asked", 0) => reply(429, &[("retry-after", "1")], b""),
            ("always", _) => reply(500, &[], b"<html>"),
            ("later", _) => reply(429, &[("retry-after", "86400")], limited),
            _ => reply(200, &[("content-type", OCI_MANIFEST)], &image.manifest),
        }
    })
    .await;
    let registry = registry();
    let resolve = async |tag: &str| {
        let reference = Reference::parse(&format!("{}/a:{tag}", server.host())).unwrap();
        registry.resolve(&reference, None).await
    };
    assert!(resolve("burst").await.is_ok());
    let started = Instant::now();
    assert!(resolve("asked").await.is_ok());
    assert!(started.elapsed() >= Duration::from_secs(1));
    let error = resolve("always").await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    assert_eq!(server.seen_at("/v2/a/manifests/always").len(), 3);
    let started = Instant::now();
    let error = resolve("later").await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(
        error.to_string().contains("429: TOOMANYREQUESTS slow down"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(1));
    // A server error on manifests is never answered with a blob.
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| !seen.path.contains("/blobs/"))
    );
}

#[tokio::test]
async fn content_types_that_contradict_are_refused() {
    let image = Image::new(10);
    let manifest = image.manifest.clone();
    let server = Server::start(move |seen, _| {
        let tag = seen.path.rsplit('/').next().unwrap();
        let headers = match tag {
            "generic" => vec![("content-type", "application/json; charset=utf-8")],
            "none" => vec![],
            "gzip" => vec![("content-type", OCI_MANIFEST), ("content-encoding", "gzip")],
            _ => vec![("content-type", DOCKER_MANIFEST)],
        };
        reply(200, &headers, &manifest)
    })
    .await;
    let registry = registry();
    let image_of = async |tag: &str| {
        let reference = Reference::parse(&format!("{}/a:{tag}", server.host())).unwrap();
        registry.image(&reference, None, &Platform::host()).await
    };
    let error = image_of("docker").await.unwrap_err();
    assert!(matches!(error, FetchImageError::Manifest { .. }), "{error}");
    assert!(
        error.to_string().contains("differs from the content type"),
        "{error}"
    );
    for tag in ["generic", "none"] {
        let reference = Reference::parse(&format!("{}/a:{tag}", server.host())).unwrap();
        let resolved = registry.resolve(&reference, None).await.unwrap();
        assert_eq!(resolved.media_type, OCI_MANIFEST);
        // The manifest is taken; its config is what this server does not have.
        let error = image_of(tag).await.unwrap_err();
        assert!(matches!(error, FetchImageError::Registry(_)), "{error}");
    }
    let error = image_of("gzip").await.unwrap_err();
    assert_eq!(error.class(), Class::Unsupported, "{error}");
    let source = source(&registry, &server).await;
    let descriptor = Descriptor {
        media_type: OCI_MANIFEST.into(),
        digest: Digest::sha256_of(&image.manifest),
        size: image.manifest.len() as u64,
    };
    let error = registry.document(&source, &descriptor).await.unwrap_err();
    assert!(error.to_string().contains("the descriptor says"), "{error}");
}

#[tokio::test]
async fn cve_2021_41190_cycles_and_floods_of_indexes_end() {
    // An index cannot hold its own digest, so that a cycle shows as a wrong digest.
    let server = Server::start(|_, _| {
        let entry = serde_json::json!({
            "mediaType": OCI_INDEX, "digest": digest_text(b"itself"), "size": 300,
        });
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": vec![entry; 100],
        });
        reply(
            200,
            &[("content-type", OCI_INDEX)],
            index.to_string().as_bytes(),
        )
    })
    .await;
    let error = registry()
        .image(&reference(&server), None, &Platform::host())
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::DataLoss, "{error}");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn unreachable_registries_are_unavailable() {
    // Bound and not listening: refused, and nobody else's.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let registry = registry();
    let reference = Reference::parse(&format!("127.0.0.1:{port}/a")).unwrap();
    let error = registry.resolve(&reference, None).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    assert!(
        error.to_string().contains(&format!("127.0.0.1:{port}")),
        "{error}"
    );
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_told_the_namespace() {
    let image = Image::new(5000);
    let (good, fallback) = (image.clone(), image.clone());
    let broken = Server::start(|_, _| reply(500, &[], b"")).await;
    let wrong = Server::start(|_, _| reply(200, &[("content-type", OCI_INDEX)], b"{}")).await;
    let mirror = Server::start(move |seen, _| match seen.path.contains("/blobs/") {
        // The mirror knows manifests only.
        true => reply(404, &[], b""),
        false => good.answer(seen),
    })
    .await;
    let upstream = Server::start(move |seen, _| fallback.answer(seen)).await;
    let directory = tempfile::tempdir().unwrap();
    let host = directory.path().join("registry.test");
    std::fs::create_dir(&host).unwrap();
    let text = format!(
        "server = \"{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"{}\"]\n[host.\"{}\"]\n[host.\"{}/p\"]\n",
        upstream.url(),
        broken.url(),
        wrong.url(),
        mirror.url(),
    );
    std::fs::write(host.join("hosts.toml"), text).unwrap();
    let mut options = options();
    options.hosts_dirs = vec![directory.path().into()];
    let registry = Registry::new(options);
    let reference = Reference::parse(&format!(
        "registry.test/team/app@{}",
        digest_text(&image.index)
    ))
    .unwrap();
    let credentials = super::fixture::basic("me", "hunter2");
    let found = registry
        .image(&reference, Some(&credentials), &Platform::host())
        .await
        .unwrap();
    assert_eq!(found.mirror, mirror.host());
    assert!(!broken.seen().is_empty() && !wrong.seen().is_empty());
    let seen = mirror.seen();
    assert!(
        seen[0].path.starts_with("/p/v2/team/app/manifests/sha256:"),
        "{}",
        seen[0].path
    );
    assert!(
        seen.iter()
            .all(|seen| seen.path.ends_with("?ns=registry.test"))
    );
    // The config came from upstream, after the mirror had none.
    assert_eq!(upstream.seen().len(), 1);
    let layer = super::fixture::read(&registry, &found.source, &image.layer_descriptor(), 0).await;
    assert_eq!(layer.unwrap(), image.layer);
    // A consumer that found another digest can leave the mirrors out.
    let asked = mirror.seen().len();
    let direct = found.source.upstream_only();
    let layer = super::fixture::read(&registry, &direct, &image.layer_descriptor(), 0).await;
    assert_eq!(layer.unwrap(), image.layer);
    assert_eq!(mirror.seen().len(), asked);
}

#[tokio::test]
async fn a_mirror_that_may_not_resolve_serves_the_content() {
    let image = Image::new(5000);
    let (mirrored, resolved) = (image.clone(), image.clone());
    let mirror = Server::start(move |seen, _| mirrored.answer(seen)).await;
    let upstream = Server::start(move |seen, _| match seen.path.contains("/latest") {
        true => resolved.answer(seen),
        false => reply(500, &[], b""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let host = directory.path().join("registry.test");
    std::fs::create_dir(&host).unwrap();
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n",
        upstream.url(),
        mirror.url(),
    );
    std::fs::write(host.join("hosts.toml"), text).unwrap();
    let mut options = options();
    options.hosts_dirs = vec![directory.path().into()];
    let registry = Registry::new(options);
    let reference = Reference::parse("registry.test/team/app").unwrap();
    let found = registry
        .image(&reference, None, &Platform::host())
        .await
        .unwrap();
    assert_eq!(found.mirror, upstream.host());
    let layer = super::fixture::read(&registry, &found.source, &image.layer_descriptor(), 0).await;
    assert_eq!(layer.unwrap(), image.layer);
    assert_eq!(upstream.seen().len(), 1);
    assert_eq!(mirror.seen().len(), 3);
    // Nobody asked for what refers to the image.
    let all = [upstream.seen(), mirror.seen()].concat();
    assert!(all.iter().all(|seen| !seen.path.contains("/referrers/")));
}
