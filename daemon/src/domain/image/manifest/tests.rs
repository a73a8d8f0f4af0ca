//! Hostile and ordinary documents.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::media::{
    DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};
use super::*;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn digest(seed: usize) -> String {
    Digest::sha256_of(seed.to_string().as_bytes()).to_string()
}

fn layer(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": digest(1), "size": 10})
}

fn manifest(layers: Vec<Value>) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest(0), "size": 7},
        "layers": layers,
    })
}

fn entry(seed: usize, platform: Option<(&str, &str, &str)>) -> Value {
    let mut entry = json!({"mediaType": OCI_MANIFEST, "digest": digest(seed), "size": 7});
    if let Some((os, architecture, variant)) = platform {
        entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
    }
    entry
}

fn index(entries: Vec<Value>) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
}

fn parse(content_type: &str, document: &Value) -> Result<Document, ManifestError> {
    let rules = DocumentRules::default();
    parse_document(content_type, document.to_string().as_bytes(), &rules)
}

fn refuse(content_type: &str, document: &Value, class: Class, words: &str) {
    let error = parse(content_type, document).expect_err(words);
    assert_eq!(error.class(), class, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.to_string().len() < 1000);
}

#[test]
fn reads_manifests_of_both_families() {
    let Document::Manifest(found) = parse(OCI_MANIFEST, &manifest(vec![layer(GZIP)])).unwrap()
    else {
        panic!("a manifest");
    };
    assert_eq!(found.config.size, 7);
    assert_eq!(found.layers[0].compression, Compression::Gzip);
    assert_eq!(found.size(), 17);
    let docker = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": DOCKER_CONFIG, "digest": digest(0), "size": 7},
        "layers": [layer("application/vnd.docker.image.rootfs.diff.tar.gzip")],
    });
    for content_type in [DOCKER_MANIFEST, "application/json; charset=utf-8", ""] {
        assert!(matches!(
            parse(content_type, &docker),
            Ok(Document::Manifest(_))
        ));
    }
    // OCI documents may leave out mediaType when the transport says it.
    let mut bare = manifest(vec![]);
    bare.as_object_mut().unwrap().remove("mediaType");
    assert!(parse(OCI_MANIFEST, &bare).is_ok());
    refuse("", &bare, Class::InvalidArgument, "neither mediaType");
    let mut bare = docker;
    bare.as_object_mut().unwrap().remove("mediaType");
    refuse(
        DOCKER_MANIFEST,
        &bare,
        Class::InvalidArgument,
        "mediaType is missing",
    );
}

#[test]
fn cve_2021_41190_documents_with_two_readings_are_refused() {
    let mut both = manifest(vec![layer(GZIP)]);
    both["manifests"] = json!([]);
    refuse(
        OCI_MANIFEST,
        &both,
        Class::InvalidArgument,
        "fields of a manifest and of an index",
    );
    let mut both = index(vec![]);
    both["layers"] = json!([]);
    refuse(
        OCI_INDEX,
        &both,
        Class::InvalidArgument,
        "fields of a manifest and of an index",
    );
    refuse(
        OCI_INDEX,
        &manifest(vec![]),
        Class::InvalidArgument,
        "differs from the content type",
    );
    refuse(
        DOCKER_LIST,
        &index(vec![]),
        Class::InvalidArgument,
        "differs from the content type",
    );
    let twice =
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[],"manifests":[]}}"#);
    let error = parse_document(OCI_INDEX, twice.as_bytes(), &DocumentRules::default()).unwrap_err();
    assert!(error.to_string().contains("duplicate field"), "{error}");
    for (field, value) in [("schemaVersion", json!(3)), ("blobs", json!([]))] {
        let mut odd = manifest(vec![]);
        odd[field] = value;
        refuse(OCI_MANIFEST, &odd, Class::InvalidArgument, field);
    }
}

