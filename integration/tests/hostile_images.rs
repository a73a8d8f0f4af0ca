//! Images that mean harm, through the daemon and by every way in: pulled and imported, alone and beside good ones.
//! Numbers are those of the list of attacks in the project's reliability notes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use axil_integration::build::ContainerBuilder;
use axil_integration::children;
use axil_integration::hostile_image::{ENTRIES_MAX, Raw, UNPACKED_MAX, attacks};
use axil_integration::images::{Compression, Entry, Image, Layer, Packed, busybox};
use axil_integration::lab::Lab;
use axil_integration::memory::Watch;
use axil_integration::node::{Node, NodeOptions};
use axil_proto::cri::{CheckpointContainerRequest, ContainerState};
use serde_json::json;
use tonic::Code;

/// Most resident memory of the daemon and of one unpack process, in KiB.
const MEMORY_MAX: u64 = 128 << 10;
/// The name unpack processes are started by.
const WORKER: &str = "axil-unpack";

/// Everything about a tree that an attack could change.
fn seen(dir: &Path) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = match stat.is_file() {
            true => fs::read_to_string(&path).unwrap(),
            false => String::new(),
        };
        let text = format!(
            "{:o} {}:{} {} {} {content}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.nlink()
        );
        seen.insert(path.display().to_string(), text);
        if stat.is_dir() {
            open.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    seen
}

fn assert_clean(node: &Node, when: &str) {
    let (code, report) = node.fsck(&["--deep"]);
    assert_eq!(
        (code, &report["clean"]),
        (0, &json!(true)),
        "{when}: {report:#}"
    );
}

/// Tests 34 to 42, pulled and imported; no process of the node ever has more than 128 MiB.
#[test]
fn privileged_every_hostile_layer_stays_in_its_root_by_every_way_in_and_memory_stays_flat() {
    let Some(lab) = Lab::open() else { return };
    let canary = lab.unused("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "untouched").unwrap();
    let before = seen(&canary);
    let node = lab.node_with(NodeOptions {
        images: vec![
            format!("layer.unpacked_bytes = \"{UNPACKED_MAX}\""),
            format!("layer.entries = {ENTRIES_MAX}"),
        ],
        ..NodeOptions::default()
    });
    let watch = Watch::start(node.pid(), WORKER);
    let all = attacks(canary.to_str().unwrap());
    for (number, attack) in all.iter().enumerate() {
        let name = attack.name;
        let reference = lab
            .shelf()
            .put(&format!("hostile/a{number}"), "1", &attack.image);
        let pulled = node.pull(&reference);
        assert_eq!(seen(&canary), before, "{name}, pulled");
        if attack.is_refused {
            let status = pulled.expect_err(name);
            let expected = [
                Code::DataLoss,
                Code::ResourceExhausted,
                Code::InvalidArgument,
            ];
            assert!(expected.contains(&status.code()), "{name}: {status}");
            assert!(
                status.message().len() < 4096,
                "{name}: {}",
                status.message().len()
            );
        }
        for image in node.list_images().unwrap() {
            node.remove_image(&image.id).unwrap();
        }
        let layout = lab.unused("layout");
        attack
            .image
            .write_layout(&layout, "registry.example/a:1")
            .unwrap();
        let done = node.operate(&["images", "import", layout.to_str().unwrap()], b"");
        assert_eq!(seen(&canary), before, "{name}, imported");
        assert!(
            !attack.is_refused || !done.status.success(),
            "{name}: {}",
            done.text()
        );
        fs::remove_dir_all(&layout).unwrap();
        for image in node.list_images().unwrap() {
            node.remove_image(&image.id).unwrap();
        }
    }
    let refused = all.iter().filter(|attack| attack.is_refused).count();
    assert!(
        all.len() >= 40 && refused >= 17,
        "{} and {refused}",
        all.len()
    );
    // Nothing stays of any of them, and the next image is had as ever.
    assert_clean(&node, "after all attacks");
    let image = lab.busybox();
    node.pull(&image).unwrap();
    let pod = node.up(&lab.pod("after")).unwrap();
    let fine = ContainerBuilder::new("c", &image).shell("exit 0");
    let id = node.run_in(&pod, &fine).unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 0);
    let peaks = watch.end();
    assert!(
        peaks.own < MEMORY_MAX && peaks.child < MEMORY_MAX,
        "{peaks:?} KiB"
    );
    lab.close(node);
}

