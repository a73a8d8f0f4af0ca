//! A web server reached at the pod's address and through a port of the node, with the built-in network and
//! with Debian's CNI plugins; plugins that fail and hang.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::eventually;
use axil_integration::faults::StandIn;
use axil_integration::guard::Need;
use axil_integration::http;
use axil_integration::images::nginx;
use axil_integration::lab::Lab;
use axil_integration::node::{Node, NodeOptions, Pod};
use axil_integration::registry::RegistryOptions;
use tonic::Code;

const WEB: &[Need] = &[
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("nginx"),
];
const PLUGINS: &[Need] = &[
    Need::Path("/usr/lib/cni/bridge"),
    Need::Path("/usr/lib/cni/host-local"),
    Need::Path("/usr/lib/cni/portmap"),
    Need::Program("iptables"),
];

/// Pushes the nginx image to a real registry, pulls it, runs it in a pod with a host port.
fn serve(lab: &Lab, node: &Node) -> Pod {
    let registry = lab.registry(RegistryOptions::default());
    let image = nginx::image().unwrap();
    assert!(image.layers.len() >= 5, "{} layers", image.layers.len());
    let reference = registry.push(&image, "web/nginx", "1").unwrap();
    node.pull(&reference).unwrap();
    let pod = node.up(&lab.pod("web").host_port(18080, 80)).unwrap();
    node.run_in(&pod, &ContainerBuilder::new("nginx", &reference))
        .unwrap();
    pod
}

fn addresses(node: &Node, pod: &Pod) -> Vec<String> {
    let network = node.pod_status(&pod.id).unwrap().network.unwrap();
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    std::iter::once(network.ip).chain(more).collect()
}

fn assert_serves(host: &str, port: u16) {
    eventually(&format!("{host} port {port} serves the page"), || {
        let answer = http::get(host, port, "/").ok()?;
        (answer.status == 200 && answer.body == nginx::PAGE).then_some(())
    });
}

fn assert_gone(host: &str, port: u16) {
    assert!(
        http::get(host, port, "/").is_err(),
        "{host} port {port} still answers"
    );
}

/// Debian's plugins: a bridge with addresses of host-local, kept below the lab, and portmap.
fn debian(lab: &Lab) -> String {
    let dir = lab.dir().join("ipam");
    format!(
        r#"{{"cniVersion":"1.0.0","name":"axil-test","plugins":[
{{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
"ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.77.0.0/24"}}]],
"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
{{"type":"portmap","capabilities":{{"portMappings":true}},"snat":true}}]}}"#,
        dir.display()
    )
}

/// A list of one stand-in plugin.
fn stand_in(lab: &Lab) -> (StandIn, NodeOptions) {
    let dir = lab.unused("plugins");
    let plugin = StandIn::cni_plugin(&dir, "stand-in").unwrap();
    let list = r#"{"cniVersion":"1.0.0","name":"axil-test","plugins":[{"type":"stand-in"}]}"#;
    let options = NodeOptions {
        conflist: Some(list.to_owned()),
        plugin_dirs: vec![dir],
        plugin_timeout: Some("2s"),
        ..NodeOptions::default()
    };
    (plugin, options)
}

#[test]
fn privileged_nginx_serves_with_the_built_in_network() {
    let Some(lab) = Lab::open_needing(WEB) else {
        return;
    };
    let node = lab.node();
    let pod = serve(&lab, &node);
    let addresses = addresses(&node, &pod);
    assert_eq!(addresses.len(), 2, "IPv4 and IPv6: {addresses:?}");
    for address in &addresses {
        assert_serves(address, 80);
    }
    assert_serves("127.0.0.1", 18080);
    node.stop_pod(&pod.id).unwrap();
    assert_gone(&addresses[0], 80);
    assert_gone("127.0.0.1", 18080);
    lab.close(node);
}

#[test]
fn privileged_nginx_serves_with_the_plugins_of_debian() {
    let needs: Vec<_> = WEB.iter().chain(PLUGINS).copied().collect();
    let Some(lab) = Lab::open_needing(&needs) else {
        return;
    };
    let node = lab.node_with(NodeOptions {
        conflist: Some(debian(&lab)),
        ..NodeOptions::default()
    });
    let pod = serve(&lab, &node);
    let addresses = addresses(&node, &pod);
    assert!(addresses[0].starts_with("10.77.0."), "{addresses:?}");
    assert_serves(&addresses[0], 80);
    assert_serves("127.0.0.1", 18080);
    node.stop_pod(&pod.id).unwrap();
    assert_gone(&addresses[0], 80);
    assert_gone("127.0.0.1", 18080);
    lab.close(node);
}

