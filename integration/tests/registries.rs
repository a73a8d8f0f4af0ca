//! Registries that break and registries that mean harm: pulls are right in the end, or refused with a reason, and
//! leave nothing but what the next pull goes on with.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axil_integration::cutter::Cutter;
use axil_integration::guard::Need;
use axil_integration::hostile::{Hostile, challenge, drip, endless, lie, many_headers, redirect};
use axil_integration::http::{Reply, Request};
use axil_integration::images::{CONFIG, Compression, Entry, Image, Layer, MANIFEST, digest};
use axil_integration::lab::Lab;
use axil_integration::node::{Node, NodeOptions};
use axil_integration::registry::{Access, PASSWORD, Registry, RegistryOptions, USER};
use axil_proto::cri::AuthConfig;
use serde_json::json;
use tonic::Code;

/// How many pulls go through the wire that breaks; 10 where it is not set.
const PULLS: &str = "AXIL_TEST_PULLS";
/// Resident memory the daemon may ever have had after everything a registry did, in KiB.
const MAX_RESIDENT_KIB: u64 = 128 << 10;

const REAL: &[Need] = &[
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("openssl"),
    Need::Program("htpasswd"),
];

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes()[..4]);
    }
    bytes.truncate(length);
    bytes
}

fn file_layer(compression: Compression, name: &str, bytes: Vec<u8>) -> Layer {
    Layer::new(compression).entry(name, 0o644, 0, Entry::Text(bytes))
}

fn find(dir: &Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            match path.is_dir() && !path.is_symlink() {
                true => find(&path, name),
                false => Vec::from_iter(path.ends_with(name).then_some(path)),
            }
        })
        .collect()
}

/// A hosts.toml of a registry and a mirror that gives content alone, both with TLS and behind a wire.
fn mirrored(registry: (&Registry, &Cutter), mirror: (&Registry, &Cutter)) -> String {
    format!(
        "server = \"https://{}\"\nca = \"{}\"\n\n[host.\"https://{}\"]\ncapabilities = [\"pull\"]\nca = \"{}\"\n",
        registry.1.address(),
        registry.0.authority().display(),
        mirror.1.address(),
        mirror.0.authority().display(),
    )
}

fn account() -> AuthConfig {
    AuthConfig {
        username: USER.to_owned(),
        password: PASSWORD.to_owned(),
        ..AuthConfig::default()
    }
}