/// A layer is another image's only with the content its diff id says, whatever a manifest calls it.
#[test]
fn privileged_a_chain_is_earned_by_content_and_not_by_name() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let honest = Raw::new().file("program", b"the real one").gzip();
    let forged = Raw::new().file("program", b"another one!").gzip();
    let diff_id = honest.diff_id.clone();
    // The attacker's image says that its own blob makes the layer the victim's image has.
    let claim = Packed {
        diff_id: diff_id.clone(),
        ..forged
    };
    let config = json!({ "Cmd": ["/none"] });
    let victim = Image::of(&config, vec![honest]);
    let attacker = Image::of(&config, vec![claim]);
    assert_ne!(victim.layers, attacker.layers);
    let good = lab.shelf().put("victim/app", "1", &victim);
    let bad = lab.shelf().put("attacker/app", "1", &attacker);
    let content = |node: &Node| {
        let list = children::read(
            "find",
            &[node.root().to_str().unwrap(), "-path", "*/fs/program"],
        );
        let paths: Vec<String> = list.unwrap().lines().map(str::to_owned).collect();
        let texts = paths.iter().map(|path| fs::read_to_string(path).unwrap());
        texts.collect::<Vec<_>>()
    };
    // Before the victim: refused, and nothing of it is there for the victim to get.
    let status = node.pull(&bad).unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    assert!(status.message().contains(&diff_id), "{status}");
    assert_eq!(content(&node), Vec::<String>::new());
    node.pull(&good).unwrap();
    assert_eq!(content(&node), ["the real one"]);
    // After the victim: either refused or given what the diff id says; never its own bytes.
    let _either = node.pull(&bad);
    assert_eq!(content(&node), ["the real one"]);
    assert_clean(&node, "with both");
    node.remove_image(&good).unwrap();
    let left = content(&node);
    assert!(left.iter().all(|text| text == "the real one"), "{left:?}");
    // Both at the same time, many times.
    for image in node.list_images().unwrap() {
        node.remove_image(&image.id).unwrap();
    }
    for _ in 0..10 {
        std::thread::scope(|scope| {
            for reference in [&good, &bad] {
                let client = node.client();
                scope.spawn(move || client.pull(reference).map_err(|status| status.code()));
            }
        });
        node.pull(&good).unwrap();
        assert_eq!(content(&node), ["the real one"]);
        for image in node.list_images().unwrap() {
            node.remove_image(&image.id).unwrap();
        }
    }
    assert_clean(&node, "after the races");
    lab.close(node);
}

/// A process that was taken over can write what it likes into its own layer; other images do not get that.
#[test]
fn privileged_a_layer_of_another_blob_is_checked_before_it_is_shared() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    let image = |who: &str, compression| {
        let layers = [
            busybox::base(Compression::Gzip).unwrap(),
            Layer::new(compression).text("program", "the real one"),
            Layer::new(Compression::Gzip).text("top", "of all"),
        ];
        let config = json!({ "Env": ["PATH=/bin", format!("WHO={who}")] });
        Image::build(&config, &layers).unwrap()
    };
    // The same archives; the one in the middle is compressed otherwise.
    let (first, second) = (
        image("first", Compression::Zstd),
        image("second", Compression::Gzip),
    );
    let third = image("third", Compression::Plain);
    let put = |name: &str, image: &Image| lab.shelf().put(&format!("{name}/app"), "1", image);
    let (one, two, three) = (
        put("one", &first),
        put("two", &second),
        put("three", &third),
    );
    let fetched = |image: &Image| {
        let requests = lab.shelf().requests();
        let of = |layer: &&String| {
            requests
                .iter()
                .any(|request| request.contains(layer.as_str()))
        };
        image.layers.iter().filter(of).count()
    };
    let pod = node.up(&lab.pod("p")).unwrap();
    let program_of = |node: &Node, name: &str, reference: &str| {
        let container = ContainerBuilder::new(name, reference).shell("sleep 300");
        let id = node.run_in(&pod, &container).unwrap();
        node.sh(&id, "cat /program /top")
    };
    node.pull(&one).unwrap();
    let list = children::read(
        "find",
        &[node.root().to_str().unwrap(), "-path", "*/fs/program"],
    );
    let path = list.unwrap().trim().to_owned();
    // What holds is shared without being fetched.
    node.pull(&two).unwrap();
    assert_eq!(fetched(&second), 2, "{:?}", lab.shelf().requests());
    assert_eq!(program_of(&node, "shared", &two), "the real oneof all");
    node.remove_image(&two).unwrap();
    // What does not is made anew of the blob the image names, with everything above it.
    node.restart();
    fs::write(&path, "another one!").unwrap();
    node.pull(&two).unwrap();
    assert_eq!(fetched(&second), 3);
    assert_eq!(program_of(&node, "own", &two), "the real oneof all");
    // Now the first image is the guest.
    node.pull(&one).unwrap();
    node.pull(&three).unwrap();
    assert_eq!(fetched(&third), 2);
    assert_eq!(program_of(&node, "first", &one), "the real oneof all");
    assert_eq!(program_of(&node, "third", &three), "the real oneof all");
    assert_clean(&node, "with all three");
    lab.close(node);
}

