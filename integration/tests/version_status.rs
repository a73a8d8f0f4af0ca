//! Version, Status and RuntimeConfig: what the kubelet asks before anything else.

use axil_integration::lab::Lab;
use axil_integration::node::NodeOptions;
use axil_proto::cri::CgroupDriver;

#[test]
fn privileged_a_node_says_what_it_is() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let version = node.version().unwrap();
    assert_eq!(
        (version.version.as_str(), version.runtime_name.as_str()),
        ("0.1.0", "axil")
    );
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_version.is_empty());
    let driver = node
        .runtime_config()
        .unwrap()
        .linux
        .unwrap()
        .cgroup_driver();
    assert_eq!(driver, CgroupDriver::Cgroupfs);
    lab.close(node);
}

#[test]
fn privileged_a_node_is_ready_and_tells_its_handlers() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let status = node.status(true).unwrap();
    let conditions = status.status.unwrap().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|c| c.r#type == name).unwrap();
        assert!(condition.status, "{condition:?}");
    }
    assert!(
        status
            .runtime_handlers
            .iter()
            .any(|handler| handler.name.is_empty())
    );
    assert!(status.features.unwrap().supplemental_groups_policy);
    assert!(!status.info.is_empty());
    assert!(node.status(false).unwrap().info.is_empty());
    lab.close(node);
}

#[test]
fn privileged_a_network_that_cannot_work_is_told() {
    let Some(lab) = Lab::open() else { return };
    let list = r#"{"cniVersion":"1.0.0","name":"broken","plugins":[{"type":"no-such-plugin"}]}"#;
    let options = NodeOptions {
        conflist: Some(list.to_owned()),
        ..NodeOptions::default()
    };
    let node = lab.node_with(options);
    let conditions = node.status(false).unwrap().status.unwrap().conditions;
    let network = conditions
        .iter()
        .find(|c| c.r#type == "NetworkReady")
        .unwrap();
    assert!(
        !network.status && network.message.contains("no-such-plugin"),
        "{network:?}"
    );
    let runtime = conditions
        .iter()
        .find(|c| c.r#type == "RuntimeReady")
        .unwrap();
    assert!(runtime.status, "{runtime:?}");
    lab.close(node);
}