#[test]
fn privileged_pods_reach_each_other_and_the_node() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let server = node.up(&lab.pod("server")).unwrap();
    let script = "mkdir -p /www; echo found > /www/index.html; exec httpd -f -p 80 -h /www";
    node.run_in(&server, &ContainerBuilder::new("c", &image).shell(script))
        .unwrap();
    let client = node.up(&lab.pod("client")).unwrap();
    let id = node
        .run_in(
            &client,
            &ContainerBuilder::new("c", &image).shell("sleep 300"),
        )
        .unwrap();
    for address in addresses(&node, &server) {
        // Not wget: Debian's static busybox resolves names with libraries the image does not have.
        let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80 | tail -n 1");
        let seen = eventually("the server answers", || {
            Some(node.sh(&id, &ask)).filter(|text| !text.is_empty())
        });
        assert_eq!(seen, "found", "{address}");
    }
    assert_ne!(addresses(&node, &server), addresses(&node, &client));
    lab.close(node);
}

#[test]
fn privileged_an_address_is_free_again_after_the_pod() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..6 {
        let pod = node
            .up(&lab.pod(&format!("p{round}")).host_port(18080, 80))
            .unwrap();
        seen.insert(addresses(&node, &pod));
        node.stop_pod(&pod.id).unwrap();
        node.remove_pod(&pod.id).unwrap();
        lab.assert_clean(&node);
    }
    assert!(!seen.is_empty());
    lab.close(node);
}

#[test]
fn privileged_a_taken_host_port_is_refused() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let first = node.up(&lab.pod("first").host_port(18080, 80)).unwrap();
    let status = node
        .up(&lab.pod("second").host_port(18080, 80))
        .unwrap_err();
    assert!(status.message().contains("18080"), "{status}");
    node.stop_pod(&first.id).unwrap();
    node.up(&lab.pod("second").host_port(18080, 80)).unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_plugin_that_fails_is_named_and_the_next_try_works() {
    let Some(lab) = Lab::open() else { return };
    let (plugin, options) = stand_in(&lab);
    let node = lab.node_with(options);
    plugin.set("fail").unwrap();
    let status = node.up(&lab.pod("unlucky")).unwrap_err();
    for word in ["stand-in", "the plugin was told to fail"] {
        assert!(
            status.message().contains(word),
            "{word:?} is not in {status}"
        );
    }
    assert!(node.pods(None).unwrap().is_empty());
    assert!(
        plugin.calls().contains(&"DEL".to_owned()),
        "{:?}",
        plugin.calls()
    );
    lab.assert_clean(&node);
    plugin.set("work").unwrap();
    let pod = node.up(&lab.pod("unlucky")).unwrap();
    assert_eq!(addresses(&node, &pod), ["192.0.2.7"]);
    lab.close(node);
}

#[test]
fn privileged_a_plugin_that_hangs_is_killed_with_its_children() {
    let Some(lab) = Lab::open() else { return };
    let (plugin, options) = stand_in(&lab);
    let node = lab.node_with(options);
    plugin.set("hang").unwrap();
    let begun = Instant::now();
    let status = node.up(&lab.pod("stuck")).unwrap_err();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("stand-in"), "{status}");
    lab.assert_clean(&node);
    plugin.set("work").unwrap();
    node.up(&lab.pod("stuck")).unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_plugin_that_talks_nonsense_is_refused() {
    let Some(lab) = Lab::open() else { return };
    let (plugin, options) = stand_in(&lab);
    let node = lab.node_with(options);
    plugin.set("garbage").unwrap();
    let status = node.up(&lab.pod("puzzled")).unwrap_err();
    assert!(status.message().contains("stand-in"), "{status}");
    lab.assert_clean(&node);
    lab.close(node);
}

#[test]
fn privileged_a_pod_whose_release_failed_is_released_by_the_next_stop() {
    let Some(lab) = Lab::open() else { return };
    let (plugin, options) = stand_in(&lab);
    let node = lab.node_with(options);
    let pod = node.up(&lab.pod("sticky")).unwrap();
    plugin.set("fail-del").unwrap();
    let status = node.stop_pod(&pod.id).unwrap_err();
    assert!(status.message().contains("stand-in"), "{status}");
    plugin.set("work").unwrap();
    node.stop_pod(&pod.id).unwrap();
    node.remove_pod(&pod.id).unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_container_is_removed_while_its_pod_stops() {
    let Some(lab) = Lab::open() else { return };
    let (plugin, options) = stand_in(&lab);
    let (node, image) = (lab.node_with(options), lab.busybox());
    node.pull(&image).unwrap();
    let pod = node.up(&lab.pod("both")).unwrap();
    let container = ContainerBuilder::new("c", &image).shell("sleep 300");
    let id = node.run_in(&pod, &container).unwrap();
    node.stop(&id, 0).unwrap();
    plugin.set("slow-del").unwrap();
    let before = plugin.calls().len();
    std::thread::scope(|scope| {
        let (client, sandbox) = (node.client(), pod.id.clone());
        let stop = scope.spawn(move || client.stop_pod(&sandbox));
        // The shim has been ended by then.
        eventually("the plugin takes the network down", || {
            let calls = plugin.calls();
            calls[before..].iter().any(|c| c == "DEL").then_some(())
        });
        node.remove(&id).unwrap();
        stop.join().unwrap().unwrap();
    });
    assert!(node.containers(None).unwrap().is_empty());
    node.remove_pod(&pod.id).unwrap();
    lab.close(node);
}
