//! Tables and properties of reference parsing.

use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn check(text: &str, canonical: &str) {
    let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(reference.to_string(), canonical, "{text}");
    assert_eq!(Reference::parse(canonical), Ok(reference), "{text}");
}

#[test]
fn short_forms_become_canonical() {
    check("nginx", "docker.io/library/nginx:latest");
    check("nginx:1.25", "docker.io/library/nginx:1.25");
    check("user/app:tag", "docker.io/user/app:tag");
    check("docker.io/nginx", "docker.io/library/nginx:latest");
    check("index.docker.io/nginx", "docker.io/library/nginx:latest");
    check("library/nginx", "docker.io/library/nginx:latest");
    check("localhost/x", "localhost/x:latest");
    check("localhost:5000/x", "localhost:5000/x:latest");
    check("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1");
    check("[::1]:5000/x", "[::1]:5000/x:latest");
    check("[fd00::2]/a/b", "[fd00::2]/a/b:latest");
    check("ghcr.io/a/b/c/d", "ghcr.io/a/b/c/d:latest");
    check("Registry/x", "Registry/x:latest");
    check("a.b/c__d/e---f.g_h", "a.b/c__d/e---f.g_h:latest");
    check("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9");
}

#[test]
fn digests_are_kept_beside_tags_and_suppress_the_default_tag() {
    check(
        &format!("nginx@sha256:{HEX}"),
        &format!("docker.io/library/nginx@sha256:{HEX}"),
    );
    check(
        &format!("host:5000/a/b:t@sha256:{HEX}"),
        &format!("host:5000/a/b:t@sha256:{HEX}"),
    );
    let both = Reference::parse(&format!("host:5000/a/b:t@sha256:{HEX}")).unwrap();
    assert_eq!(both.host(), "host:5000");
    assert_eq!(both.repository(), "a/b");
    assert_eq!(both.name(), "host:5000/a/b");
    assert_eq!(both.tag(), Some("t"));
    assert_eq!(both.digest().unwrap().hex(), HEX);
    let by_digest = Reference::parse("a/b:t")
        .unwrap()
        .with_digest(Digest::sha256_of(b""));
    assert_eq!(by_digest.to_string(), format!("docker.io/a/b@sha256:{HEX}"));
}

#[test]
fn hostile_references_are_refused_with_a_short_printable_error() {
    let long_tag = format!("a:{}", "t".repeat(129));
    let long_path = format!("h.x/{}", "a".repeat(256));
    let long_label = format!("{}.x/a", "a".repeat(64));
    let long_host = format!("{}x/a", "a.".repeat(127));
    let huge = "a".repeat(1 << 20);
    let nested_digest = format!("a@sha256:{HEX}@sha256:{HEX}");
    for text in [
        "",
        " ",
        "/",
        ":",
        "@",
        "a/",
        "/a",
        "a//b",
        "a:",
        "a:b:c",
        "a:-x",
        "a:.x",
        "a:b/c:d",
        "a@",
        "a@sha256:",
        "a@sha256:zz",
        "a@sha256:../../x",
        "a@md5:d41d8cd98f00b204e9800998ecf8427e",
        "A",
        "docker.io/A",
        "h.x/aB",
        "a..b",
        "a___b",
        "-a",
        "a-",
        ".a",
        "a_",
        "a b",
        "a\nb",
        "a\0b",
        "nginx\u{200b}",
        "ä",
        "..",
        "../x",
        "h.x/../x",
        "h.x/./x",
        "h..x/a",
        ".x/a",
        "x./a",
        "-h.x/a",
        "h-.x/a",
        "h_x.y/a",
        "h:0/a",
        "h:65536/a",
        "h:000080/a",
        "h:+80/a",
        "h:/a",
        "h:80:80/a",
        "[::1/a",
        "[::1]x/a",
        "[::1]:/a",
        "[127.0.0.1]/a",
        "[fe80::1%eth0]/a",
        "::1/a",
        "user@h.x/a",
        "https://h.x/a",
        "h.x/a?x=y",
        "h.x/a#x",
        "h.x/%2e%2e/a",
        HEX,
        &long_tag,
        &long_path,
        &long_label,
        &long_host,
        &huge,
        &nested_digest,
    ] {
        let Err(error) = Reference::parse(text) else {
            panic!("{text:?} was accepted");
        };
        let message = error.to_string();
        assert!(message.len() < 1000, "{}", message.len());
        assert!(
            message.is_ascii() && !message.contains(['\n', '\0']),
            "{message}"
        );
        let start: String = text
            .chars()
            .take(20)
            .flat_map(char::escape_default)
            .collect();
        assert!(message.contains(&start), "{message} does not name {text:?}");
    }
}

