//! Hostile and ordinary configs and users.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn diff_id() -> String {
    Digest::sha256_of(b"layer").to_string()
}

fn config(config: Value) -> Value {
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id()]},
    })
}

fn parse(document: &Value) -> Result<ImageConfig, ImageConfigError> {
    ImageConfig::parse(document.to_string().as_bytes(), 1)
}

fn refuse(document: &Value, words: &str) {
    let error = parse(document).expect_err(words);
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn reads_what_a_container_needs() {
    let found = parse(&config(json!({
        "User": "1000:100",
        "Env": ["A=1"],
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c", "x"],
        "WorkingDir": "/srv",
        "StopSignal": "SIGQUIT",
        "Labels": {"a": "b"},
        "Volumes": {"/data": {}},
        "ExposedPorts": {"80/tcp": {}},
        "Healthcheck": {"Test": ["NONE"]},
    })))
    .unwrap();
    assert_eq!(found.user, "1000:100");
    assert_eq!(found.cmd, ["-c", "x"]);
    assert_eq!(found.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(found.diff_ids[0].to_string(), diff_id());
    assert!(found.volumes.contains("/data"));
    assert_eq!(found.labels["a"], "b");
}

#[test]
fn nulls_are_absent() {
    let nulls = json!({
        "User": null, "Env": null, "Entrypoint": null, "Cmd": null, "WorkingDir": null,
        "StopSignal": null, "Labels": null, "Volumes": null,
    });
    let all_null = parse(&config(nulls)).unwrap();
    assert_eq!(all_null, parse(&config(json!({}))).unwrap());
    assert_eq!(all_null, parse(&config(Value::Null)).unwrap());
    assert!(ImageConfig::parse(br#"{"rootfs":{"type":"layers","diff_ids":null}}"#, 0).is_ok());
    assert!(ImageConfig::parse(b"{}", 0).is_ok());
}

#[test]
fn refuses_what_does_not_fit_the_manifest() {
    let mut document = config(json!({}));
    document["rootfs"]["diff_ids"] = json!([diff_id(), diff_id()]);
    refuse(&document, "2 entries for 1 layers");
    document["rootfs"]["diff_ids"] = json!(["sha256:../x"]);
    refuse(&document, "rootfs.diff_ids[0]");
    document["rootfs"] = json!({"type": "ostree"});
    refuse(&document, "rootfs.type");
    document["rootfs"] = json!(null);
    refuse(&document, "0 entries");
    refuse(&config(json!({"Env": "A=1"})), "not valid");
    refuse(&config(json!({"Env": [null]})), "not valid");
    refuse(&config(json!({"Env": ["A=\0"]})), "config.Env");
    refuse(
        &config(json!({"Volumes": {"/a\u{0}": {}}})),
        "config.Volumes",
    );
    let huge = vec![b' '; MAX_DOCUMENT_BYTES + 1];
    assert_eq!(
        ImageConfig::parse(&huge, 1).unwrap_err().class(),
        Class::Exhausted
    );
}

#[test]
fn poisoned_values_are_refused_by_name() {
    let many: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
    let map: serde_json::Map<_, _> = many.iter().map(|key| (key.clone(), json!(""))).collect();
    for (poison, words) in [
        (json!({"User": "x".repeat(514)}), "config.User\": 514 bytes"),
        (json!({"User": "root\u{1b}[2J"}), "config.User"),
        (json!({"User": "a\nb"}), "config.User"),
        (json!({"StopSignal": "9".repeat(65)}), "config.StopSignal"),
        (json!({"StopSignal": "SIGTERM\r"}), "config.StopSignal"),
        (
            json!({"WorkingDir": format!("/{}", "x".repeat(4096))}),
            "config.WorkingDir",
        ),
        (json!({"Volumes": {"/".repeat(4097): {}}}), "config.Volumes"),
        (
            json!({"Labels": {"a": "x".repeat(1 << 20)}}),
            "config.Labels",
        ),
        (json!({"Labels": map}), "config.Labels\": 5000 entries"),
        (json!({"Volumes": map}), "config.Volumes\": 5000 entries"),
        (json!({"Env": many}), "config.Env\": 5000 entries"),
        (json!({"Cmd": many}), "config.Cmd\": 5000 entries"),
        (json!({"Entrypoint": many}), "config.Entrypoint"),
        (
            json!({"Env": ["x".repeat(1 << 20)], "Cmd": ["y".repeat(1 << 20)]}),
            "Cmd\": 2097154",
        ),
    ] {
        refuse(&config(poison), words);
    }
    let error = parse(&config(json!({"User": "\u{1b}]0;x\u{7}"}))).unwrap_err();
    assert!(!error.to_string().contains('\u{1b}'), "{error:?}");
}

#[test]
fn bytes_that_are_not_utf8_are_refused_wherever_they_are() {
    let document = config(json!({"Labels": {"a": "MARK"}})).to_string();
    let history = document.replacen('{', r#"{"history":[{"comment":"MARK"}],"#, 1);
    for text in [document, history] {
        let at = text.find("MARK").unwrap();
        let mut bytes = text.into_bytes();
        bytes[at] = 0xff;
        let error = ImageConfig::parse(&bytes, 1).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }
}

#[test]
fn cve_2026_53488_reserved_labels_stop_here() {
    let found = parse(&config(json!({"Labels": {
        "io.kubernetes.pod.name": "x",
        "io.cri-o.y": "x",
        "io.cri-containerd.kind": "x",
        "containerd.io/restart.loguri": "binary:///x",
        "io.axil.log": "x",
        "maintainer": "me",
    }})))
    .unwrap();
    assert_eq!(found.labels.keys().collect::<Vec<_>>(), ["maintainer"]);
    assert_eq!(found.dropped_labels, 5);
}

#[test]
fn the_platform_must_fit_when_it_is_stated() {
    let amd64 = Platform::new("linux", "amd64", None);
    assert!(
        parse(&config(json!({})))
            .unwrap()
            .check_platform(&amd64)
            .is_ok()
    );
    let arm64 = Platform::new("linux", "arm64", None);
    let error = parse(&config(json!({})))
        .unwrap()
        .check_platform(&arm64)
        .unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    assert!(error.to_string().contains("linux/amd64"), "{error}");
    assert!(
        ImageConfig::parse(b"{}", 0)
            .unwrap()
            .check_platform(&arm64)
            .is_ok()
    );
}

fn id(id: u32) -> Option<Account> {
    Some(Account::Id(id))
}

fn name(name: &str) -> Option<Account> {
    Some(Account::Name(name.into()))
}

#[test]
fn users_are_numbers_or_names() {
    let check = |text: &str, user: Option<Account>, group: Option<Account>| {
        assert_eq!(
            ImageUser::parse(text),
            Ok(ImageUser { user, group }),
            "{text}"
        );
    };
    check("", None, None);
    check("0", id(0), None);
    check("1000:1000", id(1000), id(1000));
    check("2147483647", id(2_147_483_647), None);
    check("007", id(7), None);
    check("nginx", name("nginx"), None);
    check("nginx:www-data", name("nginx"), name("www-data"));
    check("1000:", id(1000), None);
    check(":100", None, id(100));
    check("0x0", name("0x0"), None);
    assert_eq!(ImageUser::parse("5:x").unwrap().uid(), Some(5));
    assert_eq!(ImageUser::parse("x:5").unwrap().username(), Some("x"));
    assert_eq!(ImageUser::parse("x:5").unwrap().uid(), None);
}

#[test]
fn cve_2024_40635_numbers_out_of_range_are_never_names() {
    let long = "9".repeat(1 << 16);
    for text in [
        "2147483648",
        "4294967296",
        "4294967295",
        "18446744073709551616",
        &long,
        "-1",
        "+0",
        "+1",
        "-0",
        "0:2147483648",
        "x:-1",
        "1000:4294967296",
    ] {
        let error = ImageUser::parse(text).expect_err(text);
        assert!(error.to_string().contains("2147483647"), "{error}");
        assert!(error.to_string().len() < 300);
    }
    for text in [
        "a b",
        "a\nroot",
        "a:b:c",
        "a/b",
        "\0",
        " 0",
        "0 ",
        "+x",
        &"n".repeat(257),
    ] {
        assert!(ImageUser::parse(text).is_err(), "{text:?} was accepted");
    }
}

proptest! {
    #[test]
    fn noise_never_panics(text in "\\PC*") {
        let _ = ImageConfig::parse(text.as_bytes(), 1);
        let _ = ImageUser::parse(&text);
    }

    #[test]
    fn digits_are_an_id_or_an_error(text in "[0-9]{1,24}") {
        if let Ok(user) = ImageUser::parse(&text) {
            prop_assert_eq!(user.uid().map(u64::from), text.parse::<u64>().ok());
        }
    }
}