#[test]
fn privileged_registries_that_cut_every_connection_are_pulled_from_whole() {
    let Some(lab) = Lab::open_needing(REAL) else {
        return;
    };
    let pulls: u64 = match std::env::var(PULLS) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 10,
    };
    // Tags are resolved at a registry with TLS and an account; its content comes from a mirror with TLS. Both are
    // behind wires that break: most connections carry some hundred KiB, some not even a handshake.
    let tls = |access| RegistryOptions { access, tls: true };
    let registry = lab.registry(tls(Access::Basic));
    let mirror = lab.registry(tls(Access::Anonymous));
    let contents: Vec<_> = (0..3).map(|seed| noise(seed, 6_000_000)).collect();
    let layers = [
        file_layer(Compression::Gzip, "zero", contents[0].clone()),
        file_layer(Compression::Zstd, "one", contents[1].clone()),
        file_layer(Compression::Plain, "two", contents[2].clone()),
    ];
    let image = Image::build(&json!({}), &layers).unwrap();
    registry.push(&image, "team/app", "1").unwrap();
    mirror.push(&image, "team/app", "1").unwrap();
    let cuts = 1..600_000;
    let to_registry = Cutter::start(registry.address(), cuts.clone(), 1).unwrap();
    let to_mirror = Cutter::start(mirror.address(), cuts, 2).unwrap();
    let hosts = mirrored((&registry, &to_registry), (&mirror, &to_mirror));
    lab.hosts().put("registry.test", &hosts).unwrap();
    let node = lab.node_with(NodeOptions {
        images: vec![
            "retry_backoff = \"10ms\"".to_owned(),
            // Layers of 6 MB are large here: they come in parts.
            "range_threshold = \"2MiB\"".to_owned(),
            "range_size = \"1MiB\"".to_owned(),
        ],
        ..NodeOptions::default()
    });
    let mut retries = 0;
    for _ in 0..pulls {
        let reference = "registry.test/team/app:1";
        let mut tries = 0;
        // As the kubelet does: a pull that failed comes again.
        while let Err(status) = node.pull_with(reference, Some(account())) {
            tries += 1;
            assert!(tries < 5, "{status}");
        }
        retries += tries;
        let known = node.image_status(reference).unwrap().unwrap();
        assert_eq!(known.id, image.config);
        for (name, content) in ["zero", "one", "two"].iter().zip(&contents) {
            let found = find(&node.root().join("snapshots"), name);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(std::fs::read(&found[0]).unwrap() == *content, "{name}");
        }
        node.remove_image(reference).unwrap();
    }
    let carried = to_registry.carried() + to_mirror.carried();
    let connections = to_registry.connections() + to_mirror.connections();
    let whole = pulls * image.size();
    println!(
        "{pulls} pulls of {} bytes: {carried} bytes carried ({:.3} of the image), {connections} connections, \
         {retries} pulls asked again",
        image.size(),
        f64::from(u32::try_from(carried * 1000 / whole).unwrap()) / 1000.0,
    );
    assert!(
        to_mirror.carried() > to_registry.carried(),
        "the mirror serves the content"
    );
    assert!(
        connections > pulls * 20,
        "{connections} connections are too few to be cut"
    );
    assert!(carried * 10 <= whole * 12, "{carried} bytes for {whole}");
    lab.close(node);
}

