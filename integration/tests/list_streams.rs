//! Lists as streams: each tells what the list tells, once, and ends.

use axil_integration::build::ContainerBuilder;
use axil_integration::lab::Lab;
use axil_proto::cri;

#[test]
fn privileged_streams_tell_what_lists_tell() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let nothing = node
        .runtime(|mut client| async move {
            let request = cri::StreamPodSandboxesRequest { filter: None };
            client.stream_pod_sandboxes(request).await
        })
        .unwrap();
    assert_eq!(node.drain(nothing).unwrap(), []);
    for name in ["a", "b", "c"] {
        let pod = node.up(&lab.pod(name)).unwrap();
        let container = ContainerBuilder::new(name, &image).command(&["sleep", "300"]);
        node.run_in(&pod, &container).unwrap();
    }

    let pods = node
        .runtime(|mut client| async move {
            let request = cri::StreamPodSandboxesRequest { filter: None };
            client.stream_pod_sandboxes(request).await
        })
        .unwrap();
    let pods = node
        .drain(pods)
        .unwrap()
        .into_iter()
        .flat_map(|m| m.pod_sandboxes);
    assert_eq!(pods.collect::<Vec<_>>(), node.pods(None).unwrap());

    let containers = node
        .runtime(|mut client| async move {
            let request = cri::StreamContainersRequest { filter: None };
            client.stream_containers(request).await
        })
        .unwrap();
    let containers = node
        .drain(containers)
        .unwrap()
        .into_iter()
        .flat_map(|m| m.containers);
    let containers: Vec<_> = containers.collect();
    assert_eq!(containers, node.containers(None).unwrap());

    let id = containers[1].id.clone();
    let filter = cri::ContainerFilter {
        id: id[..12].to_owned(),
        ..Default::default()
    };
    let one = node
        .runtime(|mut client| async move {
            let request = cri::StreamContainersRequest {
                filter: Some(filter),
            };
            client.stream_containers(request).await
        })
        .unwrap();
    let one = node.drain(one).unwrap();
    assert_eq!(
        (one.len(), one[0].containers[0].id.as_str()),
        (1, id.as_str())
    );

    let stats = node
        .runtime(|mut client| async move {
            let request = cri::StreamContainerStatsRequest { filter: None };
            client.stream_container_stats(request).await
        })
        .unwrap();
    let stats = node
        .drain(stats)
        .unwrap()
        .into_iter()
        .flat_map(|m| m.container_stats);
    let ids: Vec<_> = stats.map(|s| s.attributes.unwrap().id).collect();
    assert_eq!(
        ids,
        containers.iter().map(|c| c.id.clone()).collect::<Vec<_>>()
    );

    let stats = node
        .runtime(|mut client| async move {
            let request = cri::StreamPodSandboxStatsRequest { filter: None };
            client.stream_pod_sandbox_stats(request).await
        })
        .unwrap();
    let stats = node
        .drain(stats)
        .unwrap()
        .into_iter()
        .flat_map(|m| m.pod_sandbox_stats);
    let ids: Vec<_> = stats.map(|s| s.attributes.unwrap().id).collect();
    let wanted: Vec<_> = node.pods(None).unwrap().into_iter().map(|p| p.id).collect();
    assert_eq!(ids, wanted);

    let metrics = node
        .runtime(|mut client| async move {
            let request = cri::StreamPodSandboxMetricsRequest {};
            client.stream_pod_sandbox_metrics(request).await
        })
        .unwrap();
    let metrics = node
        .drain(metrics)
        .unwrap()
        .into_iter()
        .flat_map(|m| m.pod_sandbox_metrics);
    let metrics: Vec<_> = metrics.collect();
    let ids: Vec<_> = metrics.iter().map(|m| m.pod_sandbox_id.clone()).collect();
    assert_eq!(ids, wanted);
    assert!(metrics.iter().all(|m| m.container_metrics.len() == 1));
    lab.close(node);
}

#[test]
fn privileged_images_are_streamed_as_they_are_listed() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let stream = |filter: Option<&str>| {
        let filter = filter.map(|image| cri::ImageFilter {
            image: Some(cri::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            }),
        });
        let request = cri::StreamImagesRequest { filter };
        let stream = node.image_stream(request).unwrap();
        let messages = node.drain(stream).unwrap().into_iter();
        messages.flat_map(|m| m.images).collect::<Vec<_>>()
    };
    assert_eq!(stream(None), node.list_images().unwrap());
    assert_eq!(stream(Some(&image)), node.list_images().unwrap());
    assert_eq!(stream(Some("registry.test/absent:1")), []);
    lab.close(node);
}
