//! Rules of the source tree that no compiler checks.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use axil_integration::binaries::workspace;

const CRATES: &[&str] = &[
    "proto",
    "daemon",
    "shim",
    "snapshotter",
    "cni",
    "runc-lite",
    "integration",
];

/// Words that name nothing; banned in the names of types and files.
const BANNED: &[&str] = &[
    "Manager", "Helper", "Util", "Common", "Inner", "Base", "Data", "Info", "Impl",
];

/// Every file below `dir` whose name ends with `end`.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let all = CRATES
        .iter()
        .flat_map(|name| files(&workspace().join(name), ".rs"));
    all.map(|path| (path.clone(), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn read(name: &str) -> String {
    let path = workspace().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Fails with all the findings at once.
#[track_caller]
fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn every_file_says_what_lives_in_it() {
    let bare = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "));
    none(
        "files without a header",
        &bare
            .map(|(path, _)| path.display().to_string())
            .collect::<Vec<_>>(),
    );
}

#[test]
fn the_domain_is_pure() {
    let impure = [
        "tokio::",
        "nix::",
        "rustix::",
        "std::fs",
        "TcpStream",
        "UdpSocket",
        "std::process",
        "std::thread",
        "SystemTime",
        "Instant::now",
        "tonic::",
        "prost::",
        "axil_proto::cri",
        "axil_proto::shim",
        "crate::engine",
        "crate::adapters",
        "crate::ports",
        "crate::cri",
    ];
    let mut found = Vec::new();
    for path in files(&workspace().join("daemon/src/domain"), ".rs") {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().starts_with("//"))
        {
            for word in impure.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    none("impure code in the domain", &found);
}

#[test]
fn crates_depend_only_downwards() {
    let allowed: &[(&str, &[&str])] = &[
        ("proto", &[]),
        ("snapshotter", &[]),
        ("cni", &[]),
        ("runc-lite", &[]),
        ("shim", &["axil-proto"]),
        ("daemon", &["axil-proto", "axil-snapshotter", "axil-cni"]),
    ];
    let ours = [
        "axil-proto",
        "axil-snapshotter",
        "axil-cni",
        "axild",
        "runc-lite",
        "axil-integration",
        "containerd-shim-axil-v1",
    ];
    let mut found = Vec::new();
    for (name, allowed) in allowed {
        let manifest = read(&format!("{name}/Cargo.toml"));
        let dependencies = manifest
            .split_once("[dependencies]")
            .map_or("", |(_, rest)| rest);
        for line in dependencies.lines() {
            let key = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if ours.contains(&key) && !allowed.contains(&key) {
                found.push(format!("{name} depends on {key}"));
            }
        }
    }
    none("edges against the drawing", &found);
}

#[test]
fn layers_of_the_daemon_do_not_call_upwards() {
    let forbidden: &[(&str, &[&str])] = &[
        (
            "daemon/src/engine",
            &[
                "crate::cri",
                "crate::adapters",
                "crate::app",
                "axil_proto::cri",
                "tonic::",
            ],
        ),
        (
            "daemon/src/ports",
            &["crate::engine", "crate::cri", "crate::adapters"],
        ),
        (
            "daemon/src/adapters",
            &["crate::engine::run", "crate::cri", "crate::app"],
        ),
        ("daemon/src/cri", &["crate::adapters", "crate::app"]),
    ];
    let mut found = Vec::new();
    for (dir, words) in forbidden {
        for path in files(&workspace().join(dir), ".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code: String = text
                .lines()
                .filter(|l| !l.trim().starts_with("//"))
                .collect();
            for word in words.iter().filter(|word| code.contains(**word)) {
                found.push(format!("{}: {word}", path.display()));
            }
        }
    }
    none("calls upwards", &found);
}

#[test]
fn names_say_something() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        // Wire names are the standard's.
        if path.starts_with(workspace().join("proto")) {
            continue;
        }
        for line in text.lines() {
            let mut words = line
                .trim_start()
                .split([' ', '<', '(', '{', ';', ':'])
                .skip_while(|w| w.starts_with("pub"));
            let Some(kind) = words.next() else { continue };
            if !matches!(kind, "struct" | "enum" | "trait" | "type") {
                continue;
            }
            let name = words.next().unwrap_or_default();
            if BANNED
                .iter()
                .any(|word| name.ends_with(word) || name == format!("{word}s"))
            {
                found.push(format!("{}: {name}", path.display()));
            }
        }
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        if BANNED
            .iter()
            .any(|word| stem == word.to_lowercase() || stem == format!("{}s", word.to_lowercase()))
        {
            found.push(path.display().to_string());
        }
        // Below tests/ a `mod.rs` is how cargo is told that a file is no test of its own.
        if stem == "mod" && !path.components().any(|part| part.as_os_str() == "tests") {
            found.push(format!("{}: use foo.rs beside foo/", path.display()));
        }
    }
    none("names that say nothing", &found);
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.starts_with("#[allow(") || line.starts_with("#![allow(") {
                // Generated code cannot be expected to trip each lint.
                if !text.contains("include_proto!") && !text.contains("include!(") {
                    found.push(format!("{}:{}", path.display(), number + 1));
                }
            }
        }
    }
    none("lints allowed", &found);
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        let in_sys =
            path.components().any(|part| part.as_os_str() == "sys") || path.ends_with("sys.rs");
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        if !in_sys
            && code
                .into_iter()
                .any(|line| line.contains("unsafe {") || line.contains("unsafe fn"))
        {
            found.push(path.display().to_string());
        }
    }
    // This file holds the words it looks for.
    found.retain(|path| !path.ends_with("tests/tidy.rs"));
    none("unsafe code outside sys", &found);
}

