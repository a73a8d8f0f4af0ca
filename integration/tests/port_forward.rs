//! PortForward as kubectl and crictl use it: pairs of SPDY streams, the same tunnelled through WebSocket, and
//! WebSocket's channels; IPv4 and IPv6, half close, nobody listening, pods that end.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Shutdown, TcpListener, TcpStream};

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::eventually;
use axil_integration::lab::Lab;
use axil_integration::node::{Node, Pod};
use axil_integration::streaming::{Frame, Message, Spdy, WebSocket, Wire, upgrade};
use tonic::Code;

const ECHO: u16 = 7;
const ECHO6: u16 = 8;
const DEAD: u16 = 9;

/// A pod on whose loopback this process listens and sends back what comes, `connections` times on each of two
/// ports: one of IPv4, one of IPv6.
fn echo(lab: &Lab, node: &Node, name: &str, connections: [usize; 2]) -> Pod {
    let pod = node.up(&lab.pod(name)).unwrap();
    let netns = node.state().join(format!("pods/{}/ns/net", pod.id));
    for ((ip, port), count) in [("127.0.0.1", ECHO), ("::1", ECHO6)]
        .into_iter()
        .zip(connections)
    {
        let netns = std::fs::File::open(&netns).unwrap();
        // A socket belongs to the namespace it was made in; the thread that entered it ends.
        let listener = std::thread::spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind((ip, port)).unwrap()
        });
        let listener = listener.join().unwrap();
        std::thread::spawn(move || {
            for _ in 0..count {
                let (mut socket, _) = listener.accept().unwrap();
                let mut back = socket.try_clone().unwrap();
                // Ends with the half close of the other side, which is passed on then.
                std::io::copy(&mut socket, &mut back).unwrap();
                back.shutdown(Shutdown::Write).unwrap();
            }
        });
    }
    pod
}

fn open(node: &Node, pod: &str) -> Spdy {
    let url = node.port_forward_url(pod, &[]).unwrap();
    Spdy::new(upgrade(&url, Wire::Spdy, &["portforward.k8s.io"]).unwrap())
}

/// One forwarded connection: its error and its data stream.
fn connect(spdy: &mut Spdy, port: u16, request: u32) -> (u32, u32) {
    let (port, request) = (port.to_string(), request.to_string());
    let mut stream = |kind: &str| {
        let headers = [
            ("streamtype", kind),
            ("port", port.as_str()),
            ("requestid", request.as_str()),
        ];
        spdy.open(&headers).unwrap()
    };
    let (error, bytes) = (stream("error"), stream("data"));
    spdy.send(error, &[], true).unwrap();
    (error, bytes)
}

/// Reads until both streams have ended; answers what came on each.
fn drain(spdy: &mut Spdy, error: u32, bytes: u32) -> (String, Vec<u8>) {
    let (mut said, mut received, mut open) = (Vec::new(), Vec::new(), 2);
    while open > 0 {
        match spdy.receive().unwrap() {
            Frame::Bytes(stream, piece, fin) => {
                if stream == error {
                    said.extend(piece);
                } else if stream == bytes {
                    received.extend(piece);
                } else {
                    continue;
                }
                open -= usize::from(fin);
            }
            Frame::Reply(_) => {}
            other => panic!("{other:?}"),
        }
    }
    (String::from_utf8(said).unwrap(), received)
}

#[test]
fn privileged_bytes_reach_ports_of_the_pods_loopback_and_come_back() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let pod = echo(&lab, &node, "echo", [2, 1]);
    let mut spdy = open(&node, &pod.id);
    for (request, port) in [(0, ECHO), (1, ECHO6), (2, ECHO)] {
        let (error, bytes) = connect(&mut spdy, port, request);
        let sent: Vec<u8> = (0..500_000u32).map(|n| (n % 241) as u8).collect();
        for piece in sent.chunks(32 << 10) {
            spdy.send(bytes, piece, false).unwrap();
        }
        spdy.ping(5).unwrap();
        // `cat` ends when its input does: the half close has to travel.
        spdy.send(bytes, &[], true).unwrap();
        let mut received = Vec::new();
        let (mut ended, mut ponged) = (0, false);
        while ended < 2 {
            match spdy.receive().unwrap() {
                Frame::Bytes(stream, piece, fin) if stream == bytes => {
                    received.extend(piece);
                    ended += usize::from(fin);
                }
                Frame::Bytes(stream, piece, fin) if stream == error => {
                    assert_eq!(String::from_utf8_lossy(&piece), "");
                    ended += usize::from(fin);
                }
                Frame::Ping(id) => ponged = id == 5,
                Frame::Reply(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(received == sent, "port {port}: {} bytes", received.len());
        assert!(ponged, "the ping was answered");
    }
    drop(spdy);
    lab.close(node);
}

#[test]
fn privileged_who_does_not_listen_is_named_and_the_session_goes_on() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let pod = echo(&lab, &node, "echo", [1, 0]);
    let mut spdy = open(&node, &pod.id);
    let (error, bytes) = connect(&mut spdy, DEAD, 0);
    let (said, received) = drain(&mut spdy, error, bytes);
    assert!(
        said.contains("127.0.0.1:9") && said.contains("[::1]:9"),
        "{said}"
    );
    assert!(received.is_empty());
    for (kind, port) in [("data", "0"), ("data", "70000"), ("other", "7")] {
        let stream = spdy.open(&[("streamtype", kind), ("port", port)]).unwrap();
        let answer = spdy.receive().unwrap();
        assert!(
            matches!(answer, Frame::Reset(refused, _) if refused == stream),
            "{answer:?}"
        );
    }
    let (error, bytes) = connect(&mut spdy, ECHO, 1);
    spdy.send(bytes, b"still here", true).unwrap();
    let (said, received) = drain(&mut spdy, error, bytes);
    assert_eq!(
        (said.as_str(), received.as_slice()),
        ("", &b"still here"[..])
    );
    drop(spdy);
    lab.close(node);
}

#[test]
fn privileged_only_the_pods_own_network_is_reached() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let pod = echo(&lab, &node, "one", [1, 0]);
    let other = node.up(&lab.pod("two")).unwrap();
    let host = node.up(&lab.pod("host").host_network()).unwrap();
    let on_node = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = on_node.local_addr().unwrap().port();
    for (target, port, reached) in [
        (&pod, ECHO, true),
        (&other, ECHO, false),
        (&other, port, false),
        (&host, ECHO, false),
        (&host, port, true),
    ] {
        let mut spdy = open(&node, &target.id);
        let (error, bytes) = connect(&mut spdy, port, 0);
        if reached && port != ECHO {
            drop(on_node.accept().unwrap());
        }
        spdy.send(bytes, b"x", true).unwrap();
        let (said, _) = drain(&mut spdy, error, bytes);
        let refused = said.contains("refused");
        assert_eq!(!refused, reached, "{} port {port}: {said}", target.id);
    }
    lab.close(node);
}

