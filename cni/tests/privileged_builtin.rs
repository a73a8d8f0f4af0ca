//! The built-in network on a real kernel: reachability by every way in and out, undo, repair.

#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod support;

use std::{collections::BTreeSet, fs, net::UdpSocket};

use axil_cni::{ErrorClass, NetworkKind, PortMapping, Protocol};
use support::{
    ask, ask_from, ask_udp, at, inside, on_a_host, privileged, refused, run, serve_tcp, serve_udp,
    tcp,
};

const NFT: &str = "/usr/sbin/nft";

#[test]
fn privileged_pods_reach_host_pods_and_world() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let outside = bed.outside();
        serve_tcp(&outside, 90);
        let network = bed.network();
        network.status().await.unwrap();
        assert_eq!(network.describe().kind, NetworkKind::Builtin);
        assert!(
            !run("ip link").contains("axil0"),
            "nothing is made before the first pod"
        );
        let (one, two) = (bed.pod(&[]), bed.pod(&[]));
        let got = network.up(&one).await.unwrap();
        let steps: Vec<_> = got.timings.iter().map(|(step, _)| step.as_str()).collect();
        println!("{:?}", got.timings);
        assert_eq!(
            steps,
            [
                "loopback",
                "reserve",
                "bridge",
                "veth",
                "addresses",
                "carrier",
                "record"
            ]
        );
        assert_eq!(
            got.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.88.0.2", "fd00:10:88::2"]
        );
        assert!(
            got.interfaces
                .iter()
                .any(|link| link.in_pod && link.name == "eth0" && link.addresses.len() == 2)
        );
        let other = network.up(&two).await.unwrap();
        println!("{:?}", other.timings);
        serve_tcp(&one.netns, 80);
        for (index, ip) in got.ips.iter().enumerate() {
            let gateway = ["10.88.0.1", "fd00:10:88::1"][index];
            assert_eq!(ask(&at(ip, 80)).unwrap(), gateway, "host to pod");
            assert_eq!(
                ask_from(&two.netns, &at(ip, 80)).unwrap(),
                other.ips[index].to_string()
            );
            assert_eq!(ask_from(&one.netns, &at(ip, 80)).unwrap(), ip.to_string());
        }
        assert_eq!(ask_from(&one.netns, "127.0.0.1:80").unwrap(), "127.0.0.1");
        assert_eq!(
            ask_from(&one.netns, "192.0.2.2:90").unwrap(),
            "192.0.2.1",
            "masqueraded"
        );
        assert_eq!(
            ask_from(&one.netns, "[2001:db8::2]:90").unwrap(),
            "2001:db8::1"
        );
        network.check(&one.id).await.unwrap();
        inside(&one.netns, || run("ip addr del 10.88.0.2/16 dev eth0"));
        let error = network.check(&one.id).await.unwrap_err().to_string();
        assert!(error.contains("eth0 has lost 10.88.0.2/16"), "{error}");
        let again = network.up(&two).await.unwrap();
        assert_eq!((again.ips, again.timings.len()), (other.ips, 0));
        for _ in 0..3 {
            network.down(&one).await.unwrap();
            network.down(&two).await.unwrap();
        }
        bed.assert_clean(&network);
    });
}