/// Test 51: setuid programs of images are out of reach of the machine's users.
#[test]
fn privileged_cve_2021_41103_other_users_reach_nothing_of_the_node() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let layer = busybox::base(Compression::Gzip)
        .unwrap()
        .entry(
            "bin/raise",
            0o4755,
            0,
            Entry::Copy(busybox::program().unwrap()),
        )
        .entry("open", 0o777, 0, Entry::Dir);
    let image = Image::build(&json!({ "Env": ["PATH=/bin"] }), &[layer]).unwrap();
    let image = lab.shelf().put("set/uid", "1", &image);
    node.pull(&image).unwrap();
    let pod = node.up(&lab.pod("p")).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell("sleep 300"))
        .unwrap();
    // The directory above both is the test's own and open; theirs are not.
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut programs = Vec::new();
    for dir in [node.root(), node.state()] {
        let text = dir.to_str().unwrap();
        let all = children::read("find", &[text, "-name", "raise"]).unwrap();
        programs.extend(all.lines().map(str::to_owned));
        let mut look = Command::new("find");
        look.arg(&dir)
            .args(["-mindepth", "1"])
            .uid(65_534)
            .gid(65_534);
        let looked = children::output(&mut look, b"").unwrap();
        assert_eq!(String::from_utf8_lossy(&looked.stdout), "", "{text}");
        assert!(
            looked.text().contains("Permission denied"),
            "{text}: {}",
            looked.text()
        );
    }
    assert!(!programs.is_empty());
    for program in programs {
        let mut run = Command::new(&program);
        run.arg("true").uid(65_534).gid(65_534);
        let error = children::output(&mut run, b"").unwrap_err();
        assert!(
            format!("{error:#}").contains("ermission denied"),
            "{program}: {error:#}"
        );
    }
    // What is not reached from outside works inside.
    assert_eq!(node.sh(&id, "stat -c %a /bin/raise"), "4755");
    lab.close(node);
}

/// Test 52: what one container gets is never seen in another of the same image.
#[test]
fn privileged_cve_2021_21334_environments_do_not_mix() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let (workers, each) = (10, 50);
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (client, pod, image) = (node.client(), &pod, &image);
            scope.spawn(move || {
                for number in 0..each {
                    let name = format!("c{worker}-{number}");
                    let container = ContainerBuilder::new(&name, image)
                        .env("WHO", &name)
                        .env(&format!("ONLY_{worker}_{number}"), "1")
                        .shell("exit 0");
                    client
                        .create(&pod.id, &container.build(), &pod.config)
                        .unwrap();
                }
            });
        }
    });
    let documents = children::read(
        "find",
        &[
            node.state().to_str().unwrap(),
            "-path",
            "*/containers/*/config.json",
        ],
    );
    let mut names = Vec::new();
    for path in documents.unwrap().lines() {
        let document: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let environment: Vec<&str> = document["process"]["env"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(serde_json::Value::as_str)
            .collect();
        let who = environment
            .iter()
            .find_map(|text| text.strip_prefix("WHO=c"));
        let who = who.unwrap_or_else(|| panic!("{path}: {environment:?}"));
        let own = format!("ONLY_{}=1", who.replace('-', "_"));
        let marked: Vec<_> = environment
            .iter()
            .filter(|text| text.starts_with("ONLY_"))
            .collect();
        assert_eq!(marked, [&own.as_str()], "{path}");
        names.push(who.to_owned());
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), workers * each);
    lab.close(node);
}

/// Test 54: a layer that rotted is not what the next pull gets.
#[test]
fn privileged_a_rotten_layer_goes_with_its_image_and_comes_back_whole() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let layer = Layer::new(Compression::Gzip).text("note", "as it came");
    let image = Image::build(&json!({ "Cmd": ["/none"] }), &[layer]).unwrap();
    let name = lab.shelf().put("team/note", "1", &image);
    node.pull(&name).unwrap();
    let note = || {
        let root = node.root();
        let list = children::read("find", &[root.to_str().unwrap(), "-path", "*/fs/note"]);
        list.unwrap().trim().to_owned()
    };
    fs::write(note(), "as it rots").unwrap();
    assert_eq!(node.fsck(&["--deep"]).0, 4);
    // A pull alone trusts what is there; without the image the layer is made anew.
    node.remove_image(&name).unwrap();
    assert_eq!(note(), "");
    node.pull(&name).unwrap();
    assert_eq!(fs::read_to_string(note()).unwrap(), "as it came");
    assert_clean(&node, "pulled again");
    lab.close(node);
}