#[test]
fn foreign_documents_are_refused_by_name() {
    let schema1 = json!({"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []});
    refuse("", &schema1, Class::Unsupported, "schema 1");
    refuse(
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        &schema1,
        Class::Unsupported,
        "schema 1",
    );
    let mut artifact = manifest(vec![layer("application/vnd.wasm.content.layer.v1+wasm")]);
    artifact["config"]["mediaType"] = json!("application/vnd.wasm.config.v1+json");
    refuse(
        OCI_MANIFEST,
        &artifact,
        Class::Unsupported,
        "application/vnd.wasm.config.v1+json",
    );
    for media_type in [
        "application/vnd.oci.image.layer.v1.erofs",
        "application/vnd.oci.image.layer.v1.squashfs",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/octet-stream",
        "",
    ] {
        let document = manifest(vec![layer(GZIP), layer(media_type)]);
        refuse(
            OCI_MANIFEST,
            &document,
            Class::Unsupported,
            "layers[1].mediaType",
        );
        refuse(OCI_MANIFEST, &document, Class::Unsupported, media_type);
    }
    refuse(
        "text/html",
        &json!({"schemaVersion": 2}),
        Class::Unsupported,
        "text/html",
    );
}

#[test]
fn hostile_descriptor_fields_are_refused_by_name() {
    let long = "a".repeat(1 << 20);
    for bad in [
        "",
        "sha256:",
        "sha256:zz",
        "sha256:../../x",
        "sha512:00",
        "\0",
        &long,
        &digest(1).to_uppercase(),
    ] {
        let mut document = manifest(vec![layer(GZIP)]);
        document["layers"][0]["digest"] = json!(bad);
        refuse(
            OCI_MANIFEST,
            &document,
            Class::InvalidArgument,
            "layers[0].digest",
        );
        let mut document = index(vec![entry(1, None)]);
        document["manifests"][0]["digest"] = json!(bad);
        refuse(
            OCI_INDEX,
            &document,
            Class::InvalidArgument,
            "manifests[0].digest",
        );
    }
    let sizes = [
        (json!(-1), Class::InvalidArgument),
        (json!(i64::MAX), Class::Exhausted),
        (json!(null), Class::InvalidArgument),
    ];
    for (size, class) in sizes {
        let mut document = manifest(vec![layer(GZIP)]);
        document["layers"][0]["size"] = size;
        refuse(OCI_MANIFEST, &document, class, "layers[0].size");
    }
    for size in [json!("10"), json!(1.5), json!(1e30), json!([])] {
        let mut document = manifest(vec![layer(GZIP)]);
        document["layers"][0]["size"] = size;
        refuse(OCI_MANIFEST, &document, Class::InvalidArgument, "not valid");
    }
    // Annotations of layers, URLs and embedded data are not read, whatever they hold.
    let mut document = manifest(vec![layer(GZIP)]);
    document["layers"][0]["annotations"] = json!({"containerd.io/uncompressed": "sha256:zz"});
    document["layers"][0]["urls"] = json!(["http://elsewhere/"]);
    document["layers"][0]["data"] = json!(12);
    assert!(parse(OCI_MANIFEST, &document).is_ok());
}

#[test]
fn annotations_are_kept_in_part() {
    let mut document = manifest(vec![layer(GZIP)]);
    document["annotations"] = json!({
        "a.large": "x".repeat(16 << 10),
        "io.kubernetes.cri.untrusted": "1",
        "org.opencontainers.image.title": "t",
    });
    let Ok(Document::Manifest(found)) = parse(OCI_MANIFEST, &document) else {
        panic!("annotations do not make a manifest another one");
    };
    assert_eq!(
        found.annotations,
        BTreeMap::from([("org.opencontainers.image.title".to_owned(), "t".to_owned())])
    );
    document["annotations"] = json!({"a": 1});
    refuse(OCI_MANIFEST, &document, Class::InvalidArgument, "not valid");
    document["annotations"] = json!(null);
    assert!(parse(OCI_MANIFEST, &document).is_ok());
}

#[test]
fn bytes_that_are_not_utf8_are_refused_wherever_they_are() {
    let mut document = manifest(vec![layer(GZIP)]);
    document["unknown"] = json!("MARK");
    let text = document.to_string();
    let at = text.find("MARK").unwrap();
    let mut bytes = text.into_bytes();
    bytes[at] = 0xff;
    let error = parse_document(OCI_MANIFEST, &bytes, &DocumentRules::default()).unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
}

#[test]
fn counts_and_sums_are_bounded() {
    let entries = vec!["{}"; MOST_DESCRIPTORS + 5].join(",");
    let text =
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entries}]}}"#);
    let error = parse_document("", text.as_bytes(), &DocumentRules::default()).unwrap_err();
    assert!(error.to_string().contains("65541"), "{error}");
    let many = vec![layer(GZIP); MAX_LAYERS + 1];
    refuse(OCI_MANIFEST, &manifest(many), Class::Exhausted, "layers");
    let many = vec![entry(1, None); MAX_DESCRIPTORS + 1];
    refuse(OCI_INDEX, &index(many), Class::Exhausted, "manifests");
    let mut big = layer(GZIP);
    big["size"] = json!(MAX_LAYER_BYTES);
    refuse(
        OCI_MANIFEST,
        &manifest(vec![big.clone(), big]),
        Class::Exhausted,
        "sum of layers",
    );
    let rules = DocumentRules::default();
    let error = parse_document("", &vec![b' '; MAX_DOCUMENT_BYTES + 1], &rules).unwrap_err();
    assert_eq!(error.class(), Class::Exhausted);
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    assert_eq!(
        parse_document("", deep.as_bytes(), &rules)
            .unwrap_err()
            .class(),
        Class::InvalidArgument
    );
}