#[test]
fn privileged_host_ports_work_from_everywhere() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let outside = bed.outside();
        let network = bed.network();
        let pod = bed.pod(&[
            tcp(None, 8080, 80),
            tcp(Some("192.0.2.1"), 8081, 80),
            tcp(Some("127.0.0.1"), 8082, 80),
            tcp(Some("2001:db8::1"), 8083, 80),
            tcp(None, 0, 81),
        ]);
        let neighbour = bed.pod(&[]);
        let ips = network.up(&pod).await.unwrap().ips;
        network.up(&neighbour).await.unwrap();
        serve_tcp(&pod.netns, 80);
        println!("{}", run("nft list table inet axil"));
        // From the host: by loopback, by its address, by the bridge's.
        assert_eq!(ask("127.0.0.1:8080").unwrap(), "10.88.0.1");
        assert_eq!(ask("192.0.2.1:8080").unwrap(), "192.0.2.1");
        ask("10.88.0.1:8080").unwrap();
        ask("[2001:db8::1]:8080").unwrap();
        ask("192.0.2.1:8081").unwrap();
        ask("127.0.0.1:8082").unwrap();
        ask("[2001:db8::1]:8083").unwrap();
        refused(ask("127.0.0.1:8081"));
        refused(ask("192.0.2.1:8082"));
        refused(ask("192.0.2.1:8083"));
        refused(ask("[::1]:8080"));
        // From outside, with its own address kept.
        assert_eq!(ask_from(&outside, "192.0.2.1:8080").unwrap(), "192.0.2.2");
        assert_eq!(
            ask_from(&outside, "[2001:db8::1]:8080").unwrap(),
            "2001:db8::2"
        );
        refused(ask_from(&outside, "192.0.2.1:8082"));
        // From the same bridge, itself included.
        for from in [&pod, &neighbour] {
            ask_from(&from.netns, "192.0.2.1:8080").unwrap();
            ask_from(&from.netns, "10.88.0.1:8080").unwrap();
            ask_from(&from.netns, "[fd00:10:88::1]:8080").unwrap();
        }
        assert_eq!(
            ask_from(&neighbour.netns, &at(&ips[0], 80)).unwrap(),
            "10.88.0.3"
        );
        network.down(&pod).await.unwrap();
        refused(ask("127.0.0.1:8080"));
        network.down(&neighbour).await.unwrap();
        bed.assert_clean(&network);
    });
}

/// CVE-2019-9946 and CVE-2025-67499: a host port must not catch what is meant for others.
#[test]
fn privileged_cve_2019_9946_host_port_leaves_foreign_addresses_alone() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let outside = bed.outside();
        serve_tcp(&outside, 53);
        let network = bed.network();
        let (pod, neighbour) = (bed.pod(&[tcp(None, 53, 53)]), bed.pod(&[]));
        network.up(&pod).await.unwrap();
        network.up(&neighbour).await.unwrap();
        // The pod does not serve, so an answer can only come from outside.
        assert_eq!(
            ask_from(&neighbour.netns, "192.0.2.2:53").unwrap(),
            "192.0.2.1"
        );
        assert_eq!(ask("192.0.2.2:53").unwrap(), "192.0.2.1");
    });
}

/// CVE-2020-8558: `route_localnet` must not open the host's loopback to pods and neighbours.
#[test]
fn privileged_cve_2020_8558_loopback_of_the_host_stays_closed() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let outside = bed.outside();
        let network = bed.network();
        let pod = bed.pod(&[tcp(None, 8080, 80)]);
        network.up(&pod).await.unwrap();
        assert_eq!(
            fs::read_to_string("/proc/sys/net/ipv4/conf/axil0/route_localnet").unwrap(),
            "1\n"
        );
        let receiver = UdpSocket::bind("127.0.0.1:7777").unwrap();
        for (from, link, via) in [
            (&pod.netns, "eth0", "10.88.0.1"),
            (&outside, "up1", "192.0.2.1"),
        ] {
            inside(from, || {
                run("ip route flush table local dev lo");
                run(&format!("ip route add 127.0.0.1/32 via {via} dev {link}"));
                fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            });
        }
        receiver
            .set_read_timeout(Some(std::time::Duration::from_millis(150)))
            .unwrap();
        // Several datagrams each: the first ones may be lost while neighbours are looked up.
        let reached = |from: &std::path::Path, source: &str| {
            (0..5).any(|_| {
                inside(from, || {
                    let socket = UdpSocket::bind(source).unwrap();
                    let _ = socket.send_to(b"attack", "127.0.0.1:7777");
                });
                receiver.recv(&mut [0; 16]).is_ok()
            })
        };
        assert!(!reached(&pod.netns, "10.88.0.2:0"), "a pod reached it");
        assert!(!reached(&outside, "192.0.2.2:0"), "a neighbour reached it");
        // The test itself is sound: without the guard it is reached.
        run("nft flush chain inet axil guard");
        assert!(
            reached(&pod.netns, "10.88.0.2:0"),
            "the attack does not work at all"
        );
        assert!(
            network.restore().await.unwrap(),
            "the flushed chain is noticed"
        );
        assert!(!network.restore().await.unwrap());
    });
}