#[test]
fn privileged_tokens_tls_and_a_mirror_go_together() {
    let Some(lab) = Lab::open_needing(REAL) else {
        return;
    };
    let registry = lab.registry(RegistryOptions {
        access: Access::Token,
        tls: true,
    });
    let mirror = lab.registry(RegistryOptions {
        access: Access::Anonymous,
        tls: true,
    });
    let layer = file_layer(Compression::Gzip, "data", noise(9, 400_000));
    let image = Image::build(&json!({}), &[layer]).unwrap();
    registry.push(&image, "team/app", "1").unwrap();
    mirror.push(&image, "team/app", "1").unwrap();
    // Wires that never break, to count what goes where.
    let whole = 1 << 40..1 << 41;
    let to_registry = Cutter::start(registry.address(), whole.clone(), 1).unwrap();
    let to_mirror = Cutter::start(mirror.address(), whole, 2).unwrap();
    let hosts = mirrored((&registry, &to_registry), (&mirror, &to_mirror));
    lab.hosts().put("registry.test", &hosts).unwrap();
    let node = hasty(&lab);
    let reference = "registry.test/team/app:1";
    // What a tag means is the registry's to say, and only to those whom its token server knows.
    let stranger = AuthConfig {
        password: "a guess".to_owned(),
        ..account()
    };
    for auth in [None, Some(stranger)] {
        let status = node.pull_with(reference, auth).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    assert_eq!(to_mirror.connections(), 0);
    let id = node.pull_with(reference, Some(account())).unwrap();
    assert_eq!(id, image.config);
    let layer = image.blob(&image.layers[0]).len() as u64;
    assert!(to_mirror.carried() > layer && to_registry.carried() < layer / 2);
    // The mirror goes away: the registry serves it all, by the token it gave.
    node.remove_image(reference).unwrap();
    drop(to_mirror);
    assert_eq!(
        node.pull_with(reference, Some(account())).unwrap(),
        image.config
    );
    assert!(to_registry.carried() > layer);
    assert!(!node.log().contains(PASSWORD));
    lab.close(node);
}

/// The most memory the daemon ever had, in KiB.
fn peak_memory(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bytes of interrupted downloads.
fn partial_bytes(node: &Node) -> u64 {
    let entries = std::fs::read_dir(node.root().join("content/ingest"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .map(|entry| entry.metadata().map_or(0, |m| m.len()))
        .sum()
}

fn small() -> Image {
    let layer = file_layer(Compression::Plain, "data", noise(5, 300_000));
    Image::build(&json!({}), &[layer]).unwrap()
}

/// A node that gives up soon.
fn hasty(lab: &Lab) -> Node {
    lab.node_with(NodeOptions {
        progress_timeout: Some("1s"),
        images: vec![
            "document_timeout = \"1s\"".to_owned(),
            "max_retries = 1".to_owned(),
            "retry_backoff = \"10ms\"".to_owned(),
        ],
        ..NodeOptions::default()
    })
}

type Trick = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

/// Answers requests whose path has `part`.
fn at(part: &str, reply: impl Fn() -> Reply + Send + Sync + 'static) -> Trick {
    let part = part.to_owned();
    Box::new(move |request| request.path.contains(&part).then(&reply))
}

#[test]
fn privileged_hostile_registries_are_refused_with_a_reason_and_bounded() {
    let Some(lab) = Lab::open() else { return };
    let image = small();
    let hostile = Hostile::start(image.clone()).unwrap();
    let node = hasty(&lab);
    let layer = image.layers[0].clone();
    let blob = image.blob(&layer).to_vec();
    let config = image.config.clone();
    let manifest = image.blob(&image.manifest).to_vec();
    let loss = &[Code::DataLoss][..];
    let large = &[Code::ResourceExhausted][..];
    // The kubelet knows it by the first word of the message.
    let gone = &[Code::Unknown][..];
    let address = hostile.address();
    let token = move |path: &str| {
        let text = format!("Bearer realm=\"http://{address}{path}\",service=\"s\"");
        at("/v2/", move || challenge(&text))
    };
    let with_token = |path: &'static str, reply: fn() -> Reply| -> Trick {
        let (first, second) = (token(path), at(path, reply));
        Box::new(move |request| second(request).or_else(|| first(request)))
    };
    let body = |bytes: &[u8]| bytes.to_vec();
    let (b, m) = (body(&blob), body(&manifest));
    let cases: Vec<(&str, Trick, &[Code], &str)> = vec![
        (
            "a layer said to be longer",
            {
                let b = b.clone();
                at(&layer, move || lie("x/y", &b, b.len() + 1))
            },
            loss,
            &layer,
        ),
        (
            "a layer said to be shorter",
            {
                let b = b.clone();
                at(&layer, move || lie("x/y", &b, b.len() - 1))
            },
            loss,
            &layer,
        ),
        (
            "other bytes of a layer",
            {
                let mut b = b.clone();
                b[1000] ^= 1;
                at(&layer, move || Reply::new(200, "x/y", b.clone()))
            },
            loss,
            &layer,
        ),
        (
            "a layer without an end",
            at(&layer, || endless("x/y")),
            loss,
            &layer,
        ),
        (
            "a layer that drips",
            {
                let length = b.len();
                at(&layer, move || drip("x/y", length))
            },
            gone,
            "progress",
        ),
        (
            "a configuration of another digest",
            at(&config, || Reply::new(200, CONFIG, "{}")),
            loss,
            &config,
        ),
        (
            "a manifest without an end",
            at("/manifests/", || endless(MANIFEST)),
            large,
            "4194304",
        ),
        (
            "a manifest of a gigabyte",
            at("/manifests/", || lie(MANIFEST, b"{}", 1 << 30)),
            large,
            "4194304",
        ),
        (
            "a manifest that drips",
            at("/manifests/", || drip(MANIFEST, 4000)),
            gone,
            "document",
        ),
        (
            "more headers than anyone reads",
            at("/manifests/", many_headers),
            gone,
            "connection",
        ),
        (
            "redirects in a circle",
            at("/manifests/", || redirect("/v2/x/manifests/1")),
            gone,
            "more than 10",
        ),
        (
            "a redirect to a file",
            at("/manifests/", || redirect("file:///etc/shadow")),
            gone,
            "not followed",
        ),
        (
            "a manifest that is an index",
            {
                let text = String::from_utf8(m.clone()).unwrap();
                let both = text.replacen('{', "{\"manifests\":[],", 1);
                at("/manifests/", move || {
                    Reply::new(200, MANIFEST, both.clone())
                })
            },
            &[Code::InvalidArgument],
            "ambiguous",
        ),
        (
            "a manifest of another type",
            {
                let m = m.clone();
                let docker = "application/vnd.docker.distribution.manifest.v2+json";
                at("/manifests/", move || Reply::new(200, docker, m.clone()))
            },
            &[Code::InvalidArgument],
            "differs",
        ),
        (
            "a manifest of another digest",
            {
                let m = m.clone();
                at("/manifests/", move || {
                    Reply::new(200, MANIFEST, m.clone())
                        .header("docker-content-digest", digest(b"else"))
                })
            },
            loss,
            "digest",
        ),
        (
            "schema 1",
            {
                let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
                at("/manifests/", move || {
                    Reply::new(200, old, "{\"schemaVersion\":1}")
                })
            },
            &[Code::Unimplemented],
            "schema 1",
        ),
        (
            "an artifact",
            at("/manifests/", || {
                let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2});
                let text = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.sbom",
                "config": empty, "layers": [empty]});
                Reply::new(200, MANIFEST, text.to_string())
            }),
            &[Code::Unimplemented],
            "application/x.sbom",
        ),
        ("indexes above indexes", Box::new(nested), large, "deeper"),
        (
            "a token without an end",
            with_token("/token", || endless("application/json")),
            large,
            "262144",
        ),
        (
            "a token that drips",
            with_token("/token", || drip("application/json", 1000)),
            gone,
            "within 1000 ms",
        ),
        (
            "a token that is none",
            with_token("/token", || Reply::new(200, "application/json", "[]")),
            gone,
            "token",
        ),
        (
            "tokens in a circle",
            with_token("/token", || {
                Reply::new(200, "application/json", "{\"token\":\"t\"}")
            }),
            &[Code::PermissionDenied],
            "unauthorized",
        ),
        (
            "a realm that is a file",
            at("/v2/", || challenge("Bearer realm=\"file:///etc/shadow\"")),
            &[Code::PermissionDenied],
            "realm",
        ),
        (
            "always busy",
            at("/v2/", || Reply::new(503, "text/plain", "no")),
            gone,
            "503",
        ),
        (
            "busy for a day",
            at("/v2/", || {
                Reply::new(429, "text/plain", "no").header("retry-after", "86400")
            }),
            gone,
            "429",
        ),
    ];
    for (what, trick, codes, words) in cases {
        hostile.play(trick);
        let reference = format!("{}/team/app:1", hostile.address());
        let begun = Instant::now();
        let status = node.pull_with(&reference, Some(account())).expect_err(what);
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "{what}: {:?}",
            begun.elapsed()
        );
        assert!(codes.contains(&status.code()), "{what}: {status:?}");
        assert!(status.message().contains(words), "{what}: {status:?}");
        let is_gone = status.message().starts_with("RegistryUnavailable: ");
        assert_eq!(
            is_gone,
            status.code() == Code::Unknown,
            "{what}: {status:?}"
        );
        assert!(
            status.message().len() < 2000 && !status.message().contains(PASSWORD),
            "{what}"
        );
        assert_eq!(node.list_images().unwrap(), [], "{what}");
        assert!(
            partial_bytes(&node) <= blob.len() as u64,
            "{what}: {}",
            partial_bytes(&node)
        );
    }
    assert!(
        peak_memory(&node) < MAX_RESIDENT_KIB,
        "{} KiB",
        peak_memory(&node)
    );
    hostile.behave();
    let reference = format!("{}/team/app:1", hostile.address());
    // What hostile registries sent of the layer is no obstacle.
    node.pull(&reference).unwrap();
    lab.close(node);
}

