//! Limits in a directory of plain files: what is written where, in which order, and what is refused.

use serde_json::json;

use super::*;

/// A directory with the files of a cgroup v2 and a mount point above it.
fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, CgroupDirectory) {
    let mount = tempfile::tempdir().unwrap();
    let path = mount.path().join("box");
    std::fs::create_dir(&path).unwrap();
    for (name, content) in files {
        std::fs::write(path.join(name), content).unwrap();
    }
    let directory = CgroupDirectory {
        controllers: Vec::new(),
        path,
        mount_point: mount.path().to_owned(),
    };
    (mount, directory)
}

fn write(
    directory: &CgroupDirectory,
    asked: &serde_json::Value,
) -> Result<Vec<String>, CgroupError> {
    let asked: Resources = serde_json::from_value(asked.clone()).unwrap();
    let mut warnings = Vec::new();
    Limits {
        directory,
        journal: &Journal::forgetful(),
    }
    .write(&asked, &asked, &mut warnings)?;
    Ok(warnings)
}

fn read(directory: &CgroupDirectory, file: &str) -> String {
    std::fs::read_to_string(directory.path.join(file)).unwrap()
}

#[test]
fn default_shares_are_the_default_weight() {
    for (shares, weight) in [
        (2, 1),
        (1024, 100),
        (262_144, 10_000),
        (0, 1),
        (u64::MAX, 10_000),
    ] {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    assert!(weight_of_shares(512) < 100 && weight_of_shares(2048) > 100);
}

#[test]
fn swap_is_told_without_memory() {
    let memory = |limit, swap| Memory {
        limit,
        swap,
        ..Memory::default()
    };
    let alone = |limit, swap| swap_alone(&memory(limit, swap), &memory(limit, swap));
    assert_eq!(alone(Some(50), Some(90)).unwrap(), Some(40));
    assert_eq!(alone(Some(50), Some(50)).unwrap(), Some(0));
    assert_eq!(alone(Some(50), Some(-1)).unwrap(), Some(-1));
    assert_eq!(alone(Some(-1), None).unwrap(), Some(-1));
    assert_eq!(alone(Some(50), None).unwrap(), None);
    assert_eq!(alone(None, None).unwrap(), None);
    assert!(
        alone(None, Some(50))
            .unwrap_err()
            .to_string()
            .contains("memory.limit")
    );
    assert!(alone(Some(-1), Some(50)).is_err());
    assert!(
        alone(Some(60), Some(50))
            .unwrap_err()
            .to_string()
            .contains("below memory.limit 60")
    );
    // An update of one is counted with what is known of the other.
    let known = memory(Some(60), Some(90));
    assert_eq!(
        swap_alone(&memory(Some(60), None), &known).unwrap(),
        Some(30)
    );
    assert_eq!(
        swap_alone(&memory(None, Some(90)), &known).unwrap(),
        Some(30)
    );
    assert_eq!(swap_alone(&memory(None, None), &known).unwrap(), None);
}

#[test]
fn quota_and_period_keep_each_other() {
    let (_mount, directory) = tree(&[("cpu.max", "500000 1000000")]);
    for (asked, line) in [
        (json!({"cpu": {"period": 900_000}}), "500000 900000"),
        (json!({"cpu": {"quota": 600_000}}), "600000 900000"),
        (json!({"cpu": {"quota": -1}}), "max 900000"),
        (json!({"cpu": {"quota": 5, "period": 7}}), "5 7"),
    ] {
        // Plain files are not cut by a shorter write, as the kernel's would be.
        let now = read(&directory, "cpu.max");
        std::fs::write(directory.path.join("cpu.max"), now.trim_end_matches('\0')).unwrap();
        let limits = Limits {
            directory: &directory,
            journal: &Journal::forgetful(),
        };
        let cpu = asked["cpu"].clone();
        let cpu: Cpu = serde_json::from_value(cpu).unwrap();
        let value = limits.bandwidth(cpu.quota, cpu.period);
        assert_eq!(value, line);
        std::fs::write(directory.path.join("cpu.max"), value).unwrap();
    }
}

#[test]
fn every_limit_goes_to_its_file() {
    let names = [
        "memory.max",
        "memory.low",
        "memory.swap.max",
        "cpu.weight",
        "cpu.idle",
        "cpu.max",
        "cpu.max.burst",
        "cpuset.cpus",
        "cpuset.mems",
        "pids.max",
        "io.weight",
        "io.max",
        "hugetlb.2MB.max",
        "hugetlb.2MB.rsvd.max",
        "rdma.max",
        "memory.high",
        "misc.max",
    ];
    let (_mount, directory) = tree(&names.map(|name| (name, "")));
    let asked = json!({
        "memory": {"limit": 100, "reservation": 50, "swap": -1, "swappiness": 60, "kernel": 7},
        "cpu": {"shares": 1024, "idle": 0, "quota": 5, "period": 7, "burst": 3, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 0},
        "blockIO": {"weight": 1000, "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 9}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
        "network": {"classID": 1},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}},
        "unified": {"memory.high": "90", "misc.max": "res_a 1\nres_b 2"}
    });
    let warnings = write(&directory, &asked).unwrap();
    for (file, value) in [
        ("memory.max", "100"),
        ("memory.low", "50"),
        ("memory.swap.max", "max"),
        ("cpu.weight", "100"),
        ("cpu.idle", "0"),
        ("cpu.max", "5 7"),
        ("cpu.max.burst", "3"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("pids.max", "1"),
        ("io.weight", "10000"),
        ("io.max", "8:0 wiops=9"),
        ("hugetlb.2MB.max", "4096"),
        ("hugetlb.2MB.rsvd.max", "4096"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=4"),
        ("memory.high", "90"),
        ("misc.max", "res_b 2"),
    ] {
        assert_eq!(read(&directory, file), value, "{file}");
    }
    let all = warnings.join("\n");
    for word in ["memory.swappiness", "memory.kernel: 7", "network"] {
        assert!(all.contains(word), "{word}: {all}");
    }
    assert_eq!(warnings.len(), 3, "{all}");
}

#[test]
fn weights_go_to_bfq_where_it_is() {
    let (_mount, directory) = tree(&[("io.bfq.weight", "default 100"), ("io.weight", "")]);
    let asked = json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 333}]}});
    write(&directory, &asked).unwrap();
    assert!(read(&directory, "io.bfq.weight").starts_with("8:0 333"));
    assert_eq!(read(&directory, "io.weight"), "");
}