#[test]
fn every_path_in_the_architecture_exists() {
    let text = read("ARCHITECTURE.md");
    let tops: BTreeSet<&str> = CRATES
        .iter()
        .copied()
        .chain(["packaging", ".ci", ".config"])
        .collect();
    let mut found = Vec::new();
    for word in text.split(|c: char| c.is_whitespace() || "`()[]{},;|\"'".contains(c)) {
        let word = word.trim_end_matches(['.', ':', '/']);
        let Some((top, _)) = word.split_once('/') else {
            continue;
        };
        if tops.contains(top)
            && !word.contains('*')
            && !word.contains('<')
            && !word.contains('…')
            && !workspace().join(word).exists()
        {
            found.push(word.to_owned());
        }
    }
    none("paths that do not exist", &found);
}

#[test]
fn every_verb_that_changes_something_has_its_file() {
    let verbs = [
        "run_pod_sandbox",
        "stop_pod_sandbox",
        "remove_pod_sandbox",
        "create_container",
        "start_container",
        "stop_container",
        "remove_container",
        "exec_sync",
        "reopen_container_log",
        "pull_image",
        "update_container_resources",
        "update_pod_sandbox_resources",
        "update_runtime_config",
    ];
    let missing = verbs.iter().filter(|verb| {
        !workspace()
            .join(format!("daemon/src/engine/{verb}.rs"))
            .is_file()
    });
    none(
        "verbs without a file",
        &missing.map(|verb| (*verb).to_owned()).collect::<Vec<_>>(),
    );
}

#[test]
fn every_metric_is_used() {
    let text = read("daemon/src/metrics.rs");
    let table = text
        .split_once("pub struct Metrics {")
        .unwrap()
        .1
        .split_once('}')
        .unwrap()
        .0;
    let fields = table
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .map(|(name, _)| name);
    let unused = fields.filter(|&name| {
        let name = name.trim_start_matches("pub ").trim();
        let uses = [format!("self.{name}."), format!("self.{name}\n")];
        name != "registry" && !uses.iter().any(|used| text.contains(used))
    });
    none(
        "metrics nobody counts",
        &unused.map(str::to_owned).collect::<Vec<_>>(),
    );
}

/// The calls of the API, from the interface definition.
fn calls() -> BTreeSet<String> {
    let text = read("proto/api/cri.proto");
    let names = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_readme_lists_every_call_that_is_not_built() {
    let all = calls();
    assert_eq!(all.len(), 43);
    let mut unbuilt = BTreeSet::new();
    let call = "unimplemented(&self.metrics, \"";
    for path in files(&workspace().join("daemon/src/cri"), ".rs") {
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices(call) {
            let name = text[at + call.len()..]
                .split('"')
                .next()
                .unwrap_or_default();
            unbuilt.insert(name.to_owned());
        }
    }
    assert!(
        !unbuilt.is_empty(),
        "{call:?} is not how a call is refused any more"
    );
    let readme = read("README.md");
    let missing: Vec<_> = unbuilt
        .iter()
        .filter(|name| !readme.contains(&format!("`{name}`")))
        .cloned()
        .collect();
    none("calls that are not built and not in the README", &missing);
    let strange: Vec<_> = unbuilt.difference(&all).cloned().collect();
    none("names that are no calls", &strange);
}

#[test]
fn nothing_of_this_workplace_is_named() {
    let mut found = Vec::new();
    let roots = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "Cargo.toml",
        "deny.toml",
        "justfile",
        ".ci/run",
        "packaging/README.md",
        "packaging/axild.service",
        "packaging/config.toml",
        "packaging/crictl.yaml",
        "packaging/kubelet-config.yaml",
    ];
    let documents = roots
        .iter()
        .map(|name| workspace().join(name))
        .filter(|path| path.exists());
    let texts = documents.map(|path| (path.clone(), fs::read_to_string(&path).unwrap()));
    for (path, text) in texts.chain(sources()) {
        let words = [concat!("/wo", "rk/"), concat!("../sha", "red/")];
        if words.iter().any(|word| text.contains(word)) {
            found.push(path.display().to_string());
        }
    }
    none("files that name a path of one machine", &found);
}
