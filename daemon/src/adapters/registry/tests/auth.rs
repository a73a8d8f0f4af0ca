//! Where credentials and tokens go, and where they never go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::{Credentials, Registry, RegistryError};
use super::fixture::{Image, basic, digest_text, options, read, reference, registry};
use super::server::{Act, Reply, Seen, Server, head, reply};
use crate::domain::failure::{Class, chain};
use crate::domain::image::manifest::Platform;
use crate::domain::image::media::OCI_MANIFEST;
use crate::domain::image::reference::Reference;
use crate::ports::images::PullAuth;

/// base64 of `me:hunter2`.
const BASIC: &str = "Basic bWU6aHVudGVyMg==";

fn unauthorized(challenge: &str) -> Reply {
    let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    reply(401, &[("www-authenticate", challenge)], body)
}

fn assert_silent(error: &RegistryError) {
    let text = format!("{} {error:?}", chain(error));
    for secret in ["hunter2", "aHVudGVyMg", "tok-", "sig="] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn basic_credentials_answer_a_challenge_only() {
    let image = Image::new(100);
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        Some(BASIC) => image.answer(seen),
        _ => unauthorized("Basic realm=\"x\""),
    })
    .await;
    let registry = registry();
    let image_as = async |credentials: Option<&Credentials>| {
        let reference = reference(&server);
        registry
            .image(&reference, credentials, &Platform::host())
            .await
    };
    image_as(Some(&basic("me", "hunter2"))).await.unwrap();
    assert_eq!(server.seen()[0].header("authorization"), None);
    assert_eq!(server.seen().len(), 4, "one challenge for three documents");
    for credentials in [None, Some(basic("me", "wrong-one"))] {
        let error = image_as(credentials.as_ref()).await.unwrap_err();
        assert_eq!(error.class(), Class::PermissionDenied, "{error}");
        assert!(error.to_string().contains("unauthorized"), "{error}");
    }
}

#[tokio::test]
async fn credentials_for_another_registry_are_not_sent() {
    let server = Server::start(|_, _| unauthorized("Basic realm=\"x\"")).await;
    let auth = PullAuth {
        username: "me".into(),
        password: "hunter2".into(),
        server_address: "https://elsewhere.x/".into(),
        ..PullAuth::default()
    };
    let credentials = Credentials::from_pull_auth(&auth).unwrap();
    let error = registry()
        .resolve(&reference(&server), credentials.as_ref())
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::PermissionDenied);
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
}

/// A registry that wants tokens of a counter's current number, and their server.
async fn token_pair(image: Image, generation: Arc<AtomicUsize>) -> (Server, Server) {
    let current = Arc::clone(&generation);
    let tokens = Server::start(move |_, _| {
        let number = current.load(Ordering::SeqCst);
        let body = format!(r#"{{"token":"tok-{number}","expires_in":300}}"#);
        reply(200, &[], body.as_bytes())
    })
    .await;
    let realm = format!("{}/token?x=1", tokens.url());
    let registry = Server::start(move |seen, before| {
        let number = generation.load(Ordering::SeqCst);
        if seen.header("authorization") != Some(&format!("Bearer tok-{number}")) {
            return unauthorized(&format!(
                "Bearer realm=\"{realm}\",service=\"reg x\",scope=\"repository:other:pull,push\""
            ));
        }
        // The layer breaks in the middle, and the token with it.
        if seen.path.contains(&digest_text(&image.layer)) && before == 0 {
            generation.fetch_add(1, Ordering::SeqCst);
            let mut bytes = head(200, &[], Some(image.layer.len()));
            bytes.extend_from_slice(&image.layer[..70_000]);
            return vec![Act::Send(bytes)];
        }
        image.answer(seen)
    })
    .await;
    (registry, tokens)
}

#[tokio::test]
async fn tokens_are_fetched_kept_and_renewed_in_the_middle_of_a_layer() {
    let image = Image::new(200_000);
    let generation = Arc::new(AtomicUsize::new(0));
    let (server, tokens) = token_pair(image.clone(), generation).await;
    let registry = registry();
    let found = registry
        .image(&reference(&server), None, &Platform::host())
        .await
        .unwrap();
    assert_eq!(tokens.seen().len(), 1);
    let seen = &tokens.seen()[0];
    assert_eq!(
        seen.path,
        "/token?x=1&service=reg%20x&scope=repository%3Ateam%2Fapp%3Apull"
    );
    assert_eq!(seen.header("authorization"), None);
    let layer = read(&registry, &found.source, &image.layer_descriptor(), 0).await;
    assert_eq!(layer.unwrap(), image.layer);
    assert_eq!(tokens.seen().len(), 2);
    // Tokens belong to whoever asked for them: another user's pull asks anew, with its password.
    let credentials = basic("me", "hunter2");
    registry
        .resolve(&reference(&server), Some(&credentials))
        .await
        .unwrap();
    assert_eq!(tokens.seen().len(), 3);
    assert_eq!(tokens.seen()[2].header("authorization"), Some(BASIC));
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.header("authorization") != Some(BASIC))
    );
}