#[test]
fn privileged_spdy_goes_through_a_websocket_tunnel() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let pod = echo(&lab, &node, "tunnel", [1, 0]);
    let url = node.port_forward_url(&pod.id, &[]).unwrap();
    let protocol = "SPDY/3.1+portforward.k8s.io";
    let mut tunnel = WebSocket::new(upgrade(&url, Wire::WebSocket, &[protocol]).unwrap());
    // A SPDY client whose bytes are caught at the other end of a socket pair.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inside = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut outside, _) = listener.accept().unwrap();
    let mut reading = outside.try_clone().unwrap();
    let mut writing = WebSocket::new(tunnel.socket().try_clone().unwrap());
    std::thread::spawn(move || {
        use std::io::Read as _;
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = reading.read(&mut buffer) {
            if writing.binary(&buffer[..count]).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        use std::io::Write as _;
        while let Ok(Message::Binary(bytes)) = tunnel.receive() {
            outside.write_all(&bytes).unwrap();
        }
    });
    let mut spdy = Spdy::new(inside);
    let (error, bytes) = connect(&mut spdy, ECHO, 0);
    spdy.send(bytes, b"through the tunnel", true).unwrap();
    let (said, received) = drain(&mut spdy, error, bytes);
    assert_eq!(
        (said.as_str(), received.as_slice()),
        ("", &b"through the tunnel"[..])
    );
    drop(spdy);
    lab.close(node);
}

#[test]
fn privileged_websocket_channels_begin_with_their_ports() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let pod = echo(&lab, &node, "channels", [1, 0]);
    let ports = [i32::from(ECHO), i32::from(DEAD)];
    let url = node.port_forward_url(&pod.id, &ports).unwrap();
    let socket = upgrade(&url, Wire::WebSocket, &["v4.channel.k8s.io"]).unwrap();
    let mut websocket = WebSocket::new(socket);
    websocket.binary(b"\0hello").unwrap();
    let mut channels: [Vec<u8>; 4] = Default::default();
    while !channels[0].ends_with(b"hello")
        || !channels[3].ends_with(b"]:9: Connection refused (os error 111)")
    {
        match websocket.receive().unwrap() {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend(&bytes[1..]),
            other => panic!("{other:?} after {channels:?}"),
        }
    }
    assert_eq!(channels[0], b"\x07\0hello");
    assert_eq!(channels[1], b"\x07\0");
    assert_eq!(channels[2], b"\x09\0");
    assert!(channels[3].starts_with(b"\x09\0"));
    drop(websocket);
    lab.close(node);
}

#[test]
fn privileged_requests_that_cannot_be_are_refused_and_connections_end_with_the_pod() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("ends")).unwrap();
    let server = format!("exec nc -ll -p {ECHO} -e cat");
    let id = node
        .run_in(&pod, &ContainerBuilder::new("echo", &image).shell(&server))
        .unwrap();
    eventually("it listens", || {
        let sockets = node.sh(&id, "cat /proc/net/tcp /proc/net/tcp6");
        sockets.contains(":0007 ").then_some(())
    });
    let refused = node.port_forward_url(&pod.id, &[0]).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let unknown = node.port_forward_url("0123", &[]).unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    let mut spdy = open(&node, &pod.id);
    let (error, bytes) = connect(&mut spdy, ECHO, 0);
    spdy.send(bytes, b"x", false).unwrap();
    loop {
        match spdy.receive().unwrap() {
            Frame::Bytes(_, piece, _) if piece == b"x" => break,
            Frame::Reply(_) => {}
            other => panic!("{other:?}"),
        }
    }
    node.stop_pod(&pod.id).unwrap();
    // Its processes are gone, and with them the far end.
    drain(&mut spdy, error, bytes);
    let (error, bytes) = connect(&mut spdy, ECHO, 1);
    let (said, _) = drain(&mut spdy, error, bytes);
    assert!(said.contains("not ready"), "{said}");
    let stopped = node.port_forward_url(&pod.id, &[]).unwrap_err();
    assert_eq!(stopped.code(), Code::FailedPrecondition, "{stopped}");
    drop(spdy);
    lab.close(node);
}