/// Tests 63 and 64: user databases that are no files, or too large ones, are refused and cost nothing.
#[test]
fn privileged_cve_2024_9676_cve_2026_47262_hostile_user_databases_are_refused_and_cost_nothing() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let pod = node.up(&lab.pod("p")).unwrap();
    let canary = lab.unused("passwd-of-the-node");
    fs::write(&canary, "app:x:0:0::/:/bin/sh\n").unwrap();
    let many = "group:x:5000:app\n".repeat(1_000_000);
    let line = "a".repeat(12 << 20);
    let raw = |kind, link: &str, content: &[u8]| {
        Raw::new()
            .dir("etc")
            .entry("etc/passwd", kind, link, content)
    };
    let cases: Vec<(&str, Raw)> = vec![
        ("a fifo", raw(b'6', "", b"")),
        // 1:3, which reads as nothing, and would be worse with other numbers.
        ("a device", raw(b'3', "", b"")),
        ("a directory", raw(b'5', "", b"")),
        ("a link out", raw(b'2', canary.to_str().unwrap(), b"")),
        ("a link that goes round", raw(b'2', "passwd", b"")),
        ("one line of many megabytes", raw(b'0', "", line.as_bytes())),
        (
            "a million groups",
            raw(b'0', "", b"app:x:1000:1000::/:/bin/sh\n").file("etc/group", many.as_bytes()),
        ),
    ];
    let before = axil_integration::memory::kib(node.pid(), "VmHWM:");
    for (number, (what, archive)) in cases.into_iter().enumerate() {
        let base = busybox::base(Compression::Gzip).unwrap().pack().unwrap();
        let image = Image::of(&json!({ "Env": ["PATH=/bin"] }), vec![base, archive.gzip()]);
        let image = lab.shelf().put(&format!("users/a{number}"), "1", &image);
        node.pull(&image).unwrap();
        let begun = std::time::Instant::now();
        let named = ContainerBuilder::new(&format!("c{number}"), &image)
            .user("app")
            .shell("id");
        let status = node.create_in(&pod, &named).expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        assert!(
            begun.elapsed().as_secs() < 10,
            "{what}: {:?}",
            begun.elapsed()
        );
    }
    let after = axil_integration::memory::kib(node.pid(), "VmHWM:");
    assert!(after < MEMORY_MAX, "{before} KiB, then {after} KiB");
    assert!(node.containers(None).unwrap().is_empty());
    lab.close(node);
}