fn walk(documents: &[Value], platform: Platform) -> Result<Digest, ManifestError> {
    let bodies: Vec<String> = documents.iter().map(Value::to_string).collect();
    let find = |digest: &Digest| bodies.iter().find(|body| digest.matches(body.as_bytes()));
    let mut walk = Walk::new(platform, DocumentRules::default());
    let mut digest = Digest::sha256_of(bodies[0].as_bytes());
    loop {
        let body = find(&digest).expect("a known document");
        match walk.accept(&digest, "", body.as_bytes())? {
            Step::Fetch(descriptor) => digest = descriptor.digest,
            Step::Image { digest, .. } => return Ok(digest),
        }
    }
}

fn pointing_to(document: &Value) -> Value {
    let body = document.to_string();
    json!({
        "mediaType": document["mediaType"],
        "digest": Digest::sha256_of(body.as_bytes()).to_string(),
        "size": body.len(),
    })
}

fn on(mut entry: Value, os: &str, architecture: &str, variant: Option<&str>) -> Value {
    entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
    entry
}

#[test]
fn the_walk_prefers_the_exact_platform() {
    let images: Vec<Value> = (0..4).map(|n| manifest(vec![layer(GZIP); n])).collect();
    let id = |n: usize| Digest::sha256_of(images[n].to_string().as_bytes());
    let top = index(vec![
        on(pointing_to(&images[0]), "windows", "amd64", None),
        on(pointing_to(&images[1]), "linux", "amd64", Some("v3")),
        on(pointing_to(&images[2]), "linux", "amd64", None),
        on(pointing_to(&images[3]), "linux", "arm64", Some("v8")),
    ]);
    let mut all = vec![top];
    all.extend(images.iter().cloned());
    let pick = |arch: &str, variant| walk(&all, Platform::new("linux", arch, variant));
    assert_eq!(pick("x86_64", None).unwrap(), id(2));
    assert_eq!(pick("amd64", Some("v3")).unwrap(), id(1));
    assert_eq!(pick("amd64", Some("v4")).unwrap(), id(1));
    assert_eq!(pick("amd64", Some("v2")).unwrap(), id(2));
    assert_eq!(pick("aarch64", None).unwrap(), id(3));
    let error = pick("riscv64", None).unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    assert!(error.to_string().contains("linux/riscv64"), "{error}");
    assert!(
        error.to_string().contains("linux/arm64/v8, windows/amd64"),
        "{error}"
    );
}

#[test]
fn older_variants_and_the_architecture_below_are_fallbacks() {
    let check = |own: (&str, Option<&str>), other: (&str, Option<&str>), runs: bool| {
        let machine = Platform::new("linux", own.0, own.1);
        let other = Platform::new("linux", other.0, other.1);
        assert_eq!(
            machine.distance(&other).is_some(),
            runs,
            "{machine} {other}"
        );
        assert_eq!(
            machine.accepts_config(&Platform::new("linux", &other.architecture, None)),
            runs || own.0 == other.architecture
        );
    };
    check(("amd64", Some("v2")), ("amd64", Some("v3")), false);
    check(("amd64", Some("v3")), ("amd64", None), true);
    check(("amd64", None), ("386", None), true);
    check(("386", None), ("amd64", None), false);
    check(("arm64", None), ("arm", Some("v6")), true);
    check(("arm64", None), ("arm64", Some("v9")), false);
    check(("arm", Some("v6")), ("arm", Some("v7")), false);
    check(("riscv64", None), ("386", None), false);
    // Whatever variant is its own, it is nearer than the architecture below.
    let images: Vec<Value> = (0..3).map(|n| manifest(vec![layer(GZIP); n])).collect();
    let id = |n: usize| Digest::sha256_of(images[n].to_string().as_bytes());
    let entries = [
        on(pointing_to(&images[0]), "linux", "arm", Some("v7")),
        on(pointing_to(&images[1]), "linux", "arm", Some("v5")),
        on(pointing_to(&images[2]), "linux", "arm64", None),
    ];
    let mut all = vec![index(entries.to_vec())];
    all.extend(images.iter().cloned());
    let machine = Platform::new("linux", "arm64", Some("v9"));
    assert_eq!(walk(&all, machine.clone()).unwrap(), id(2));
    all[0] = index(entries[..2].to_vec());
    assert_eq!(walk(&all, machine).unwrap(), id(0));
    assert_eq!(Platform::host().distance(&Platform::host()), Some(0));
}

#[test]
fn artifacts_are_named_and_subjects_are_not_followed() {
    let mut document = manifest(vec![]);
    document["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
    document["artifactType"] = json!("application/vnd.example.sbom");
    refuse(
        OCI_MANIFEST,
        &document,
        Class::Unsupported,
        "\"artifactType\": \"application/vnd.example.sbom\" is not supported: an OCI artifact",
    );
    let mut document = manifest(vec![layer(GZIP)]);
    document["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": digest(9), "size": 3});
    assert!(parse(OCI_MANIFEST, &document).is_ok());
}