/// CVE-2020-10749: a pod must not configure the host by router advertisements.
#[test]
fn privileged_cve_2020_10749_router_advertisements_are_ignored() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let network = bed.network();
        let pod = bed.pod(&[]);
        network.up(&pod).await.unwrap();
        let read = |path: &str| fs::read_to_string(path).unwrap();
        assert_eq!(read("/proc/sys/net/ipv6/conf/axil0/accept_ra"), "0\n");
        let inside_pod = inside(&pod.netns, || {
            read("/proc/sys/net/ipv6/conf/eth0/accept_ra")
        });
        assert_eq!(inside_pod, "0\n");
        let addresses = inside(&pod.netns, || run("ip -6 addr show dev eth0 scope global"));
        assert!(!addresses.contains("tentative"), "{addresses}");
    });
}

#[test]
fn privileged_udp_follows_its_mapping_at_once() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        bed.outside();
        let network = bed.network();
        let udp = PortMapping {
            protocol: Protocol::Udp,
            ..tcp(None, 5000, 50)
        };
        let (one, two) = (
            bed.pod(std::slice::from_ref(&udp)),
            bed.pod(std::slice::from_ref(&udp)),
        );
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(
            ask_udp(&client, "192.0.2.1:5000"),
            None,
            "tracked without a mapping"
        );
        network.up(&one).await.unwrap();
        serve_udp(&one.netns, 50, "one");
        assert_eq!(ask_udp(&client, "192.0.2.1:5000").as_deref(), Some("one"));
        network.down(&one).await.unwrap();
        network.up(&two).await.unwrap();
        serve_udp(&two.netns, 50, "two");
        assert_eq!(ask_udp(&client, "192.0.2.1:5000").as_deref(), Some("two"));
    });
}

#[test]
fn privileged_a_taken_port_is_told_and_freed() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let network = bed.network();
        let one = bed.pod(&[tcp(None, 8080, 80)]);
        let two = bed.pod(&[tcp(Some("127.0.0.1"), 8080, 80)]);
        network.up(&one).await.unwrap();
        let before = bed.leases();
        let error = network.up(&two).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::FailedPrecondition);
        let text = chain(&error);
        assert!(
            text.contains(&format!(
                "host port 127.0.0.1:8080/tcp is taken by pod {}",
                one.id
            )),
            "{text}"
        );
        assert_eq!(
            (bed.leases(), network.attached()),
            (before, vec![one.id.clone()])
        );
        // A restarted daemon knows as much.
        let network = bed.network();
        assert!(network.up(&two).await.is_err());
        network.down(&one).await.unwrap();
        network.up(&two).await.unwrap();
        network.down(&two).await.unwrap();
        bed.assert_clean(&network);
    });
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[test]
fn privileged_exhaustion_is_told_and_leaves_nothing() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        bed.options.builtin.subnets = vec!["10.77.0.0/30".parse().unwrap()];
        let network = bed.network();
        let (one, two) = (bed.pod(&[]), bed.pod(&[tcp(None, 81, 80)]));
        let got = network.up(&one).await.unwrap();
        assert_eq!(got.ips, ["10.77.0.2".parse::<std::net::IpAddr>().unwrap()]);
        let error = network.up(&two).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Exhausted);
        assert!(chain(&error).contains("10.77.0.0/30"), "{error:?}");
        network.down(&one).await.unwrap();
        network.up(&two).await.unwrap();
        network.down(&two).await.unwrap();
        bed.assert_clean(&network);
    });
}