#[test]
fn privileged_what_a_liar_sent_of_a_layer_costs_the_next_pull_bytes_and_nothing_else() {
    let Some(lab) = Lab::open() else { return };
    let node = hasty(&lab);
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let layer = file_layer(compression, "data", noise(6, 300_000));
        let image = Image::build(&json!({}), &[layer]).unwrap();
        let hostile = Hostile::start(image.clone()).unwrap();
        let reference = format!("{}/team/app:1", hostile.address());
        let layer = image.layers[0].clone();
        let mut lies = image.blob(&layer).to_vec();
        let length = lies.len();
        lies.truncate(length / 2);
        lies[20_000..].reverse();
        // Half of the layer, wrong, and then the connection ends.
        hostile.play(at(&layer, move || Reply {
            cut_after: Some(lies.len()),
            ..lie("x/y", &lies, length)
        }));
        node.pull(&reference).unwrap_err();
        assert!(partial_bytes(&node) > 20_000, "nothing to go on from");
        hostile.behave();
        assert_eq!(node.pull(&reference).unwrap(), image.config);
        let found = find(&node.root().join("snapshots"), "data");
        assert!(std::fs::read(&found[0]).unwrap() == noise(6, 300_000));
        node.remove_image(&reference).unwrap();
    }
    lab.close(node);
}