#[test]
fn the_operators_rules_decide() {
    let parse = |document: &Value, rules: &DocumentRules| {
        parse_document("", document.to_string().as_bytes(), rules)
    };
    let foreign = manifest(vec![layer(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    )]);
    let error = parse(&foreign, &DocumentRules::default()).unwrap_err();
    assert_eq!(error.class(), Class::Unsupported);
    assert!(
        error.to_string().contains("images.allow_nondistributable"),
        "{error}"
    );
    let rules = DocumentRules {
        nondistributable: true,
        ..DocumentRules::default()
    };
    assert!(parse(&foreign, &rules).is_ok());
    let tight = DocumentRules {
        max_document_bytes: 1000,
        max_layers: 1,
        max_layer_bytes: 9,
        max_descriptors: 1,
        max_documents: 1,
        max_depth: 1,
        nondistributable: false,
    };
    for (document, words) in [
        (manifest(vec![layer(GZIP); 2]), "layers"),
        (manifest(vec![layer(GZIP)]), "9"),
        (index(vec![entry(1, None); 2]), "manifests"),
        (manifest(vec![layer(GZIP); 20]), "document"),
    ] {
        let error = parse(&document, &tight).unwrap_err();
        assert_eq!(error.class(), Class::Exhausted, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let image = manifest(vec![]);
    let top = index(vec![pointing_to(&image)]);
    let mut walk = Walk::new(Platform::host(), tight);
    let error = walk
        .accept(&Digest::sha256_of(b"x"), "", top.to_string().as_bytes())
        .unwrap_err();
    assert!(
        matches!(error, ManifestError::TooDeep { limit: 1 }),
        "{error}"
    );
}

#[test]
fn the_walk_goes_through_nested_indexes_up_to_its_depth() {
    let mut documents = vec![manifest(vec![])];
    for _ in 0..3 {
        documents.insert(0, index(vec![pointing_to(&documents[0])]));
    }
    assert!(walk(&documents, Platform::host()).is_ok());
    documents.insert(0, index(vec![pointing_to(&documents[0])]));
    let error = walk(&documents, Platform::host()).unwrap_err();
    assert!(matches!(error, ManifestError::TooDeep { .. }), "{error}");
}

#[test]
fn go_2026_6597_amplification_is_cut() {
    // A hundred indexes of a hundred entries each, and the same index many times.
    let inner: Vec<Value> = (0..100)
        .map(|n| {
            index(
                (0..100)
                    .map(|m| on(entry(n * 100 + m, None), "plan9", "mips", None))
                    .collect(),
            )
        })
        .collect();
    let mut documents = vec![index(inner.iter().map(pointing_to).collect())];
    documents.extend(inner);
    let error = walk(&documents, Platform::host()).unwrap_err();
    assert_eq!(error.class(), Class::Exhausted, "{error}");
    let leaf = index(vec![]);
    let repeated = index(vec![pointing_to(&leaf); 2000]);
    let error = walk(&[repeated, leaf], Platform::host()).unwrap_err();
    assert_eq!(error.class(), Class::NotFound, "{error}");
}

#[test]
fn attestations_and_artifacts_in_an_index_are_passed_over() {
    let image = manifest(vec![layer(GZIP)]);
    let mut odd = entry(5, None);
    odd["mediaType"] = json!("application/vnd.in-toto+json");
    let top = index(vec![
        odd,
        entry(6, Some(("unknown", "unknown", ""))),
        pointing_to(&image),
    ]);
    assert!(walk(&[top, image], Platform::host()).is_ok());
}

proptest! {
    #[test]
    fn noise_never_panics(text in "\\PC*", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let rules = DocumentRules::default();
        let _ = parse_document(OCI_MANIFEST, text.as_bytes(), &rules);
        let _ = parse_document(&text, &bytes, &rules);
    }

    #[test]
    fn a_changed_field_never_panics(
        field in prop_oneof![
            Just("/schemaVersion"), Just("/mediaType"), Just("/config"), Just("/config/size"),
            Just("/config/digest"), Just("/layers"), Just("/layers/0"), Just("/layers/0/size"),
            Just("/layers/0/mediaType"),
        ],
        value in prop_oneof![
            Just(Value::Null), any::<i64>().prop_map(Value::from), "\\PC{0,20}".prop_map(Value::from),
            Just(json!([])), Just(json!({})), Just(json!([[]])),
        ],
    ) {
        let mut document = manifest(vec![layer(GZIP)]);
        *document.pointer_mut(field).unwrap() = value;
        if let Err(error) = parse(OCI_MANIFEST, &document) {
            prop_assert!(error.to_string().len() < 1000);
        }
    }
}