#[test]
fn privileged_down_works_without_the_namespace() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let network = bed.network();
        let (gone, replaced) = (bed.pod(&[tcp(None, 1, 1)]), bed.pod(&[]));
        network.up(&gone).await.unwrap();
        network.up(&replaced).await.unwrap();
        for pod in [&gone, &replaced] {
            axil_cni::netns::remove(&pod.netns).unwrap();
        }
        fs::write(&replaced.netns, "").unwrap();
        // As after a restart.
        let network = bed.network();
        network.down(&gone).await.unwrap();
        network.down(&replaced).await.unwrap();
        bed.assert_clean(&network);
        let error = network.up(&replaced).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::FailedPrecondition);
        assert!(chain(&error).contains("is not a network namespace"));
        assert!(network.up(&gone).await.is_err());
        let host = axil_cni::PodNetwork {
            netns: "/proc/thread-self/ns/net".into(),
            ..gone
        };
        let error = network.up(&host).await.unwrap_err();
        assert!(chain(&error).contains("namespace of the host"), "{error}");
        bed.assert_clean(&network);
    });
}

#[test]
fn privileged_a_failing_step_is_undone() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let network = bed.network();
        let pod = bed.pod(&[tcp(None, 80, 80)]);
        // The name is taken in the pod, so the veth pair cannot be made.
        inside(&pod.netns, || run("ip link add eth0 type bridge"));
        let error = network.up(&pod).await.unwrap_err();
        assert!(
            chain(&error).contains("create veth pair"),
            "{}",
            chain(&error)
        );
        bed.assert_clean(&network);
        inside(&pod.netns, || run("ip link del eth0"));
        network.up(&pod).await.unwrap();
        network.down(&pod).await.unwrap();
        // A foreign link has the bridge's name.
        run("ip link del axil0");
        run("ip link add axil0 type veth peer name other");
        let error = network.status().await.unwrap_err();
        assert!(
            error.message.contains("link axil0 exists and is a veth"),
            "{error}"
        );
        assert!(network.up(&pod).await.is_err());
        run("ip link del axil0");
        bed.assert_clean(&network);
    });
}

/// A daemon killed between the kernel work and the last write of the record.
#[test]
fn privileged_an_interrupted_up_is_done_again() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let pod = bed.pod(&[tcp(None, 8080, 80)]);
        bed.network().up(&pod).await.unwrap();
        let path = bed.options.cache_dir.join(format!("{}.json", pod.id));
        let record = fs::read_to_string(&path).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(&record).unwrap();
        record.as_object_mut().unwrap().remove("result");
        fs::write(&path, record.to_string()).unwrap();
        let network = bed.network();
        assert_eq!(network.attached(), std::slice::from_ref(&pod.id));
        network.up(&pod).await.unwrap();
        serve_tcp(&pod.netns, 80);
        ask("127.0.0.1:8080").unwrap();
        network.down(&pod).await.unwrap();
        bed.assert_clean(&network);
        // Killed before the record, but after the leases.
        network.up(&pod).await.unwrap();
        fs::remove_file(&path).unwrap();
        let network = bed.network();
        network.up(&pod).await.unwrap();
        assert_eq!(bed.leases().len(), 2);
        network.down(&pod).await.unwrap();
        bed.assert_clean(&network);
    });
}

#[test]
fn privileged_dropped_calls_leave_a_pod_that_can_go_down() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let network = bed.network();
        for microseconds in [0, 200, 500, 1000, 2000, 4000] {
            let pod = bed.pod(&[tcp(None, 8080, 80)]);
            let patience = std::time::Duration::from_micros(microseconds);
            let _ = tokio::time::timeout(patience, network.up(&pod)).await;
            let _ = tokio::time::timeout(patience, network.down(&pod)).await;
            network.up(&pod).await.unwrap();
            network.down(&pod).await.unwrap();
            bed.assert_clean(&network);
        }
    });
}

