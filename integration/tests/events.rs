//! GetContainerEvents: each step of a life is told once and in order, with the statuses as they are by then.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use axil_integration::build::ContainerBuilder;
use axil_integration::lab::Lab;
use axil_integration::node::Node;
use axil_proto::cri::{
    ContainerEventResponse, ContainerEventType, ContainerState, PodSandboxState,
};
use tonic::{Code, Streaming};

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};

fn next(node: &Node, events: &mut Streaming<ContainerEventResponse>) -> ContainerEventResponse {
    node.next(events).unwrap().expect("the stream goes on")
}

/// Reads as many events as are expected and compares who and what.
fn expect(
    node: &Node,
    events: &mut Streaming<ContainerEventResponse>,
    expected: &[(&str, ContainerEventType)],
) -> Vec<ContainerEventResponse> {
    let mut seen = Vec::new();
    for (about, kind) in expected {
        let event = next(node, events);
        assert_eq!(
            (event.container_id.as_str(), event.container_event_type()),
            (*about, *kind)
        );
        assert!(event.created_at > 0);
        seen.push(event);
    }
    seen
}

fn pod_state(event: &ContainerEventResponse) -> PodSandboxState {
    event.pod_sandbox_status.as_ref().unwrap().state()
}

fn states(event: &ContainerEventResponse) -> Vec<ContainerState> {
    let statuses = event.containers_statuses.iter();
    statuses.map(|status| status.state()).collect()
}

#[test]
fn privileged_events_tell_a_life_in_order_with_statuses() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let mut events = node.events().unwrap();
    let pod = node.up(&lab.pod("p")).unwrap();
    let id = pod.id.as_str();
    let seen = expect(&node, &mut events, &[(id, Created), (id, Started)]);
    let status = seen[1].pod_sandbox_status.as_ref().unwrap();
    assert_eq!(status.metadata.as_ref().unwrap().uid, "uid-p");
    assert_eq!(pod_state(&seen[1]), PodSandboxState::SandboxReady);
    assert!(!status.network.as_ref().unwrap().ip.is_empty());
    assert_eq!(states(&seen[1]), []);

    let short = ContainerBuilder::new("short", &image).shell("exit 3");
    let short = node.run_in(&pod, &short).unwrap();
    let steps = [Created, Started, Stopped].map(|kind| (short.as_str(), kind));
    let seen = expect(&node, &mut events, &steps);
    assert_eq!(states(&seen[0]), [ContainerState::ContainerCreated]);
    assert_eq!(states(&seen[1]), [ContainerState::ContainerRunning]);
    assert_eq!(states(&seen[2]), [ContainerState::ContainerExited]);
    assert_eq!(seen[2].containers_statuses[0].exit_code, 3);
    let times: Vec<i64> = seen.iter().map(|event| event.created_at).collect();
    assert!(times.is_sorted(), "{times:?}");

    let long = ContainerBuilder::new("long", &image).command(&["sleep", "300"]);
    let long = node.run_in(&pod, &long).unwrap();
    let steps = [Created, Started].map(|kind| (long.as_str(), kind));
    let seen = expect(&node, &mut events, &steps);
    assert_eq!(states(&seen[1]).len(), 2);
    node.remove(&short).unwrap();
    let seen = expect(&node, &mut events, &[(&short, Deleted)]);
    assert_eq!(states(&seen[0]), [ContainerState::ContainerRunning]);

    node.stop_pod(id).unwrap();
    let seen = expect(&node, &mut events, &[(&long, Stopped), (id, Stopped)]);
    assert_eq!(pod_state(&seen[1]), PodSandboxState::SandboxNotready);
    assert_eq!(states(&seen[1]), [ContainerState::ContainerExited]);
    // Stopped is stopped: a second stop is no news, and what follows is the removal.
    node.stop_pod(id).unwrap();
    node.remove_pod(id).unwrap();
    let seen = expect(&node, &mut events, &[(&long, Deleted), (id, Deleted)]);
    let last = seen[1].pod_sandbox_status.as_ref().unwrap();
    assert_eq!(
        (
            last.id.as_str(),
            last.metadata.as_ref().unwrap().uid.as_str()
        ),
        (id, "uid-p")
    );
    assert_eq!(states(&seen[1]), []);
    drop(events);
    lab.close(node);
}

#[test]
fn privileged_every_client_hears_every_event_of_many_pods() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let (mut first, mut second) = (node.events().unwrap(), node.events().unwrap());
    let mut wanted = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let pod = node.up(&lab.pod(name)).unwrap();
        let id = node
            .run_in(&pod, &ContainerBuilder::new("c", &image).shell("exit 0"))
            .unwrap();
        node.exit_of(&id);
        node.stop_pod(&pod.id).unwrap();
        node.remove_pod(&pod.id).unwrap();
        for kind in [Created, Started, Stopped, Deleted] {
            wanted.push((pod.id.clone(), kind));
            wanted.push((id.clone(), kind));
        }
    }
    let read = |events: &mut Streaming<ContainerEventResponse>| {
        let mut seen: Vec<_> = (0..wanted.len())
            .map(|_| next(&node, events))
            .map(|event| (event.container_id.clone(), event.container_event_type()))
            .collect();
        seen.sort();
        seen
    };
    let (first, second) = (read(&mut first), read(&mut second));
    wanted.sort();
    assert_eq!((first, second), (wanted.clone(), wanted));
    lab.close(node);
}

#[test]
fn privileged_a_daemon_that_stops_ends_the_stream_at_once_with_the_reason() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    let client = node.client();
    let mut events = client.events().unwrap();
    let status = node.term();
    assert!(status.is_none_or(|status| status.success()), "{status:?}");
    let ended = client.next(&mut events).unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    assert!(ended.message().contains("stopping"), "{ended}");
    drop(events);
    node.launch(None).unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_container_that_cannot_start_is_told_as_stopped() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let mut events = node.events().unwrap();
    let container = ContainerBuilder::new("c", &image).command(&["/no/such/program"]);
    // Whether making it or starting it fails, a container that is listed afterwards was told of.
    let result = node.run_in(&pod, &container);
    assert!(result.is_err());
    match node.containers(None).unwrap().first() {
        Some(left) => {
            let id = left.id.as_str();
            let seen = expect(&node, &mut events, &[(id, Created), (id, Stopped)]);
            assert_eq!(states(&seen[1]), [ContainerState::ContainerExited]);
        }
        None => {
            node.stop_pod(&pod.id).unwrap();
            expect(&node, &mut events, &[(&pod.id, Stopped)]);
        }
    }
    drop(events);
    lab.close(node);
}