#[test]
fn a_controller_that_is_not_passed_on_is_told_with_the_reason() {
    let (mount, directory) = tree(&[("cgroup.controllers", "")]);
    let asked = json!({"pids": {"limit": 5}});
    let error = write(&directory, &asked).unwrap_err().to_string();
    assert!(error.contains("no pids cgroup controller"), "{error}");
    for (name, content) in [
        ("cgroup.controllers", "cpu pids"),
        ("cgroup.subtree_control", "cpu"),
        ("cgroup.procs", "12\n13\n"),
    ] {
        std::fs::write(mount.path().join(name), content).unwrap();
    }
    let error = write(&directory, &asked).unwrap_err().to_string();
    assert!(
        error.contains("pids controller cannot be enabled") && error.contains("2 process(es)"),
        "{error}"
    );
    let asked = json!({"unified": {"pids.max": "5"}});
    let error = write(&directory, &asked).unwrap_err().to_string();
    assert!(
        error.contains("unified[\"pids.max\"]") && error.contains("2 process(es)"),
        "{error}"
    );
}

#[test]
fn swap_without_accounting_is_an_error_only_where_it_would_limit() {
    let (_mount, directory) = tree(&[("memory.max", "")]);
    write(&directory, &json!({"memory": {"limit": 10, "swap": 10}})).unwrap();
    write(&directory, &json!({"memory": {"limit": 10, "swap": -1}})).unwrap();
    let error = write(&directory, &json!({"memory": {"limit": 10, "swap": 20}})).unwrap_err();
    assert!(error.to_string().contains("memory.swap"), "{error}");
}

#[test]
fn a_limit_below_the_usage_is_refused_when_that_is_asked_for() {
    let (_mount, directory) = tree(&[("memory.current", "5000"), ("memory.swap.current", "10")]);
    let check = |memory: serde_json::Value| {
        let asked = serde_json::from_value(json!({ "memory": memory })).unwrap();
        check_usage(&directory.path, &asked).map_err(|e| e.to_string())
    };
    let low = json!({"limit": 1024, "checkBeforeUpdate": true});
    assert_eq!(
        check(low).unwrap_err(),
        "rejecting memory limit 1024 < usage 5000"
    );
    let both = json!({"limit": 1024, "swap": 2048, "checkBeforeUpdate": true});
    assert_eq!(
        check(both).unwrap_err(),
        "rejecting memory+swap limit 2048 < usage 5010"
    );
    assert_eq!(check(json!({"limit": 1024})), Ok(()));
    assert_eq!(
        check(json!({"limit": 6000, "swap": -1, "checkBeforeUpdate": true})),
        Ok(())
    );
}