#[test]
fn privileged_garbage_is_collected() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let network = bed.network();
        let (keep, drop, lost) = (
            bed.pod(&[tcp(None, 80, 80)]),
            bed.pod(&[tcp(None, 81, 80)]),
            bed.pod(&[]),
        );
        for pod in [&keep, &drop, &lost] {
            network.up(pod).await.unwrap();
        }
        // A record that vanished leaves link and leases, which are found all the same.
        fs::remove_file(bed.options.cache_dir.join(format!("{}.json", lost.id))).unwrap();
        // One that is damaged too.
        fs::write(bed.options.cache_dir.join(format!("{}.json", drop.id)), "{").unwrap();
        let network = bed.network();
        let collected = network
            .collect_garbage(&BTreeSet::from([keep.id.clone()]))
            .await;
        assert!(collected.errors.is_empty(), "{:?}", collected.errors);
        assert_eq!(collected.released.len(), 2);
        assert_eq!(network.attached(), std::slice::from_ref(&keep.id));
        assert_eq!(bed.leases().len(), 2);
        let table = run("nft list table inet axil");
        assert!(!table.contains("tcp . 81"), "{table}");
        network.down(&keep).await.unwrap();
        bed.assert_clean(&network);
    });
}

#[test]
fn privileged_a_flushed_network_is_restored() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let outside = bed.outside();
        let network = bed.network();
        let pod = bed.pod(&[tcp(None, 8080, 80)]);
        assert!(
            !network.restore().await.unwrap(),
            "nothing to do without pods"
        );
        network.up(&pod).await.unwrap();
        serve_tcp(&pod.netns, 80);
        assert!(!network.restore().await.unwrap(), "nothing is missing");
        let whole = run("nft list table inet axil");
        run("nft flush ruleset");
        refused(ask("127.0.0.1:8080"));
        assert!(network.restore().await.unwrap());
        assert_eq!(run("nft list table inet axil"), whole);
        ask("127.0.0.1:8080").unwrap();
        run("nft delete element inet axil ports4 { tcp . 8080 }");
        assert!(network.restore().await.unwrap());
        assert_eq!(run("nft list table inet axil"), whole);
        run("ip link del axil0");
        assert!(network.restore().await.unwrap());
        ask("127.0.0.1:8080").unwrap();
        ask_from(&outside, "192.0.2.1:8080").unwrap();
        // A pod that comes after a flush gets a whole table without being asked.
        run("nft flush ruleset");
        let late = bed.pod(&[]);
        network.up(&late).await.unwrap();
        assert_eq!(run("nft list table inet axil"), whole);
        run("nft flush ruleset");
        network.down(&pod).await.unwrap();
        network.down(&late).await.unwrap();
        bed.assert_clean(&network);
    });
}

#[test]
fn privileged_ipv4_alone_where_ipv6_is_off() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let network = bed.network();
        let pod = bed.pod(&[tcp(None, 8080, 80)]);
        let got = network.up(&pod).await.unwrap();
        assert_eq!(got.ips.len(), 1);
        network.down(&pod).await.unwrap();
        bed.assert_clean(&network);
    });
}

#[test]
fn privileged_many_pods_at_once() {
    if !privileged(&[NFT]) {
        return;
    }
    on_a_host(async |mut bed| {
        let network = bed.network();
        let pods: Vec<_> = (0..20)
            .map(|port| bed.pod(&[tcp(None, 9000 + port, 80)]))
            .collect();
        let local = tokio::task::LocalSet::new();
        let up = |pod: axil_cni::PodNetwork| {
            let network = network.clone();
            tokio::task::spawn_local(async move { network.up(&pod).await.unwrap().ips[0] })
        };
        let all = async {
            let tasks: Vec<_> = pods.iter().cloned().map(up).collect();
            let mut ips = BTreeSet::new();
            for task in tasks {
                ips.insert(task.await.unwrap());
            }
            ips
        };
        let ips = local.run_until(all).await;
        assert_eq!(ips.len(), 20);
        for pod in &pods {
            network.down(pod).await.unwrap();
        }
        bed.assert_clean(&network);
    });
}