#[tokio::test]
async fn identity_tokens_are_posted() {
    let image = Image::new(10);
    let tokens = Server::start(|seen, _| {
        let expected = "grant_type=refresh_token&service=s&client_id=axil\
                        &scope=repository%3Ateam%2Fapp%3Apull&refresh_token=re%26fresh";
        match seen.method == "POST" && seen.body == expected {
            true => reply(200, &[], br#"{"access_token":"tok-1"}"#),
            false => reply(401, &[], b""),
        }
    })
    .await;
    let realm = tokens.url();
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer tok-1") => image.answer(seen),
        _ => unauthorized(&format!("Bearer realm=\"{realm}/t\",service=s")),
    })
    .await;
    let auth = PullAuth {
        identity_token: "re&fresh".into(),
        ..PullAuth::default()
    };
    let credentials = Credentials::from_pull_auth(&auth).unwrap();
    let found = registry()
        .resolve(&reference(&server), credentials.as_ref())
        .await;
    assert!(found.is_ok(), "{found:?}");
}

#[tokio::test]
async fn identity_tokens_are_the_password_of_nobody_where_tokens_are_only_got() {
    for refusal in [401, 404, 405, 501] {
        let image = Image::new(10);
        // base64 of `:re&fresh`.
        let basic = "Basic OnJlJmZyZXNo";
        let tokens = Server::start(move |seen, _| {
            let is_got = seen.method == "GET" && seen.header("authorization") == Some(basic);
            match is_got {
                true => reply(200, &[], br#"{"token":"tok-1"}"#),
                false => reply(refusal, &[], b""),
            }
        })
        .await;
        let realm = tokens.url();
        let server = Server::start(move |seen, _| match seen.header("authorization") {
            Some("Bearer tok-1") => image.answer(seen),
            _ => unauthorized(&format!("Bearer realm=\"{realm}/t\",service=s")),
        })
        .await;
        let auth = PullAuth {
            identity_token: "re&fresh".into(),
            ..PullAuth::default()
        };
        let credentials = Credentials::from_pull_auth(&auth).unwrap();
        let found = registry()
            .resolve(&reference(&server), credentials.as_ref())
            .await;
        assert!(found.is_ok(), "{refusal}: {found:?}");
        let methods: Vec<_> = tokens
            .seen()
            .iter()
            .map(|seen| seen.method.clone())
            .collect();
        assert_eq!(methods, ["POST", "GET"]);
        let path = tokens.seen()[1].path.clone();
        assert_eq!(path, "/t?service=s&scope=repository%3Ateam%2Fapp%3Apull");
    }
}

#[tokio::test]
async fn registry_tokens_are_sent_at_once() {
    let image = Image::new(10);
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer tok-r") => image.answer(seen),
        _ => unauthorized("Bearer realm=\"http://127.0.0.1:1/\""),
    })
    .await;
    for (token, works) in [("tok-r", true), ("tok-x", false)] {
        let auth = PullAuth {
            registry_token: token.into(),
            ..PullAuth::default()
        };
        let credentials = Credentials::from_pull_auth(&auth).unwrap();
        let found = registry()
            .resolve(&reference(&server), credentials.as_ref())
            .await;
        assert_eq!(found.is_ok(), works, "{found:?}");
        if let Err(error) = found {
            assert_eq!(error.class(), Class::PermissionDenied);
            assert_silent(&error);
        }
    }
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn refusals_do_not_loop() {
    let realm = Server::start(|_, _| reply(200, &[], br#"{"token":"tok-1"}"#)).await;
    let url = realm.url();
    let server = Server::start(move |seen, _| match seen.path.rsplit('/').next().unwrap() {
        "bearer" => unauthorized(&format!("Bearer realm=\"{url}/\"")),
        "basic" => unauthorized("Basic"),
        "unknown" => unauthorized("Negotiate"),
        "silent" => reply(401, &[], b""),
        _ => reply(403, &[], b""),
    })
    .await;
    let registry = registry();
    for (tag, requests) in [
        ("bearer", 2),
        ("basic", 2),
        ("unknown", 1),
        ("silent", 1),
        ("403", 1),
    ] {
        let reference = Reference::parse(&format!("{}/{tag}/a:{tag}", server.host())).unwrap();
        let error = registry
            .resolve(&reference, Some(&basic("me", "hunter2")))
            .await
            .unwrap_err();
        assert_eq!(error.class(), Class::PermissionDenied, "{tag}: {error}");
        assert_silent(&error);
        assert_eq!(
            server.seen_at(&format!("/v2/{tag}/")).len(),
            requests,
            "{tag}"
        );
    }
}

#[tokio::test]
async fn token_servers_are_hostile_too() {
    let tokens = Server::start(|seen, _| match seen.path.split('?').next().unwrap() {
        "/large" => vec![
            Act::Send(head(200, &[], None)),
            Act::Forever(vec![b' '; 65536], std::time::Duration::ZERO),
        ],
        "/json" => reply(200, &[], br#"{"token": "tok-x", "#),
        "/header" => reply(200, &[], br#"{"token":"a\r\nX: y"}"#),
        "/empty" => reply(200, &[], b"{}"),
        "/loop" => reply(302, &[("location", "/loop")], b""),
        "/denied" => {
            let body = br#"{"errors":[{"code":"DENIED","message":"no hunter2 bWU6aHVudGVyMg== at http://u:p@h/?sig=1"}]}"#;
            reply(403, &[], body)
        }
        _ => reply(500, &[], b""),
    })
    .await;
    let url = tokens.url();
    let server = Server::start(move |seen: &Seen, _| {
        let tag = seen.path.rsplit('/').next().unwrap();
        unauthorized(&format!("Bearer realm=\"{url}/{tag}\""))
    })
    .await;
    let registry = registry();
    for (tag, class) in [
        ("large", Class::Exhausted),
        ("json", Class::Unavailable),
        ("header", Class::Unavailable),
        ("empty", Class::Unavailable),
        ("loop", Class::Unavailable),
        ("denied", Class::PermissionDenied),
        ("broken", Class::Unavailable),
    ] {
        let reference = Reference::parse(&format!("{}/a:{tag}", server.host())).unwrap();
        let error = registry
            .resolve(&reference, Some(&basic("me", "hunter2")))
            .await
            .unwrap_err();
        assert_eq!(error.class(), class, "{tag}: {error}");
        assert_silent(&error);
    }
}

#[tokio::test]
async fn cve_2020_15157_redirects_lose_the_authorization() {
    let image = Image::new(50_000);
    let layer = image.layer.clone();
    let storage = Server::start(move |seen, _| super::fixture::ranged(&layer, seen)).await;
    let elsewhere = format!("{}/store?sig=secret", storage.url());
    let served = image.clone();
    let server = Server::start(move |seen, _| {
        if seen.header("authorization") != Some(BASIC) {
            return unauthorized("Basic");
        }
        if seen.path.contains(&digest_text(&served.layer)) {
            return reply(307, &[("location", &elsewhere), ("set-cookie", "a=b")], b"");
        }
        // Redirects within the registry keep it.
        if seen.path.starts_with("/v2/") {
            let location = seen.path.replacen("/v2/", "/inner/", 1);
            return reply(302, &[("location", &location)], b"");
        }
        served.answer(seen)
    })
    .await;
    let registry = registry();
    let credentials = basic("me", "hunter2");
    let found = registry
        .image(&reference(&server), Some(&credentials), &Platform::host())
        .await
        .unwrap();
    let bytes = read(&registry, &found.source, &image.layer_descriptor(), 10).await;
    assert_eq!(bytes.unwrap(), image.layer[10..]);
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].path, "/store?sig=secret");
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[0].header("cookie"), None);
    assert_eq!(seen[0].range_start(), Some(10));
}

#[tokio::test]
async fn a_challenge_of_a_redirect_target_is_not_answered() {
    let evil = Server::start(|_, _| unauthorized("Basic realm=\"give me\"")).await;
    let to_evil = format!("{}/x?sig=1", evil.url());
    let server = Server::start(move |_, _| reply(302, &[("location", &to_evil)], b"")).await;
    let error = registry()
        .resolve(&reference(&server), Some(&basic("me", "hunter2")))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::PermissionDenied, "{error}");
    assert_silent(&error);
    assert_eq!(evil.seen().len(), 1);
    assert_eq!(evil.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_way_back_does_not_bring_the_authorization_back() {
    let image = Image::new(10);
    let there = Server::start(|seen, _| {
        let back = seen.path.split_once("back=").unwrap().1.to_owned();
        reply(302, &[("location", &back)], b"")
    })
    .await;
    let url = there.url();
    let server = Server::start(move |seen, _| {
        if seen.path == "/home" {
            return reply(200, &[("content-type", OCI_MANIFEST)], &image.manifest);
        }
        if seen.header("authorization").is_none() {
            return unauthorized("Basic");
        }
        let home = format!("http://{}/home", seen.header("host").unwrap());
        reply(302, &[("location", &format!("{url}/?back={home}"))], b"")
    })
    .await;
    let credentials = basic("me", "hunter2");
    let found = registry()
        .resolve(&reference(&server), Some(&credentials))
        .await;
    assert!(found.is_ok(), "{found:?}");
    assert_eq!(server.seen_at("/home")[0].header("authorization"), None);
}

#[tokio::test]
async fn mirrors_never_see_credentials_or_headers_of_others() {
    let image = Image::new(10);
    let mirror = Server::start(|_, _| unauthorized("Basic realm=\"mirror\"")).await;
    let upstream = Server::start(move |seen, _| match seen.header("authorization") {
        Some(BASIC) => image.answer(seen),
        _ => unauthorized("Basic"),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("_default")).unwrap();
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\n[host.\"{}\".header]\nx-mirror = \"key\"\n",
        upstream.url(),
        mirror.url(),
        mirror.url(),
    );
    std::fs::write(directory.path().join("_default/hosts.toml"), text).unwrap();
    let mut options = options();
    options.hosts_dirs = vec![directory.path().into()];
    let registry = Registry::new(options);
    let reference = Reference::parse("registry.test/a").unwrap();
    let resolved = registry
        .resolve(&reference, Some(&basic("me", "hunter2")))
        .await
        .unwrap();
    assert_eq!(resolved.mirror, upstream.host());
    assert!(!mirror.seen().is_empty());
    for seen in mirror.seen() {
        assert_eq!(seen.header("authorization"), None);
        assert_eq!(seen.header("x-mirror"), Some("key"));
    }
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| seen.header("x-mirror").is_none())
    );
}