#[test]
fn image_keys_tell_ids_from_references() {
    let id: Digest = format!("sha256:{HEX}").parse().unwrap();
    assert_eq!(parse_image_key(HEX), Ok(ImageKey::Id(id.clone())));
    assert_eq!(parse_image_key(&id.to_string()), Ok(ImageKey::Id(id)));
    assert_eq!(
        parse_image_key("sha256:e3b0c44298fc"),
        Ok(ImageKey::IdPrefix("e3b0c44298fc".into()))
    );
    let ImageKey::Reference {
        reference,
        id_prefix,
    } = parse_image_key("deadbeefcafe").unwrap()
    else {
        panic!("a short id without a prefix is a reference first");
    };
    assert_eq!(reference.repository(), "library/deadbeefcafe");
    assert_eq!(id_prefix.as_deref(), Some("deadbeefcafe"));
    assert_eq!(
        parse_image_key("sha256:e"),
        Ok(ImageKey::IdPrefix("e".into()))
    );
    for (text, prefix) in [
        ("facade", Some("facade")),
        ("decaf", None),
        ("cafe:1", None),
    ] {
        let ImageKey::Reference { id_prefix, .. } = parse_image_key(text).unwrap() else {
            panic!("{text} is a name first");
        };
        assert_eq!(id_prefix.as_deref(), prefix, "{text}");
    }
    for text in [
        "",
        "sha256:",
        "sha256:latest",
        &HEX.to_uppercase(),
        &format!("sha256:{HEX}0"),
        &format!("{HEX}\n"),
    ] {
        assert!(parse_image_key(text).is_err(), "{text:?} was accepted");
    }
}

#[test]
fn names_are_stored_by_digest_if_there_is_one() {
    for (text, name) in [
        ("a", "docker.io/library/a:latest".to_owned()),
        ("h.x/a:t", "h.x/a:t".to_owned()),
        (
            &format!("h.x/a:t@sha256:{HEX}"),
            format!("h.x/a@sha256:{HEX}"),
        ),
    ] {
        assert_eq!(Reference::parse(text).unwrap().stored_name(), name);
    }
}

fn any_reference() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        Just("docker.io/".to_owned()),
        "[a-z]{1,8}\\.[a-z]{2,3}/",
        "[a-z0-9]{1,8}:[1-9][0-9]{0,3}/",
        Just("[fd00::1]:5000/".to_owned()),
        Just("localhost/".to_owned()),
    ];
    let path = "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}";
    let tag = prop_oneof![Just(String::new()), ":[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"];
    let digest = prop_oneof![Just(String::new()), "@sha256:[0-9a-f]{64}"];
    (host, path, tag, digest).prop_map(|(h, p, t, d)| format!("{h}{p}{t}{d}"))
}

proptest! {
    #[test]
    fn parse_and_print_are_inverse(text in any_reference()) {
        let reference = Reference::parse(&text).unwrap();
        let printed = reference.to_string();
        prop_assert_eq!(Reference::parse(&printed).unwrap(), reference);
    }

    #[test]
    fn what_parses_from_noise_is_stable(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,40}") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
        }
        let _ = parse_image_key(&text);
    }

    #[test]
    fn noise_never_panics(text in "\\PC*") {
        let _ = Reference::parse(&text);
        let _ = parse_image_key(&text);
    }
}
