//! Mounts of whole documents.

use proptest::prelude::*;

use super::*;

#[test]
fn volumes_take_the_place_of_defaults_and_parents_come_first() {
    let mut fixture = Fixture::new();
    fixture.container.mounts = ["/a/b/c", "/a", "/etc/resolv.conf", "/dev/shm/", "/z"]
        .iter()
        .map(|&path| volume(path))
        .collect();
    assert_eq!(
        fixture.destinations(),
        [
            "/proc",
            "/dev",
            "/sys",
            "/a",
            "/z",
            "/dev/pts",
            "/dev/mqueue",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/shm",
            "/sys/fs/cgroup",
            "/a/b/c",
        ]
    );
    fixture.container.mounts = vec![volume("/dev"), volume("/sys")];
    fixture.files = PodFiles::default();
    assert_eq!(
        fixture.destinations(),
        ["/proc", "/dev", "/sys", "/sys/fs/cgroup"]
    );
}

#[test]
fn volume_options_say_propagation_and_access() {
    let mut fixture = Fixture::new();
    let mut with = |change: &dyn Fn(&mut MountSpec)| {
        let mut spec = volume("/data");
        change(&mut spec);
        fixture.container.mounts = vec![spec];
        let document = fixture.document().unwrap();
        (
            fixture.options("/data"),
            document.spec.linux.rootfs_propagation,
        )
    };
    assert_eq!(with(&|_| {}), ("rbind,rprivate,rw".into(), None));
    assert_eq!(
        with(&|spec| spec.readonly = true),
        ("rbind,rprivate,ro".into(), None)
    );
    assert_eq!(
        with(&|spec| spec.propagation = MountPropagation::HostToContainer),
        ("rbind,rslave,rw".into(), Some("rslave"))
    );
    assert_eq!(
        with(&|spec| spec.propagation = MountPropagation::Bidirectional),
        ("rbind,rshared,rw".into(), Some("rshared"))
    );
}

#[test]
fn recursive_read_only_is_whole_or_refused() {
    let mut fixture = Fixture::new();
    let spec = MountSpec {
        recursive_read_only: true,
        readonly: true,
        ..volume("/data")
    };
    fixture.container.mounts = vec![spec.clone()];
    let refused = Failure::from(fixture.document().unwrap_err()).during("document");
    assert!(
        refused
            .to_string()
            .starts_with("RROUnsupported: document: ")
    );
    fixture.host.recursive_read_only = true;
    assert_eq!(fixture.options("/data"), "rbind,rprivate,rro");
    fixture.container.mounts = vec![MountSpec {
        readonly: false,
        ..spec.clone()
    }];
    assert!(fixture.refusal().contains("not read-only"));
    fixture.container.mounts = vec![MountSpec {
        propagation: MountPropagation::HostToContainer,
        ..spec
    }];
    assert!(fixture.refusal().contains("not private"));
}

#[test]
fn what_a_mount_forbids_it_forbids_below_as_well() {
    let mut fixture = Fixture::new();
    fixture.container.mounts = vec![MountSpec {
        options: [MountOption::NoSuid, MountOption::NoExec, MountOption::NoDev].into(),
        ..volume("/data")
    }];
    assert_eq!(
        fixture.options("/data"),
        "rbind,rprivate,rw,rnoexec,rnodev,rnosuid"
    );
}

#[test]
fn images_are_mounted_read_only_in_the_order_of_their_mounts() {
    let image = |path: &str| MountSpec {
        host_path: String::new(),
        image: Some(ImageVolume {
            image: ImageSpec::default(),
            sub_path: String::new(),
        }),
        ..volume(path)
    };
    let mut fixture = Fixture::new();
    fixture.container.mounts = vec![image("/one"), volume("/data"), image("/two")];
    assert!(fixture.refusal().contains("not mounted"));
    fixture.image_volumes = vec!["/run/1".into(), "/run/2".into()];
    let mounts = fixture.document().unwrap().spec.mounts;
    let of = |path: &str| {
        mounts
            .iter()
            .find(|mount| mount.destination == path)
            .unwrap()
    };
    assert_eq!(of("/one").source, "/run/1");
    assert_eq!(of("/two").source, "/run/2");
    assert_eq!(of("/two").options, ["bind", "rprivate", "ro", "nodev"]);
    fixture.container.mounts = vec![image("/")];
    assert!(fixture.refusal().contains("the root"));
}

#[test]
fn cve_2022_23648_volumes_stay_where_they_are_put() {
    for path in ["/../etc", "/a/../../etc", "data", "", "/", "/."] {
        let mut fixture = Fixture::new();
        fixture.container.mounts = vec![volume(path)];
        assert!(
            fixture.refusal().starts_with("mounts.container_path"),
            "{path:?}"
        );
    }
    let mut fixture = Fixture::new();
    fixture.container.mounts = vec![MountSpec {
        host_path: "var".into(),
        ..volume("/a")
    }];
    assert!(fixture.refusal().starts_with("mounts.host_path \"var\""));
}

#[test]
fn a_read_only_root_makes_the_pods_files_read_only() {
    let mut fixture = Fixture::new();
    fixture.container.security.readonly_rootfs = true;
    assert!(fixture.document().unwrap().spec.root.readonly);
    assert_eq!(fixture.options("/etc/resolv.conf"), "rbind,rprivate,ro");
    assert_eq!(fixture.options("/etc/hostname"), "rbind,rprivate,ro");
    assert_eq!(fixture.options("/dev/shm"), "rbind,rprivate,rw");
    fixture.files.shm = None;
    assert_eq!(
        fixture.options("/dev/shm"),
        "nosuid,noexec,nodev,mode=1777,size=65536k"
    );
}

proptest! {
    /// Mounts of any paths keep parents before children and never climb.
    #[test]
    fn mounts_keep_parents_first(paths in prop::collection::vec("(/[a-c]|/\\.\\.|/\\.|/dev|/){1,4}", 0..8)) {
        let mut fixture = Fixture::new();
        fixture.container.mounts = paths.iter().map(|path| volume(path)).collect();
        if fixture.document().is_ok() {
            let all = fixture.destinations();
            for (index, path) in all.iter().enumerate() {
                prop_assert!(!path.contains(".."));
                let parent_later = all[index + 1..].iter().any(|later| path.starts_with(&format!("{later}/")));
                prop_assert!(!parent_later, "{:?}", all);
            }
        }
    }
}
