//! Chains of stand-in plugins written as shell scripts: order, chaining, faults, clean ends.

use std::{fs, os::unix::fs::PermissionsExt};

use super::*;
use crate::error::{ErrorClass, chain_text};

const RESULT: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}],"dns":{}}"#;

struct Bench {
    dir: tempfile::TempDir,
    plugins: Plugins,
}

impl Bench {
    /// Each script runs with `$LOG` set to a file of the bench.
    fn new(scripts: &[(&str, &str)]) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        for (name, script) in scripts {
            let path = dir.path().join(name);
            let log = dir.path().join("log");
            let text = format!("#!/bin/sh\nLOG={}\n{script}\n", log.display());
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let plugins = Plugins {
            bin_dirs: vec![dir.path().into()],
            timeout: Duration::from_secs(20),
        };
        Bench { dir, plugins }
    }

    fn list(&self, version: &str, kinds: &[&str]) -> Conflist {
        let plugins: Vec<_> = kinds
            .iter()
            .map(|kind| json!({"type": kind, "capabilities": {"portMappings": true}}))
            .collect();
        let value = json!({"cniVersion": version, "name": "net", "plugins": plugins});
        Conflist::parse(Path::new("x.conflist"), value).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    async fn add(&self, kinds: &[&str]) -> Result<CniResult, NetworkError> {
        let list = self.list("1.0.0", kinds);
        Chain {
            list: &list,
            plugins: &self.plugins,
        }
        .add(&attachment(), &mut Vec::new())
        .await
    }

    async fn add_fault(&self) -> (ErrorClass, String) {
        let error = self.add(&["x"]).await.expect_err("a fault");
        (error.class(), chain_text(&error))
    }
}

fn attachment() -> Attachment {
    Attachment {
        container_id: "pod1".into(),
        netns: "/run/netns/pod1".into(),
        args: "IgnoreUnknown=1".into(),
        capabilities: json!({"portMappings": [1], "dns": {}})
            .as_object()
            .unwrap()
            .clone(),
    }
}

/// Whether any process has this word in its command line.
fn somebody_runs(word: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|part| part == word.as_bytes())
    })
}

