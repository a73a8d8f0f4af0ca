//! The operator's rules about images, at each of the three doors: pull, import, use.

use axil_integration::build::{ContainerBuilder, PodBuilder};
use axil_integration::guard::Need;
use axil_integration::images::{Image, busybox};
use axil_integration::lab::Lab;
use axil_integration::node::NodeOptions;
use axil_integration::registry::{Access, PASSWORD, RegistryOptions, USER};
use axil_integration::signing::SigningKey;
use axil_integration::{http, metrics};
use axil_proto::cri::AuthConfig;
use tonic::Code;

const REAL: &[Need] = &[
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("openssl"),
    Need::Program("htpasswd"),
];

fn options(lines: &[String]) -> NodeOptions {
    NodeOptions {
        images: lines.to_vec(),
        ..NodeOptions::default()
    }
}

fn in_namespace(pod: PodBuilder, namespace: &str) -> PodBuilder {
    pod.with(|config| {
        if let Some(metadata) = &mut config.metadata {
            metadata.namespace = namespace.to_owned();
        }
    })
}

#[test]
fn privileged_a_refused_pull_names_the_rule_and_asks_nobody() {
    let Some(lab) = Lab::open() else { return };
    let address = lab.shelf().address();
    let rules = format!(
        "policy.rules = [{{ name = \"team-only\", images = [\"{address}/team\"], action = \"allow\" }}, \
         {{ name = \"none-of-these\", images = [\"{address}/other\", \"docker.io\"], action = \"deny\" }}]"
    );
    let node = lab.node_with(options(&[rules, "policy.default = \"deny\"".to_owned()]));
    let image = busybox::image().unwrap();
    let allowed = lab.shelf().put("team/app", "1", &image);
    let denied = lab.shelf().put("other/app", "1", &image);
    let unlisted = lab.shelf().put("teams/app", "1", &image);
    for (reference, words) in [
        (denied.as_str(), "rule \"none-of-these\""),
        ("docker.io/library/nginx", "rule \"none-of-these\""),
        ("nginx", "rule \"none-of-these\""),
        (unlisted.as_str(), "default is \"deny\""),
    ] {
        let status = node.pull(reference).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains(words), "{words}: {status}");
    }
    assert!(lab.shelf().requests().is_empty());
    node.pull(&allowed).unwrap();
    let text = http::get("127.0.0.1", node.metrics_port(), "/metrics").unwrap();
    let samples = metrics::parse(&text.body).unwrap();
    let refused = metrics::sum(&samples, "axil_image_refusals_total", &[("door", "pull")]);
    assert!((refused - 4.0).abs() < f64::EPSILON, "{refused}");
    lab.close(node);
}

#[test]
fn privileged_what_one_namespace_may_use_another_may_not_although_it_is_here() {
    let Some(lab) = Lab::open() else { return };
    let address = lab.shelf().address();
    let rules = format!(
        "policy.rules = [{{ name = \"dev-only\", images = [\"{address}\"], namespaces = [\"dev\"], \
         action = \"allow\" }}, {{ name = \"keep-out\", images = [\"{address}\"], action = \"deny\" }}]"
    );
    let node = lab.node_with(options(&[rules]));
    let image = lab.busybox();
    let dev = in_namespace(lab.pod("dev"), "dev");
    let prod = in_namespace(lab.pod("prod"), "prod");
    for pod in [None, Some(prod.build())] {
        let status = node.pull_for(&image, None, pod.as_ref()).unwrap_err();
        assert!(status.message().contains("\"keep-out\""), "{status}");
    }
    let id = node.pull_for(&image, None, Some(&dev.build())).unwrap();
    let (dev, prod) = (node.up(&dev).unwrap(), node.up(&prod).unwrap());
    for name in [&image, &id] {
        let container = ContainerBuilder::new("c", name).shell("exit 0");
        let status = node.create_in(&prod, &container).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(
            status.message().contains("\"keep-out\"") && status.message().contains("\"prod\""),
            "{status}"
        );
    }
    let container = ContainerBuilder::new("c", &id).shell("exit 3");
    let ran = node.run_in(&dev, &container).unwrap();
    assert_eq!(node.exit_of(&ran).exit_code, 3);
    lab.close(node);
}

#[test]
fn privileged_an_archive_brings_nothing_that_a_pull_may_not() {
    let Some(lab) = Lab::open() else { return };
    let rules =
        "policy.rules = [{ name = \"no-test\", images = [\"*.sample.test\"], action = \"deny\" }]";
    let node = lab.node_with(options(&[rules.to_owned()]));
    let image = lab.busybox();
    node.pull(&image).unwrap();
    let archive = node.operate(&["images", "export", &image], &[]);
    assert!(archive.status.success(), "{}", archive.text());
    node.remove_image(&image).unwrap();
    let import = |name: &str| node.operate(&["images", "import", "--name", name], &archive.stdout);
    let done = import("registry.sample.test/app:1");
    assert!(!done.status.success());
    assert!(done.text().contains("rule \"no-test\""), "{}", done.text());
    assert_eq!(node.list_images().unwrap(), []);
    let done = import("registry.example/app:1");
    assert!(done.status.success(), "{}", done.text());
    lab.close(node);
}

