//! Layouts of `certs.d` and files that are wrong.

use std::fs;

use proptest::prelude::*;

use super::*;

struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, path: &str, text: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn load(&self, host: &str) -> Result<Vec<HostConfig>, HostsError> {
        load(&[self.0.path().join("absent"), self.0.path().into()], host)
    }

    fn urls(&self, host: &str) -> Vec<String> {
        let hosts = self.load(host).unwrap_or_else(|error| panic!("{error}"));
        hosts
            .iter()
            .map(|host| format!("{}{}", host.origin, host.path))
            .collect()
    }
}

#[test]
fn without_files_the_host_itself_is_asked() {
    let layout = Layout::new();
    assert_eq!(
        layout.urls("docker.io"),
        ["https://registry-1.docker.io/v2"]
    );
    assert_eq!(layout.urls("h.x"), ["https://h.x/v2"]);
    assert_eq!(layout.urls("h.x:5000"), ["https://h.x:5000/v2"]);
    assert_eq!(layout.urls("localhost:5000"), ["http://localhost:5000/v2"]);
    assert_eq!(layout.urls("127.0.0.1"), ["http://127.0.0.1/v2"]);
    assert_eq!(layout.urls("[::1]:5000"), ["http://[::1]:5000/v2"]);
    assert_eq!(layout.urls("[::1]"), ["http://[::1]/v2"]);
    assert_eq!(layout.urls("localhost:443"), ["https://localhost/v2"]);
    let host = layout.load("h.x:443").unwrap().remove(0);
    assert_eq!(host.namespace, None);
    assert!(host.trusted && host.pull && host.resolve);
}

#[test]
fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
    let layout = Layout::new();
    layout.put(
        "docker.io/hosts.toml",
        r#"
        server = "https://upstream.x"
        [host."https://z.mirror"]
          capabilities = ["pull"]
          skip_verify = true
          dial_timeout = "1m30s500ms"
          [host."https://z.mirror".header]
            x-key = "one"
            x-keys = ["a", "b"]
        [host."http://a.mirror:5000/prefix"]
          ca = "ca.pem"
          client = [["c.pem", "k.pem"], ["both.pem", ""]]
        [host."m.mirror/v2/proxy"]
          override_path = true
          capabilities = ["resolve", "push"]
          ca = ["/abs/a.pem", "b.pem"]
        [host."https://upstream.x/other"]
        "#,
    );
    assert_eq!(
        layout.urls("docker.io"),
        [
            "https://z.mirror/v2",
            "http://a.mirror:5000/prefix/v2",
            "https://m.mirror/v2/proxy",
            "https://upstream.x/other/v2",
            "https://upstream.x/v2",
        ]
    );
    let hosts = layout.load("docker.io").unwrap();
    assert!(hosts[0].pull && !hosts[0].resolve && hosts[0].tls.skip_verify);
    assert_eq!(hosts[0].dial_timeout, Some(Duration::from_millis(90_500)));
    assert_eq!(hosts[0].headers["x-key"], "one");
    assert_eq!(hosts[0].headers.get_all("x-keys").iter().count(), 2);
    assert!(hosts[0].headers["x-key"].is_sensitive());
    let directory = layout.0.path().join("docker.io");
    assert_eq!(hosts[1].tls.authorities, [directory.join("ca.pem")]);
    assert_eq!(
        hosts[1].tls.clients,
        [
            (directory.join("c.pem"), directory.join("k.pem")),
            (directory.join("both.pem"), directory.join("both.pem")),
        ]
    );
    assert_eq!(hosts[2].tls.authorities[0], Path::new("/abs/a.pem"));
    assert!(hosts[2].resolve && !hosts[2].pull);
    // Only the registry itself may see credentials; others learn whose content is meant.
    let trusted: Vec<_> = hosts.iter().map(|host| host.trusted).collect();
    assert_eq!(trusted, [false, false, false, true, true]);
    assert!(
        hosts
            .iter()
            .all(|h| h.namespace.as_deref() == Some("docker.io"))
    );
}