#[tokio::test]
async fn results_are_chained_and_delete_goes_backwards_past_errors() {
    let echo = format!(
        "cat >> $LOG; echo \" $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS\" >> $LOG; echo '{RESULT}'"
    );
    let broken = r#"echo "two $CNI_COMMAND" >> $LOG; cat > /dev/null; if [ $CNI_COMMAND = DEL ]; then echo '{"code": 7, "msg": "no"}'; exit 1; fi; echo '{"cniVersion":"0.4.0","ips":[{"address":"fd00::2/64","version":"6"}]}'"#;
    let bench = Bench::new(&[("one", echo.as_str()), ("two", broken)]);
    let list = bench.list("1.0.0", &["two", "one"]);
    let chain = Chain {
        list: &list,
        plugins: &bench.plugins,
    };
    let mut timings = Vec::new();
    let result = chain.add(&attachment(), &mut timings).await.unwrap();
    assert_eq!(
        timings
            .iter()
            .map(|(step, _)| step.as_str())
            .collect::<Vec<_>>(),
        ["two", "one"]
    );
    let log = bench.log();
    assert!(
        log.contains(r#""prevResult":{"cniVersion":"1.0.0","ips":[{"address":"fd00::2/64"}]}"#),
        "{log}"
    );
    assert!(
        log.contains(r#""runtimeConfig":{"portMappings":[1]}"#),
        "{log}"
    );
    assert!(
        log.contains(" ADD pod1 /run/netns/pod1 eth0 IgnoreUnknown=1"),
        "{log}"
    );
    let errors = chain.delete(&attachment(), Some(&result)).await;
    assert_eq!(errors.len(), 1);
    let log = bench.log();
    assert!(
        log.find(" DEL pod1").unwrap() < log.find("two DEL").unwrap(),
        "{log}"
    );
    chain.check(&attachment(), &result).await.unwrap();
    assert!(bench.log().contains(" CHECK pod1"));
}

#[tokio::test]
async fn the_environment_is_clean() {
    let bench = Bench::new(&[("x", &format!("env > $LOG; echo '{RESULT}'"))]);
    bench.add(&["x"]).await.unwrap();
    for line in bench.log().lines() {
        // The shell itself sets PWD, SHLVL, OLDPWD and _.
        let known = ["PATH=", "CNI_", "PWD=/", "SHLVL=", "_=", "OLDPWD="];
        assert!(known.iter().any(|start| line.starts_with(start)), "{line}");
    }
}

#[tokio::test]
async fn faults_are_told_by_class_and_text() {
    let check = async |script: &str, class: ErrorClass, part: &str| {
        let (found, text) = Bench::new(&[("x", script)]).add_fault().await;
        assert_eq!(found, class, "{text}");
        assert!(
            text.contains("network plugin x failed to ADD on network net"),
            "{text}"
        );
        assert!(text.contains(part), "{text}");
    };
    let internal = ErrorClass::Internal;
    check(
        r#"echo '{"code":11,"msg":"busy"}'; exit 1"#,
        ErrorClass::Unavailable,
        "busy (code 11)",
    )
    .await;
    check(
        r#"echo '{"code":100,"msg":"no","details":"why"}'"#,
        internal,
        "no (code 100): why",
    )
    .await;
    check("echo oops >&2; exit 3", internal, "oops").await;
    check("kill -9 $$", internal, "signal: 9").await;
    check("echo '{'", internal, "not JSON").await;
    check("true", internal, "not a CNI result").await;
    check(r#"echo '{"cniVersion":"7.0.0"}'"#, internal, "7.0.0").await;
    check("yes | head -c 1200000", internal, "more than 1048576 bytes").await;
    check("cat /dev/zero", internal, "more than 1048576 bytes").await;
    let many = r#"printf '{"ips":['; i=0; while [ $i -lt 9999 ]; do printf '{"address":"10.0.0.1/8"},'; i=$((i+1)); done; printf '{"address":"10.0.0.1/8"}]}'"#;
    check(many, internal, "10000 ips").await;
    let missing = Bench::new(&[]).add_fault().await;
    assert_eq!(missing.0, ErrorClass::FailedPrecondition);
    assert!(
        missing.1.contains("executable x is in none of"),
        "{}",
        missing.1
    );
}

#[tokio::test]
async fn a_gigabyte_on_standard_error_is_not_kept() {
    let script = format!("head -c 1073741824 /dev/zero >&2; echo '{RESULT}'");
    Bench::new(&[("x", &script)]).add(&["x"]).await.unwrap();
}

#[tokio::test]
async fn a_hanging_plugin_dies_with_its_children() {
    let mut bench = Bench::new(&[("x", "sleep 98765401 & sleep 98765402")]);
    bench.plugins.timeout = Duration::from_millis(300);
    let (class, text) = bench.add_fault().await;
    assert_eq!(class, ErrorClass::DeadlineExceeded);
    assert!(text.contains("did not end within 300ms"), "{text}");
    gone(&["98765401", "98765402"]).await;
}

#[tokio::test]
async fn a_dropped_call_kills_the_plugin_and_its_children() {
    let bench = Bench::new(&[("x", "sleep 98765403 & sleep 98765404")]);
    let call = bench.add(&["x"]);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), call)
            .await
            .is_err()
    );
    gone(&["98765403", "98765404"]).await;
}

#[tokio::test]
async fn a_child_that_keeps_the_pipes_is_not_waited_for() {
    let bench = Bench::new(&[("x", &format!("sleep 98765405 & echo '{RESULT}'"))]);
    let began = Instant::now();
    bench.add(&["x"]).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    gone(&["98765405"]).await;
}

/// A killed process leaves /proc a moment later.
async fn gone(words: &[&str]) {
    let began = Instant::now();
    while words.iter().any(|word| somebody_runs(word)) {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "still running: {words:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn status_and_gc_belong_to_1_1() {
    let bench = Bench::new(&[(
        "x",
        "echo $CNI_COMMAND $CNI_CONTAINERID >> $LOG; cat >> $LOG",
    )]);
    let keep = BTreeSet::from(["pod1".to_owned()]);
    for (version, expect) in [("1.0.0", false), ("1.1.0", true)] {
        let list = bench.list(version, &["x"]);
        let chain = Chain {
            list: &list,
            plugins: &bench.plugins,
        };
        chain.status().await.unwrap();
        assert!(chain.collect_garbage(&keep).await.is_empty());
        let log = bench.log();
        assert_eq!(log.contains("STATUS"), expect, "{log}");
        let valid = r#""cni.dev/valid-attachments":[{"containerID":"pod1","ifname":"eth0"}]"#;
        assert_eq!(log.contains("GC") && log.contains(valid), expect, "{log}");
    }
}
