//! Conflists with Debian's plugins on a real kernel, and stand-in plugins that fail.

#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod support;

use std::{collections::BTreeSet, fs};

use axil_cni::{ErrorClass, NetworkError, NetworkKind};
use support::{Bed, ask, ask_from, on_a_host, privileged, refused, run, serve_tcp, tcp};

const PLUGINS: [&str; 3] = [
    "/usr/lib/cni/bridge",
    "/usr/lib/cni/host-local",
    "/usr/lib/cni/portmap",
];

fn debian(bed: &Bed, version: &str) {
    let ipam = bed.dir.path().join("ipam");
    let conf = format!(
        r#"{{"cniVersion": "{version}", "name": "test", "plugins": [
            {{"type": "bridge", "bridge": "cni-test", "isGateway": true, "ipMasq": true,
              "ipam": {{"type": "host-local", "dataDir": "{}", "ranges": [[{{"subnet": "10.66.0.0/24"}}]],
                        "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}, "snat": true}}]}}"#,
        ipam.display()
    );
    bed.conf("10-test.conflist", &conf);
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
}

fn ipam_files(bed: &Bed) -> Vec<String> {
    let mut files = bed.files(&bed.dir.path().join("ipam"));
    files.retain(|name| name.starts_with("10."));
    files
}

#[test]
fn privileged_debian_plugins_add_check_delete() {
    if !privileged(&PLUGINS) {
        return;
    }
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        on_a_host(move |mut bed| async move {
            debian(&bed, version);
            let network = bed.network();
            network.status().await.unwrap();
            let described = network.describe();
            assert_eq!(
                (described.kind, described.plugins.len()),
                (NetworkKind::Conflist, 2)
            );
            let pod = bed.pod(&[tcp(None, 8080, 80)]);
            let neighbour = bed.pod(&[]);
            let got = network.up(&pod).await.unwrap();
            println!("{:?}", got.timings);
            let steps: Vec<_> = got.timings.iter().map(|(step, _)| step.as_str()).collect();
            assert_eq!(steps, ["loopback", "bridge", "portmap"]);
            assert_eq!(got.ips[0].to_string(), "10.66.0.2");
            network.up(&neighbour).await.unwrap();
            serve_tcp(&pod.netns, 80);
            ask("10.66.0.2:80").unwrap();
            ask("127.0.0.1:8080").unwrap();
            ask("10.66.0.1:8080").unwrap();
            ask_from(&neighbour.netns, "10.66.0.2:80").unwrap();
            ask_from(&pod.netns, "127.0.0.1:80").unwrap();
            // Not of the pod with a port: this portmap's CHECK looks for IPv6 rules it never made.
            network.check(&neighbour.id).await.unwrap();
            let again = network.up(&pod).await.unwrap();
            assert_eq!(again.ips, got.ips);
            // The configuration is not what it was, and neither is the process.
            fs::remove_file(bed.options.conf_dir.join("10-test.conflist")).unwrap();
            let network = bed.network();
            assert_eq!(network.attached().len(), 2);
            for _ in 0..2 {
                network.down(&pod).await.unwrap();
                network.down(&neighbour).await.unwrap();
            }
            refused(ask("127.0.0.1:8080"));
            assert_eq!(ipam_files(&bed), Vec::<String>::new());
            bed.assert_clean(&network);
        });
    }
}

#[test]
fn privileged_delete_frees_the_address_of_a_vanished_namespace() {
    if !privileged(&PLUGINS) {
        return;
    }
    on_a_host(async |mut bed| {
        debian(&bed, "1.0.0");
        let network = bed.network();
        let (gone, unmounted) = (bed.pod(&[tcp(None, 81, 80)]), bed.pod(&[]));
        for pod in [&gone, &unmounted] {
            network.up(pod).await.unwrap();
            axil_cni::netns::remove(&pod.netns).unwrap();
        }
        fs::write(&unmounted.netns, "").unwrap();
        assert_eq!(ipam_files(&bed).len(), 2);
        network.down(&gone).await.unwrap();
        network.down(&unmounted).await.unwrap();
        assert_eq!(ipam_files(&bed), Vec::<String>::new());
        assert_eq!(network.attached(), Vec::<String>::new());
        assert!(!run("iptables-save -t nat").contains("dport 81"));
    });
}

#[test]
fn privileged_a_failing_plugin_is_undone_by_del() {
    if !privileged(&PLUGINS) {
        return;
    }
    on_a_host(async |mut bed| {
        let ipam = bed.dir.path().join("ipam");
        let log = bed.dir.path().join("log");
        let conf = format!(
            r#"{{"cniVersion": "1.0.0", "name": "test", "plugins": [
                {{"type": "bridge", "bridge": "cni-test", "ipam": {{"type": "host-local",
                  "dataDir": "{}", "subnet": "10.66.0.0/24"}}}}, {{"type": "fault"}}]}}"#,
            ipam.display()
        );
        bed.conf("10-test.conflist", &conf);
        let mut options = bed.options.clone();
        options.plugin_timeout = std::time::Duration::from_secs(1);
        let network = axil_cni::Network::new(options).unwrap();
        let faults = [
            (
                r#"echo '{"code": 11, "msg": "busy"}'; exit 1"#,
                ErrorClass::Unavailable,
            ),
            (
                "sleep 98765501 & sleep 98765502",
                ErrorClass::DeadlineExceeded,
            ),
            ("echo garbage", ErrorClass::Internal),
            ("cat /dev/zero", ErrorClass::Internal),
            (r#"echo '{"cniVersion": "0.9.9"}'"#, ErrorClass::Internal),
            (r#"echo '{"cniVersion": "1.0.0"}'"#, ErrorClass::Internal),
        ];
        for (script, class) in faults {
            let quiet = format!(
                "echo $CNI_COMMAND >> {}; [ $CNI_COMMAND = ADD ] || exit 0; cat > /dev/null; {script}",
                log.display()
            );
            bed.plugin("fault", &quiet);
            let pod = bed.pod(&[]);
            let error = network.up(&pod).await.unwrap_err();
            assert_eq!(error.class(), class, "{script}: {error:?}");
            assert_eq!(fs::read_to_string(&log).unwrap(), "ADD\nDEL\n", "{script}");
            fs::remove_file(&log).unwrap();
            assert_eq!(ipam_files(&bed), Vec::<String>::new(), "{script}");
            bed.assert_clean(&network);
        }
    });
}

#[test]
fn privileged_an_incomplete_undo_stays_listed_until_down_works() {
    if !privileged(&[]) {
        return;
    }
    on_a_host(async |mut bed| {
        bed.conf(
            "x.conflist",
            r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "fault"}]}"#,
        );
        bed.plugin("fault", "exit 1");
        let network = bed.network();
        let pod = bed.pod(&[]);
        let error = network.up(&pod).await.unwrap_err();
        assert!(
            matches!(&error, NetworkError::UndoIncomplete { left, .. } if left.len() == 1),
            "{error:?}"
        );
        assert_eq!(network.attached(), std::slice::from_ref(&pod.id));
        assert_eq!(network.down(&pod).await.unwrap_err().len(), 1);
        // The next daemon knows too.
        let network = bed.network();
        assert_eq!(network.attached(), std::slice::from_ref(&pod.id));
        bed.plugin("fault", "exit 0");
        network.down(&pod).await.unwrap();
        bed.assert_clean(&network);
    });
}