/// Tests 55, 56, 61, 62 and 70: what an image says about the node, the node does not do.
#[test]
fn privileged_cve_2024_5154_an_image_moves_nothing_of_the_node() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let canary = lab.unused("canary");
    fs::create_dir(&canary).unwrap();
    for name in ["hosts", "hostname", "resolv.conf", "passwd", "mtab"] {
        fs::write(canary.join(name), "untouched").unwrap();
    }
    let before = seen(&canary);
    let out = canary.to_str().unwrap();
    let base = || busybox::base(Compression::Gzip).unwrap().pack().unwrap();
    let plain = json!({ "Env": ["PATH=/bin"] });
    let linked = Raw::new()
        .link("etc", out)
        .link("work", &format!("{out}/made"));
    let mut bare = Raw::new();
    for dir in ["bin", "dev", "proc", "sys", "run", "tmp"] {
        bare = bare.dir(dir);
    }
    let program = fs::read(busybox::program().unwrap()).unwrap();
    // Without a directory /etc below, so that the link stays one.
    let bin = Layer::new(Compression::Gzip)
        .dir("bin")
        .entry("bin/busybox", 0o755, 0, Entry::Text(program))
        .symlink("bin/sh", "busybox");
    let bin = bin.pack().unwrap();
    let dangerous = json!({
        "Env": ["PATH=/bin", "HOME=/root\nevil:x:0:0::/:/bin/sh"],
        "WorkingDir": "/work",
        "Volumes": { "/../../etc": {}, "/proc/self/root": {} },
        "Labels": {
            "io.kubernetes.container.logpath": "binary:///bin/sh",
            "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true",
            "containerd.io/restart.loguri": "binary:///bin/sh",
            "org.systemd.property.ExecStart": "/bin/sh",
        },
    });
    let harmless = json!({ "Env": ["PATH=/bin"], "WorkingDir": "/work", "Volumes": dangerous["Volumes"], "Labels": dangerous["Labels"] });
    let images = [
        (
            "links",
            Image::of(&plain, vec![bin, bare.gzip(), linked.gzip()]),
        ),
        ("settings", Image::of(&dangerous, vec![base()])),
        ("settings-without-lines", Image::of(&harmless, vec![base()])),
    ];
    let pod = node.up(&lab.pod("p")).unwrap();
    for (name, image) in images {
        let reference = lab.shelf().put(&format!("moves/{name}"), "1", &image);
        node.pull(&reference).unwrap();
        let container = ContainerBuilder::new(name, &reference).shell("exit 0");
        // Refusing and running in bounds are both right.
        if let Ok(id) = node.run_in(&pod, &container) {
            let status = node.exit_of(&id);
            assert!(
                !status.labels.contains_key("containerd.io/restart.loguri"),
                "{status:?}"
            );
            let checkpoint = CheckpointContainerRequest {
                container_id: id,
                location: canary.join("checkpoint").display().to_string(),
                ..CheckpointContainerRequest::default()
            };
            let answer = node
                .runtime(|mut client| async move { client.checkpoint_container(checkpoint).await });
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
        }
        assert_eq!(seen(&canary), before, "{name}");
    }
    // A pod of the same node is as before.
    let image = lab.busybox();
    node.pull(&image).unwrap();
    let id = node
        .run_in(
            &pod,
            &ContainerBuilder::new("fine", &image).shell("sleep 300"),
        )
        .unwrap();
    let status = node.container_status(&id).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    lab.close(node);
}

/// Test 70: an image that says it is a checkpoint is an image like any other.
#[test]
fn privileged_cve_2024_8676_an_image_that_calls_itself_a_checkpoint_is_a_plain_image() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let canary = lab.unused("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "untouched").unwrap();
    let before = seen(&canary);
    let bind = json!([{ "destination": "/host", "type": "bind", "source": canary, "options": ["rbind", "rw"] }]);
    let spec = json!({
        "ociVersion": "1.0.0",
        "process": { "args": ["/bin/sh", "-c", "echo restored"], "cwd": "/", "capabilities": { "effective": ["CAP_SYS_ADMIN"] } },
        "mounts": bind,
        "annotations": { "cdi.k8s.io/device": "vendor.example/device=all" },
    });
    let status = json!({ "rootfsImage": "other.example/image:1", "annotations": { "io.kubernetes.container.logPath": canary.join("log") } });
    // What the archives of CRI-O and of containerd consist of.
    let archive = busybox::base(Compression::Gzip)
        .unwrap()
        .dir("checkpoint")
        .text("checkpoint/inventory.img", "CRIU")
        .text("spec.dump", &spec.to_string())
        .text("config.dump", &status.to_string())
        .text("status.dump", &status.to_string())
        .symlink("container.log", canary.join("file").to_str().unwrap());
    let annotations = json!({
        "io.kubernetes.cri-o.annotations.checkpoint.name": "victim",
        "org.criu.checkpoint.container.name": "victim",
        "org.criu.checkpoint.rootfsImageName": "other.example/image:1",
        "io.podman.annotations.checkpoint.name": "victim",
    });
    let image = Image::build(&json!({ "Env": ["PATH=/bin"] }), &[archive]).unwrap();
    let image = lab
        .shelf()
        .put("check/point", "1", &image.annotated(&annotations));
    node.pull(&image).unwrap();
    let pod = node.up(&lab.pod("p")).unwrap();
    let script = "echo plain; cat /spec.dump > /dev/null && grep CapEff /proc/self/status; ls -d /host || echo no host";
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell(script))
        .unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 0);
    let log = node.log_of(&pod, "c");
    assert!(
        log.contains("plain") && log.contains("no host") && !log.contains("restored"),
        "{log}"
    );
    // The default set, without CAP_SYS_ADMIN (bit 21).
    let held = log.split("CapEff:").nth(1).unwrap();
    let held = held.split_whitespace().next().unwrap();
    assert_eq!(u64::from_str_radix(held, 16).unwrap() & (1 << 21), 0);
    let status = node.container_status(&id).unwrap();
    assert_eq!(status.image.unwrap().image, image);
    assert_eq!(seen(&canary), before);
    lab.close(node);
}