/// An index of an index of an index, each made for the request, so that every digest is right.
fn nested(request: &Request) -> Option<Reply> {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    if !request.path.contains("/manifests/") {
        return None;
    }
    let mut documents =
        vec![json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string()];
    for _ in 0..6 {
        let last = documents.last().unwrap();
        let entry =
            json!({"mediaType": INDEX, "digest": digest(last.as_bytes()), "size": last.len()});
        documents.push(
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string(),
        );
    }
    let name = request.path.rsplit('/').next().unwrap();
    let known = documents
        .iter()
        .find(|text| digest(text.as_bytes()) == name);
    let text = known.unwrap_or_else(|| documents.last().unwrap());
    Some(Reply::new(200, INDEX, text.as_str()))
}

/// A 5xx for a manifest once made containerd ask for it among the blobs, and keep what it got (its fix 179b642d).
#[test]
fn privileged_a_manifest_that_cannot_be_had_is_not_looked_for_among_blobs() {
    let Some(lab) = Lab::open() else { return };
    let image = small();
    let hostile = Hostile::start(image.clone()).unwrap();
    let node = hasty(&lab);
    let used = || {
        let info = node.image_fs_info().unwrap();
        info.image_filesystems[0].used_bytes.unwrap().value
    };
    let empty = used();
    let by_tag = format!("{}/team/app:1", hostile.address());
    let by_digest = format!("{}/team/app@{}", hostile.address(), image.manifest);
    let stalled = || Reply {
        stall_after: Some(0),
        ..Reply::new(200, MANIFEST, "{}")
    };
    // Unknown is the code of what the kubelet knows as RegistryUnavailable.
    let cases: [(&str, Trick, Code); 6] = [
        (
            "500",
            at("/manifests/", || Reply::new(500, "text/plain", "no")),
            Code::Unknown,
        ),
        (
            "502",
            at("/manifests/", || Reply::new(502, "text/plain", "no")),
            Code::Unknown,
        ),
        (
            "503",
            at("/manifests/", || Reply::new(503, "text/plain", "no")),
            Code::Unknown,
        ),
        (
            "not found",
            at("/manifests/", || Reply::new(404, "text/plain", "no")),
            Code::NotFound,
        ),
        ("document", at("/manifests/", stalled), Code::Unknown),
        (
            "connection",
            at("/manifests/", || Reply {
                cut_after: Some(0),
                ..Reply::new(200, MANIFEST, "{}")
            }),
            Code::Unknown,
        ),
    ];
    for (words, trick, code) in cases {
        hostile.play(trick);
        for name in [&by_tag, &by_digest] {
            let before = hostile.seen().len();
            let status = node.pull(name).expect_err(words);
            assert_eq!(status.code(), code, "{name}: {status}");
            assert!(status.message().contains(words), "{words}: {status}");
            let seen = hostile.seen().split_off(before);
            let asked = |part: &str| seen.iter().any(|request| request.path.contains(part));
            assert!(asked("/manifests/") && !asked("/blobs/"), "{seen:?}");
            assert_eq!(node.list_images().unwrap(), [], "{words}");
            assert_eq!(node.image_status(name).unwrap(), None, "{words}");
            assert_eq!(used(), empty, "{words}");
        }
    }
    hostile.behave();
    assert_eq!(node.pull(&by_digest).unwrap(), image.config);
    lab.close(node);
}