#[test]
fn privileged_readiness_names_what_is_wrong() {
    if !privileged(&PLUGINS) {
        return;
    }
    on_a_host(async |mut bed| {
        let pod = bed.pod(&[]);
        let network = bed.network();
        bed.conf(
            "10-a.conflist",
            r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "../sh"}]}"#,
        );
        let error = network.status().await.unwrap_err();
        assert_eq!(error.reason, "NetworkConfigInvalid");
        assert!(
            error.message.contains("plugins[0].type") && error.message.contains("../sh"),
            "{error}"
        );
        assert_eq!(network.describe().skipped.len(), 1);
        assert_eq!(
            network.up(&pod).await.unwrap_err().class(),
            ErrorClass::FailedPrecondition
        );
        bed.conf(
            "10-a.conflist",
            r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "absent"}]}"#,
        );
        assert_eq!(
            network.status().await.unwrap_err().reason,
            "NetworkPluginMissing"
        );
        bed.conf(
            "10-a.conflist",
            r#"{"cniVersion": "1.1.0", "name": "x", "plugins": [{"type": "bridge"}]}"#,
        );
        assert_eq!(
            network.status().await.unwrap_err().reason,
            "NetworkPluginVersion"
        );
        bed.plugin("new", r#"[ $CNI_COMMAND = STATUS ] && echo '{"code": 50, "msg": "warming up"}' && exit 1; echo '{"supportedVersions": ["1.1.0"]}'"#);
        bed.conf(
            "10-a.conflist",
            r#"{"cniVersion": "1.1.0", "name": "x", "plugins": [{"type": "new"}]}"#,
        );
        let error = network.status().await.unwrap_err();
        assert!(
            error.reason == "NetworkPluginNotReady" && error.message.contains("warming up"),
            "{error}"
        );
        fs::remove_file(bed.options.conf_dir.join("10-a.conflist")).unwrap();
        bed.options.builtin.enabled = false;
        let error = bed.network().status().await.unwrap_err();
        assert_eq!(error.reason, "NetworkNotConfigured");
        assert_eq!(network.attached(), Vec::<String>::new());
    });
}

