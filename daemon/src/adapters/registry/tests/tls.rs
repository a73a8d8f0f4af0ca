//! TLS: own authorities, client certificates, realms and redirects that try to leave it, proxies.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use super::super::{ProxyOptions, Registry};
use super::fixture::{Image, basic, digest_text, options, read};
use super::server::{Server, connect_proxy, reply};
use crate::domain::failure::{Class, chain};
use crate::domain::image::manifest::Platform;
use crate::domain::image::reference::Reference;

/// An authority of the test, with one server and one client certificate.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    der: rustls::pki_types::CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        Self::named("authority")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn acceptor(&self, wants_client: bool) -> TlsAcceptor {
        let (certificate, key) = self.issue(&["127.0.0.1", "registry.test"]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants_client {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.der.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = builder
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A server with a certificate that vouches for itself and may sign others, as `openssl req -x509`
/// makes them.
fn home_made(names: &[&str], until_year: i32) -> (String, TlsAcceptor) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (certificate.pem(), TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn a_home_made_certificate_is_taken_where_exactly_it_is_listed() {
    let good = ["127.0.0.1", "registry.test"];
    for (names, until, listed, words) in [
        (&good[..], 4000, true, ""),
        (&good[..], 4000, false, "CaUsedAsEndEntity"),
        (&good[..], 2020, true, "expired"),
        (&["other.test"][..], 4000, true, "not valid for name"),
    ] {
        let (pem, acceptor) = home_made(names, until);
        let image = Image::new(10);
        let server = Server::start_with(Some(acceptor), move |seen, _| image.answer(seen)).await;
        let root = tempfile::tempdir().unwrap();
        let file = match listed {
            true => pem,
            // Another authority of the same name does not vouch for it.
            false => home_made(names, until).0,
        };
        std::fs::write(root.path().join("ca.pem"), file).unwrap();
        let url = format!("https://127.0.0.1:{}", server.port);
        let registry = configure(root.path(), &url, "ca = \"../ca.pem\"");
        let reference = Reference::parse("registry.test/a").unwrap();
        let found = registry.resolve(&reference, None).await;
        match words {
            "" => assert!(found.is_ok(), "{found:?}"),
            words => {
                let text = chain(&found.unwrap_err());
                assert!(text.contains(words), "{words}: {text}");
                assert!(server.seen().is_empty());
            }
        }
    }
}

/// Writes `hosts.toml` for `registry.test`.
fn configure(root: &Path, server: &str, more: &str) -> Registry {
    let directory = root.join("registry.test");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(
        directory.join("hosts.toml"),
        format!("server = \"{server}\"\n{more}"),
    )
    .unwrap();
    let mut options = options();
    options.hosts_dirs = vec![root.into()];
    Registry::new(options)
}

#[tokio::test]
async fn an_own_authority_of_hosts_toml_is_trusted() {
    let authority = Authority::new();
    let image = Image::new(400_000);
    let served = image.clone();
    let server = Server::start_with(Some(authority.acceptor(false)), move |seen, _| {
        served.answer(seen)
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("ca.pem"), &authority.pem).unwrap();
    let url = format!("https://127.0.0.1:{}", server.port);
    let reference = Reference::parse("registry.test/a").unwrap();

    let registry = configure(root.path(), &url, "ca = \"../ca.pem\"");
    let found = registry
        .image(&reference, None, &Platform::host())
        .await
        .unwrap();
    let bytes = read(&registry, &found.source, &image.layer_descriptor(), 0).await;
    assert_eq!(bytes.unwrap(), image.layer);

    let unverified = configure(root.path(), &url, "skip_verify = true");
    assert!(unverified.resolve(&reference, None).await.is_ok());

    let seen = server.seen().len();
    let strict = configure(root.path(), &url, "");
    let error = strict.resolve(&reference, None).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(chain(&error).contains("TLS"), "{}", chain(&error));
    assert_eq!(server.seen().len(), seen);

    for (more, words) in [
        ("ca = \"absent.pem\"", "absent.pem"),
        ("ca = \"hosts.toml\"", "no certificate"),
        ("client = \"../ca.pem\"", "ca.pem"),
    ] {
        let registry = configure(root.path(), &url, more);
        let error = registry.resolve(&reference, None).await.unwrap_err();
        assert_eq!(error.class(), Class::FailedPrecondition, "{more}");
        assert!(chain(&error).contains(words), "{}", chain(&error));
    }
}

#[tokio::test]
async fn a_changed_configuration_counts_for_the_next_pull() {
    let authority = Authority::new();
    let image = Image::new(10);
    let server = Server::start_with(Some(authority.acceptor(false)), move |seen, _| {
        image.answer(seen)
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let url = format!("https://127.0.0.1:{}", server.port);
    let reference = Reference::parse("registry.test/a").unwrap();
    std::fs::write(root.path().join("ca.pem"), Authority::new().pem).unwrap();
    let registry = configure(root.path(), &url, "ca = \"../ca.pem\"");
    assert!(registry.resolve(&reference, None).await.is_err());
    std::fs::write(root.path().join("ca.pem"), &authority.pem).unwrap();
    assert!(registry.resolve(&reference, None).await.is_ok());
}

#[tokio::test]
async fn client_certificates_are_shown_to_their_host_only() {
    let authority = Authority::new();
    let image = Image::new(1000);
    let served = image.clone();
    // The storage would take a client certificate and must not get one: it refuses without.
    let storage = Server::start_with(Some(authority.acceptor(true)), move |_, _| {
        reply(200, &[], b"x")
    })
    .await;
    let elsewhere = format!("https://127.0.0.1:{}/x", storage.port);
    let server = Server::start_with(Some(authority.acceptor(true)), move |seen, _| {
        match seen.path.contains(&digest_text(&served.layer)) {
            true => reply(307, &[("location", &elsewhere)], b""),
            false => served.answer(seen),
        }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.issue(&["client.test"]);
    for (name, text) in [
        ("ca.pem", &authority.pem),
        ("cert.pem", &certificate.pem()),
        ("key.pem", &key.serialize_pem()),
    ] {
        std::fs::write(root.path().join(name), text).unwrap();
    }
    let registry = configure(
        root.path(),
        &format!("https://127.0.0.1:{}", server.port),
        "ca = \"../ca.pem\"\nclient = [[\"../cert.pem\", \"../key.pem\"]]",
    );
    let reference = Reference::parse("registry.test/a").unwrap();
    let found = registry
        .image(&reference, None, &Platform::host())
        .await
        .unwrap();
    let layer = registry
        .blob(&found.source, &image.layer_descriptor(), 0)
        .await;
    assert!(layer.is_err());
    assert!(storage.seen().is_empty());
}

#[tokio::test]
async fn of_several_client_certificates_the_server_is_shown_its_authority_s() {
    let (ours, other) = (Authority::named("ours"), Authority::named("other"));
    let root = tempfile::tempdir().unwrap();
    for (name, authority) in [("ours", &ours), ("other", &other)] {
        let (certificate, key) = authority.issue(&["client.test"]);
        let both = certificate.pem() + &key.serialize_pem();
        std::fs::write(root.path().join(name), both).unwrap();
    }
    std::fs::write(root.path().join("ca.pem"), &ours.pem).unwrap();
    let image = Image::new(10);
    let server =
        Server::start_with(Some(ours.acceptor(true)), move |seen, _| image.answer(seen)).await;
    let reference = Reference::parse("registry.test/a").unwrap();
    for (clients, is_shown) in [
        (r#"["../ours", "../other"]"#, true),
        (r#"["../other", "../ours"]"#, true),
        (r#"["../other"]"#, false),
    ] {
        let url = format!("https://127.0.0.1:{}", server.port);
        let more = format!("ca = \"../ca.pem\"\nclient = {clients}");
        let registry = configure(root.path(), &url, &more);
        let found = registry.resolve(&reference, None).await;
        assert_eq!(found.is_ok(), is_shown, "{clients}: {found:?}");
    }
}

#[tokio::test]
async fn tls_is_not_left_by_redirect_or_realm() {
    let authority = Authority::new();
    let plain = Server::start(|_, _| reply(200, &[], br#"{"token":"tok-1"}"#)).await;
    let url = plain.url();
    let server = Server::start_with(Some(authority.acceptor(false)), move |seen, _| {
        match seen.path.contains("redirect") {
            true => reply(302, &[("location", &format!("{url}/?sig=1"))], b""),
            false => {
                let challenge = format!("Bearer realm=\"{url}/token\"");
                reply(401, &[("www-authenticate", &challenge)], b"")
            }
        }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("ca.pem"), &authority.pem).unwrap();
    let server_url = format!("https://127.0.0.1:{}", server.port);
    let registry = configure(root.path(), &server_url, "ca = \"../ca.pem\"");
    for (tag, words) in [("redirect", "redirect"), ("realm", "realm")] {
        let reference = Reference::parse(&format!("registry.test/a:{tag}")).unwrap();
        let error = registry
            .resolve(&reference, Some(&basic("me", "hunter2")))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains("is not https"), "{error}");
        assert!(!chain(&error).contains("sig="));
    }
    assert!(plain.seen().is_empty());
}

#[tokio::test]
async fn https_registries_are_reached_through_a_proxy() {
    let authority = Authority::new();
    let image = Image::new(10);
    let server = Server::start_with(Some(authority.acceptor(false)), move |seen, _| {
        image.answer(seen)
    })
    .await;
    let (port, heads, task) = connect_proxy(server.port).await;
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("ca.pem"), &authority.pem).unwrap();
    configure(root.path(), "https://registry.test", "ca = \"../ca.pem\"");
    let mut options = options();
    options.hosts_dirs = vec![root.path().into()];
    options.proxy = ProxyOptions {
        http: String::new(),
        https: format!("http://me:hunter2@127.0.0.1:{port}"),
        no_proxy: "direct.test".into(),
    };
    let registry = Registry::new(options);
    assert!(!format!("{registry:?}").contains("hunter2"));
    let reference = Reference::parse("registry.test/a").unwrap();
    let found = registry.resolve(&reference, None).await;
    assert!(found.is_ok(), "{found:?}");
    let head = heads.lock().unwrap()[0].clone();
    assert!(head.starts_with("CONNECT registry.test:443 "), "{head}");
    assert!(
        head.to_lowercase().contains("proxy-authorization: basic "),
        "{head}"
    );
    task.abort();
}

#[tokio::test]
async fn plain_registries_are_reached_through_a_proxy() {
    let image = Image::new(10);
    // A proxy for plain requests is asked for whole URLs.
    let proxy = Server::start(move |seen, _| {
        let mut inner = seen.clone();
        match seen.path.strip_prefix("http://registry.test:81") {
            Some(path) => inner.path = path.to_owned(),
            None => return reply(502, &[], b""),
        }
        image.answer(&inner)
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    configure(root.path(), "http://registry.test:81", "");
    let mut options = options();
    options.hosts_dirs = vec![root.path().into()];
    options.proxy = ProxyOptions {
        http: format!("http://me:hunter2@127.0.0.1:{}", proxy.port),
        ..ProxyOptions::default()
    };
    let registry = Registry::new(options);
    let reference = Reference::parse("registry.test/a").unwrap();
    let found = registry.resolve(&reference, None).await;
    assert!(found.is_ok(), "{found:?}");
    let seen = proxy.seen();
    assert_eq!(
        seen[0].header("proxy-authorization"),
        Some("Basic bWU6aHVudGVyMg==")
    );
    assert_eq!(seen[0].header("host"), Some("registry.test:81"));
}

#[tokio::test]
async fn a_proxy_may_be_reached_by_socks() {
    let image = Image::new(10);
    let server = Server::start(move |seen, _| image.answer(seen)).await;
    let (port, asked, task) = super::server::socks_proxy(server.port).await;
    let root = tempfile::tempdir().unwrap();
    configure(root.path(), "http://registry.test:81", "");
    let mut options = options();
    options.hosts_dirs = vec![root.path().into()];
    options.proxy = ProxyOptions {
        http: format!("socks5h://127.0.0.1:{port}"),
        ..ProxyOptions::default()
    };
    let reference = Reference::parse("registry.test/a").unwrap();
    let found = Registry::new(options).resolve(&reference, None).await;
    assert!(found.is_ok(), "{found:?}");
    assert_eq!(*asked.lock().unwrap(), ["registry.test:81"]);
    assert!(server.seen()[0].path.starts_with("/v2/"));
    task.abort();
}