#[test]
fn privileged_cve_2020_15157_accounts_go_to_their_registry_only() {
    let Some(lab) = Lab::open() else { return };
    let node = hasty(&lab);
    let image = small();
    let thief = Hostile::start(image.clone()).unwrap();
    let registry = Hostile::start(image.clone()).unwrap();
    let reference = format!("{}/team/app:1", registry.address());
    let to_thief = format!("http://{}", thief.address());
    let is_asked = |request: &Request| !request.headers.contains_key("authorization");

    // Blobs and manifests lie elsewhere: they are fetched, without the account.
    let location = to_thief.clone();
    registry.play(move |request| match is_asked(request) {
        true => Some(challenge("Basic realm=\"here\"")),
        false => {
            Some(redirect(&format!("{location}{}", request.path)).header("set-cookie", "id=1"))
        }
    });
    node.pull_with(&reference, Some(account())).unwrap();
    node.remove_image(&reference).unwrap();
    assert!(!thief.seen().is_empty());

    // The place a redirect leads to wants an account.
    thief.play(|_| Some(challenge("Basic realm=\"give me\"")));
    let status = node.pull_with(&reference, Some(account())).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let text = format!("Bearer realm=\"{to_thief}/token\"");
    thief.play(move |_| Some(challenge(&text)));
    let status = node.pull_with(&reference, Some(account())).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    // A mirror wants an account: only the registry itself gets it.
    lab.hosts()
        .put(
            "registry.test",
            &format!(
                "server = \"http://{}\"\n[host.\"{to_thief}\"]\n",
                registry.address()
            ),
        )
        .unwrap();
    registry.play(move |request| is_asked(request).then(|| challenge("Basic realm=\"here\"")));
    node.pull_with("registry.test/team/app:1", Some(account()))
        .unwrap();

    // Credentials for another registry stay here.
    let other = AuthConfig {
        server_address: "https://elsewhere.test".to_owned(),
        ..account()
    };
    let before = registry.seen().len();
    let status = node.pull_with(&reference, Some(other)).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let asked = registry.seen();
    assert!(
        asked[before..]
            .iter()
            .all(|seen| seen.authorization.is_none())
    );

    for seen in thief.seen() {
        assert_eq!(
            (seen.authorization, seen.cookie),
            (None, None),
            "{}",
            seen.path
        );
    }
    assert!(!node.log().contains(PASSWORD));
    lab.close(node);
}

#[test]
fn privileged_a_hosts_file_counts_for_the_next_pull_and_names_its_mistake() {
    let Some(lab) = Lab::open() else { return };
    let node = hasty(&lab);
    let registry = Hostile::start(small()).unwrap();
    let reference = "registry.test/team/app:1";
    let good = format!("[host.\"http://{}\"]\n", registry.address());
    for (text, words) in [
        (format!("{good}capabilites = [\"pull\"]\n"), "capabilites"),
        (format!("{good}dial_timeout = \"soon\"\n"), "dial_timeout"),
        (format!("{good}ca = \"absent.pem\"\n"), "absent.pem"),
        ("server = ".to_owned(), "hosts.toml"),
    ] {
        lab.hosts().put("registry.test", &text).unwrap();
        let status = node.pull(reference).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains(words), "{words}: {status}");
        assert!(registry.seen().is_empty());
    }
    lab.hosts().put("registry.test", &good).unwrap();
    node.pull(reference).unwrap();
    lab.close(node);
}