#[test]
fn privileged_garbage_is_deleted_and_gc_is_run() {
    if !privileged(&[]) {
        return;
    }
    on_a_host(async |mut bed| {
        let log = bed.dir.path().join("log");
        let script = format!(
            r#"printf "$CNI_COMMAND $CNI_CONTAINERID " >> {0}; if [ $CNI_COMMAND = GC ]; then cat >> {0}; else cat > /dev/null; fi; echo >> {0}; echo '{{"cniVersion": "1.1.0", "ips": [{{"address": "10.9.9.9/24"}}]}}'"#,
            log.display()
        );
        bed.plugin("note", &script);
        bed.conf(
            "x.conflist",
            r#"{"cniVersion": "1.1.0", "name": "x", "plugins": [{"type": "note"}]}"#,
        );
        let network = bed.network();
        let (keep, drop) = (bed.pod(&[]), bed.pod(&[]));
        network.up(&keep).await.unwrap();
        network.up(&drop).await.unwrap();
        let collected = network
            .collect_garbage(&BTreeSet::from([keep.id.clone()]))
            .await;
        assert!(collected.errors.is_empty());
        assert_eq!(collected.released, std::slice::from_ref(&drop.id));
        let log = fs::read_to_string(&log).unwrap();
        assert!(
            log.contains(&format!("DEL {}", drop.id)) && !log.contains(&format!("DEL {}", keep.id)),
            "{log}"
        );
        let valid = format!(
            r#""cni.dev/valid-attachments":[{{"containerID":"{}","ifname":"eth0"}}]"#,
            keep.id
        );
        assert!(log.contains(&valid), "{log}");
    });
}

/// A daemon killed during ADD: its plugin is ended before DEL, so that it cannot finish late.
#[test]
fn privileged_an_interrupted_add_is_undone_by_the_next_daemon() {
    if !privileged(&[]) {
        return;
    }
    on_a_host(async |mut bed| {
        bed.conf(
            "x.conflist",
            r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "slow"}]}"#,
        );
        bed.plugin("slow", "exit 0");
        let pod = bed.pod(&[]);
        // What the killed daemon left: its record and its plugin.
        let network = bed.network();
        bed.plugin("slow", "[ $CNI_COMMAND = DEL ] || exec sleep 60");
        let up = network.up(&pod);
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(300), up)
                .await
                .is_err()
        );
        let mut left = std::process::Command::new("sleep")
            .arg("60")
            .env("CNI_CONTAINERID", &pod.id)
            .spawn()
            .unwrap();
        let network = bed.network();
        assert_eq!(network.attached(), std::slice::from_ref(&pod.id));
        network.down(&pod).await.unwrap();
        assert!(!left.wait().unwrap().success());
        bed.assert_clean(&network);
    });
}