#[test]
fn privileged_signatures_are_checked_at_a_registry_with_tls_and_an_account() {
    let Some(lab) = Lab::open_needing(REAL) else {
        return;
    };
    let registry = lab.registry(RegistryOptions {
        access: Access::Basic,
        tls: true,
    });
    lab.hosts()
        .trust(registry.address(), &registry.url(), &registry.authority())
        .unwrap();
    let key = SigningKey::make(&lab.unused("release")).unwrap();
    let stranger = SigningKey::make(&lab.unused("stranger")).unwrap();
    let image = busybox::image().unwrap();
    let push =
        |image: &Image, repository, tag: &str| registry.push(image, repository, tag).unwrap();
    let tag = SigningKey::tag(&image);
    let signed = push(&image, "signed/app", "1");
    push(&key.sign(&image).unwrap(), "signed/app", &tag);
    let foreign = push(&image, "foreign/app", "1");
    push(&stranger.sign(&image).unwrap(), "foreign/app", &tag);
    let bare = push(&image, "bare/app", "1");
    let free = push(&image, "free/app", "1");
    let address = registry.address();
    let node = lab.node_with(options(&[
        format!("policy.signers = {{ release = {{ keys = [{:?}] }} }}", key.public()),
        format!(
            "policy.rules = [{{ name = \"free\", images = [\"{address}/free\"], action = \"allow\" }}, \
             {{ name = \"ours\", images = [\"{address}\"], action = \"signed\", signers = [\"release\"] }}]"
        ),
    ]));
    let account = || {
        Some(AuthConfig {
            username: USER.to_owned(),
            password: PASSWORD.to_owned(),
            ..AuthConfig::default()
        })
    };
    for reference in [&bare, &foreign] {
        let status = node.pull_with(reference, account()).unwrap_err();
        // The kubelet knows it by code and first word.
        assert_eq!(status.code(), Code::Unknown, "{status}");
        let message = status.message();
        assert!(
            message.starts_with("SignatureValidationFailed: "),
            "{status}"
        );
        assert!(
            message.contains("rule \"ours\"") && message.contains(&image.manifest),
            "{status}"
        );
    }
    assert_eq!(node.list_images().unwrap(), []);
    // It came by a name that needs no signature: then it is no use by one that does.
    node.pull_with(&free, account()).unwrap();
    let pod = node.up(&lab.pod("p")).unwrap();
    let container = |name: &str| ContainerBuilder::new("c", name).shell("exit 4");
    node.pull_with(&bare, account()).unwrap_err();
    let status = node.create_in(&pod, &container(&bare)).unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    node.remove_image(&free).unwrap();
    let id = node.pull_with(&signed, account()).unwrap();
    for name in [&signed, &id] {
        let ran = node.run_in(&pod, &container(name)).unwrap();
        assert_eq!(node.exit_of(&ran).exit_code, 4);
        node.remove(&ran).unwrap();
    }
    // Without the account there is neither image nor signature.
    let status = node.pull(&signed).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    lab.close(node);
}

#[test]
fn privileged_an_image_that_came_before_the_rule_needs_a_pull_before_it_is_used() {
    let Some(lab) = Lab::open_needing(&[Need::Program("openssl")]) else {
        return;
    };
    let key = SigningKey::make(&lab.unused("release")).unwrap();
    let image = lab.busybox();
    let mut node = lab.node();
    node.pull(&image).unwrap();
    node.term();
    let config = lab.dir().join("config.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    let rules = format!(
        "[images]\npolicy.signers = {{ release = {{ keys = [{:?}] }} }}\n\
         policy.rules = [{{ name = \"signed\", images = [\"*\"], action = \"signed\", signers = [\"release\"] }}]\n",
        key.public()
    );
    std::fs::write(&config, before.replacen("[images]\n", &rules, 1)).unwrap();
    node.launch(None).unwrap();
    let pod = node.up(&lab.pod("p")).unwrap();
    let container = ContainerBuilder::new("c", &image).shell("exit 5");
    let status = node.create_in(&pod, &container).unwrap_err();
    assert_eq!(status.code(), Code::Unknown, "{status}");
    assert!(status.message().contains("pull it again"), "{status}");
    let busybox = busybox::image().unwrap();
    lab.shelf().put(
        "axil/busybox",
        &SigningKey::tag(&busybox),
        &key.sign(&busybox).unwrap(),
    );
    node.pull(&image).unwrap();
    let ran = node.run_in(&pod, &container).unwrap();
    assert_eq!(node.exit_of(&ran).exit_code, 5);
    lab.close(node);
}