#[test]
fn a_table_for_the_server_itself_is_about_the_server() {
    let layout = Layout::new();
    let own = "[host.\"https://h.x\"]\ncapabilities = [\"pull\"]\nca = \"ca.pem\"\n";
    let mirror = "[host.\"https://m.x\"]\n";
    layout.put("h.x/hosts.toml", own);
    layout.put(
        "first.x/hosts.toml",
        &format!("server = \"https://h.x\"\n{own}{mirror}"),
    );
    layout.put(
        "last.x/hosts.toml",
        &format!("server = \"https://h.x\"\n{mirror}{own}"),
    );
    layout.put(
        "said.x/hosts.toml",
        &format!("server = \"https://h.x\"\nskip_verify = true\n{own}"),
    );
    let (h, m) = ("https://h.x/v2", "https://m.x/v2");
    assert_eq!(layout.urls("h.x"), [h]);
    assert_eq!(layout.urls("first.x"), [h, m, h]);
    assert_eq!(layout.urls("last.x"), [m, h]);
    assert_eq!(layout.urls("said.x"), [h, h]);
    for (name, authorities) in [("h.x", 1), ("first.x", 1), ("last.x", 1), ("said.x", 0)] {
        let server = layout.load(name).unwrap().pop().unwrap();
        assert!(server.trusted && server.pull && server.resolve, "{name}");
        assert_eq!(server.tls.authorities.len(), authorities, "{name}");
    }
}

#[test]
fn directories_are_searched_in_containerds_order() {
    let layout = Layout::new();
    let file = |host: &str| format!("server = \"https://{host}\"");
    layout
        .put("_default/hosts.toml", "[host.\"https://default.mirror\"]")
        .put("h.x:5000/hosts.toml", &file("colon"))
        .put("h.x_5000_/hosts.toml", &file("underscore"))
        .put("i.x:5000/hosts.toml", &file("colon"));
    assert_eq!(layout.urls("h.x:5000"), ["https://underscore/v2"]);
    assert_eq!(layout.urls("i.x:5000"), ["https://colon/v2"]);
    assert_eq!(
        layout.urls("j.x"),
        ["https://default.mirror/v2", "https://j.x/v2"]
    );
}

#[test]
fn dockers_certificate_files_are_found() {
    let layout = Layout::new();
    layout
        .put("localhost:5000/ca.crt", "")
        .put("localhost:5000/client.cert", "")
        .put("localhost:5000/client.key", "");
    assert_eq!(layout.urls("localhost:5000"), ["https://localhost:5000/v2"]);
    let tls = &layout.load("localhost:5000").unwrap()[0].tls;
    assert_eq!(tls.authorities.len(), 1);
    assert!(tls.clients[0].1.ends_with("client.key"));
}

#[test]
fn wrong_files_are_errors_that_name_file_and_key() {
    let cases = [
        ("not toml", "="),
        ("sever = \"https://x\"", "sever"),
        ("[host.\"https://m.x\"]\ncapabilites = []", "capabilites"),
        ("[host.\"https://m.x\"]\ncapabilities = [\"pul\"]", "pul"),
        ("server = 5", "server"),
        ("host = 5", "host"),
        ("server = \"ftp://x\"", "server"),
        ("server = \"https://me:hunter2@x\"", "server"),
        ("[host.\"https://me:hunter2@m.x\"]", "m.x"),
        (
            "[host.\"https://m.x\"]\ndial_timeout = \"5\"",
            "dial_timeout",
        ),
        (
            "[host.\"https://m.x\"]\ndial_timeout = \"0s\"",
            "dial_timeout",
        ),
        (
            "[host.\"https://m.x\"]\ndial_timeout = \"20000h\"",
            "dial_timeout",
        ),
        (
            "[host.\"https://m.x\".header]\n\"a b\" = \"hunter2\"",
            "a b",
        ),
        (
            "[host.\"https://m.x\".header]\nx = \"hunter2\\n\"",
            "header.x",
        ),
        ("[host.\"https://m.x\".header]\nx = 5", "header.x"),
        ("ca = 5", "ca"),
    ];
    for (text, words) in cases {
        let layout = Layout::new();
        layout.put("h.x/hosts.toml", text);
        let error = layout.load("h.x").expect_err(text);
        let message = crate::domain::failure::chain(&error);
        assert!(message.contains("h.x/hosts.toml"), "{message}");
        if words != "ca" {
            assert!(message.contains(words), "{text}: {message}");
        }
        assert!(!message.contains("hunter2"), "{message}");
    }
    let layout = Layout::new();
    layout.put("h.x/hosts.toml", &"#".repeat((1 << 20) + 1));
    assert!(layout.load("h.x").is_err());
}

proptest! {
    #[test]
    fn noise_never_panics(text in "\\PC*") {
        let _ = parse(&text, Path::new("/x/hosts.toml"), "h.x");
        let _ = parse_duration(&text);
    }
}
