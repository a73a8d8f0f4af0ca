//! Archives made to escape, smuggle or exhaust. Each refuses the layer or stays inside it; the
//! canary outside never changes, and a refused layer leaves nothing.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use axil_snapshotter::{Compression, ErrorClass, LayerError, Limits};

use crate::archive::{Archive, GNU, Head, seal};
use crate::world::{Layer, World, can_run, stack_of, xattr};

/// Unpacks one archive that has to be refused, and returns the message with its causes.
fn refused(archive: &[u8], limits: Limits) -> (LayerError, String) {
    let world = World::new();
    let mut layer = Layer::new(None, archive);
    layer.request.limits = limits;
    let error = world.stage(&layer).map(|_| ()).unwrap_err();
    world.assert_canary();
    world.assert_empty();
    let text = chain_of(&error);
    assert!(text.len() < 2000, "{}", text.len());
    (error, text)
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn privileged_cve_2014_6407_entries_that_lead_out_are_refused() {
    if !can_run() {
        return;
    }
    for name in ["../x", "a/../../x", "/../x", "a/b/../../../x"] {
        let (error, text) = refused(&Archive::new().file(name, b"x").finish(), Limits::default());
        assert_eq!(error.class(), ErrorClass::InvalidArgument, "{text}");
        assert!(text.contains("leads out of the layer"), "{text}");
    }
}

#[test]
fn privileged_cve_2014_6407_cve_2019_10152_cve_2025_11395_writes_through_links_stay_inside() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let canary = world.canary.to_str().unwrap().to_owned();
    for target in [
        canary.clone(),
        "../../../../../../../..".to_owned() + &canary,
    ] {
        let through = |archive: Archive| {
            archive
                .file("d/f", b"through")
                .hard_link("d/h", "d/f")
                .node(Head {
                    device: (1, 3),
                    ..Head::new("d/n", b'3')
                })
                .dir("d/sub")
                .symlink("d/s", "x")
        };
        // In one layer, and with the link in a lower one.
        let one = vec![through(Archive::new().symlink("d", &target)).finish()];
        let two = vec![
            Archive::new().symlink("d", &target).finish(),
            through(Archive::new()).finish(),
        ];
        for archives in [one, two] {
            let top = world.pull(&archives).unwrap();
            world.assert_canary();
            let files = world.files_of(&top);
            // The layer's own link is followed inside the layer; a lower link to a place that no
            // layer has is replaced by the directory.
            let inside = files.join(canary.trim_start_matches('/')).join("f");
            assert!(inside.exists() || files.join("d/f").exists());
        }
    }
}

#[test]
fn privileged_cve_2025_47290_a_replaced_parent_is_not_remembered() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let canary = world.canary.to_str().unwrap();
    let archive = Archive::new()
        .dir("a")
        .file("a/f", b"1")
        .symlink("a", canary)
        .file("a/g", b"2")
        .file("a/h", b"3")
        .finish();
    let top = world.pull(&[archive]).unwrap();
    world.assert_canary();
    let files = world.files_of(&top);
    assert!(files.join("a").is_symlink());
    assert_eq!(fs::read(files.join(&canary[1..]).join("g")).unwrap(), b"2");
    // The same with the parent's parent, and back to a directory.
    let archive = Archive::new()
        .file("p/a/f", b"1")
        .symlink("p", canary)
        .file("p/a/g", b"2")
        .dir("p")
        .file("p/a/h", b"3")
        .finish();
    let files = world.files_of(&world.pull(&[archive]).unwrap());
    world.assert_canary();
    assert_eq!(fs::read(files.join("p/a/h")).unwrap(), b"3");
    assert!(!files.join("p/a/g").exists());
}

#[test]
fn privileged_cve_2021_32760_rustsec_2026_0067_metadata_does_not_follow_links() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let canary = world.canary.to_str().unwrap();
    let open_to_all = Head {
        mode: 0o6777,
        uid: 1234,
        gid: 1234,
        ..Head::new("d", b'5')
    };
    let link = Head {
        link: canary.into(),
        uid: 1234,
        gid: 1234,
        mode: 0o6777,
        ..Head::new("l", b'2')
    };
    let archive = Archive::new()
        .symlink("d", canary)
        .pax(&[("SCHILY.xattr.user.mark", b"1"), ("mtime", b"1.5")])
        .entry(&open_to_all, b"")
        .pax(&[
            ("SCHILY.xattr.user.mark", b"1"),
            ("SCHILY.xattr.trusted.mark", b"1"),
        ])
        .entry(&link, b"")
        .hard_link("m", "l")
        .finish();
    let files = world.files_of(&world.pull(&[archive]).unwrap());
    world.assert_canary();
    let directory = fs::symlink_metadata(files.join("d")).unwrap();
    assert!(directory.is_dir() && directory.mode() & 0o7777 == 0o6777);
    assert_eq!(fs::symlink_metadata(files.join("l")).unwrap().uid(), 1234);
    assert_eq!(
        xattr(files.join("l"), "trusted.mark").as_deref(),
        Some(&b"1"[..])
    );
    assert!(fs::symlink_metadata(files.join("m")).unwrap().is_symlink());
}

#[test]
fn privileged_cve_2025_62518_rustsec_2026_0068_conflicting_sizes_are_refused() {
    if !can_run() {
        return;
    }
    let smuggled = Archive::new().file("smuggled", b"x").unfinished();
    let cases = [
        // PAX says the content is the smuggled entry, ustar says there is none, and the reverse.
        Archive::new()
            .pax(&[("size", smuggled.len().to_string().as_bytes())])
            .node(Head::new("f", b'0'))
            .raw(&smuggled),
        Archive::new().pax(&[("size", b"0")]).entry(
            &Head {
                size: smuggled.len() as u64,
                ..Head::new("f", b'0')
            },
            &smuggled,
        ),
        // Content on something that has none; on hard links readers differ.
        Archive::new().file("f", b"").entry(
            &Head {
                size: smuggled.len() as u64,
                link: b"f".to_vec(),
                ..Head::new("l", b'1')
            },
            &smuggled,
        ),
        Archive::new().entry(
            &Head {
                size: smuggled.len() as u64,
                ..Head::new("d", b'5')
            },
            &smuggled,
        ),
        Archive::new().pax(&[("size", b"512")]).node(Head {
            link: b"x".to_vec(),
            ..Head::new("s", b'2')
        }),
    ];
    for archive in cases {
        let (error, _) = refused(&archive.finish(), Limits::default());
        assert_eq!(error.class(), ErrorClass::InvalidArgument);
    }
    // A global header may not set sizes either, and two headers may not compete for a name.
    let mut global = Head {
        size: 12,
        ..Head::new("g", b'g')
    };
    let archive = Archive::new()
        .entry(&global, b"12 size=512\n")
        .file("f", b"");
    refused(&archive.finish(), Limits::default());
    global.kind = b'x';
    global.size = 10;
    let archive = Archive::new()
        .entry(&global, b"10 path=a\n")
        .entry(&global, b"10 path=b\n")
        .file("f", b"");
    refused(&archive.finish(), Limits::default());
}

#[test]
fn privileged_cve_2025_58183_sparse_maps_are_bounded() {
    if !can_run() {
        return;
    }
    // 1.0: a map that says it has 2^31 segments.
    let body = format!("{}\n", 1_u64 << 31);
    let archive = Archive::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"f"),
            ("GNU.sparse.realsize", b"4096"),
        ])
        .file("x", body.as_bytes());
    let (_, text) = refused(&archive.finish(), Limits::default());
    assert!(text.contains("too many segments"), "{text}");
    // Old GNU: continuation blocks without end.
    let mut head = Head {
        magic: GNU,
        ..Head::new("f", b'S')
    }
    .block();
    let slot = |block: &mut [u8; 512], at: usize| {
        block[at..at + 24].copy_from_slice(b"00000000000\x0000000000000\0");
    };
    (0..4).for_each(|i| slot(&mut head, 386 + 24 * i));
    head[482] = 1;
    head[483..495].copy_from_slice(b"00000010000\0");
    seal(&mut head);
    let mut more = [0; 512];
    (0..21).for_each(|i| slot(&mut more, 24 * i));
    more[504] = 1;
    let archive = Archive::new().raw(&head).raw(&more.repeat(4000));
    let (_, text) = refused(&archive.finish(), Limits::default());
    assert!(text.contains("too many segments"), "{text}");
    // A file that claims to be larger than any file.
    let archive = Archive::new()
        .pax(&[
            ("GNU.sparse.map", b"9223372036854775807,1"),
            ("GNU.sparse.size", b"1"),
        ])
        .file("x", b"1");
    refused(&archive.finish(), Limits::default());
}

#[test]
fn privileged_whiteouts_stay_inside() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let canary = world.canary.to_str().unwrap();
    let archive = Archive::new()
        .symlink("d", canary)
        .file("d/.wh.file", b"")
        .file("d/.wh..wh..opq", b"")
        .symlink("e", "/")
        .file("e/.wh.top", b"")
        .finish();
    let files = world.files_of(&world.pull(&[archive]).unwrap());
    world.assert_canary();
    let whiteout = fs::symlink_metadata(files.join(&canary[1..]).join("file")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert!(
        fs::symlink_metadata(files.join("top"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
    for name in [".wh.", ".wh..", ".wh...", "d/.wh...", ".wh.a/b"] {
        refused(
            &Archive::new().dir("d").file(name, b"").finish(),
            Limits::default(),
        );
    }
    for target in [".wh.f", "d/.wh..wh..opq"] {
        refused(
            &Archive::new().hard_link("l", target).finish(),
            Limits::default(),
        );
    }
    // A link to what the same layer removes.
    refused(
        &Archive::new()
            .file(".wh.f", b"")
            .hard_link("l", "f")
            .finish(),
        Limits::default(),
    );
}

#[test]
fn privileged_attributes_of_overlayfs_are_not_taken_from_the_image() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = Archive::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.kept", b"yes"),
        ])
        .dir("d")
        .finish();
    let files = world.files_of(&world.pull(&[archive]).unwrap());
    let directory = files.join("d");
    assert_eq!(xattr(&directory, "user.kept").as_deref(), Some(&b"yes"[..]));
    for name in [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.opaque",
    ] {
        assert_eq!(xattr(&directory, name), None, "{name}");
    }
}

#[test]
fn privileged_cve_2017_14992_ten_gib_of_zeros_are_cut_at_the_limit() {
    if !can_run() {
        return;
    }
    // 160 gzip members of 64 MiB of zeros each, behind a header that announces 10 GiB.
    let gib = 1_u64 << 30;
    let head = Head {
        size: 10 * gib,
        ..Head::new("zeros", b'0')
    };
    let member = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::copy(
            &mut std::io::Read::take(std::io::repeat(0), gib / 16),
            &mut encoder,
        )
        .unwrap();
        encoder.finish().unwrap()
    };
    let mut blob = crate::archive::gzip(&head.block());
    (0..160).for_each(|_| blob.extend_from_slice(&member));
    let world = World::new();
    let mut layer = Layer::new(None, b"");
    layer.request.blob = axil_snapshotter::Digest::sha256_of(&blob);
    layer.request.size = blob.len() as u64;
    layer.request.limits.unpacked_bytes = 2 * gib;
    let before = peak_memory_kib();
    let ingest = world.store.begin_layer(layer.request).unwrap();
    let (unpacked, peak) = crate::bombs::watching(|| ingest.unpack(&blob[..]));
    let error = unpacked.map(|_| ()).unwrap_err();
    assert!(peak > 0 && peak < 64 * 1024, "unpack process {peak} KiB");
    assert_eq!(error.class(), ErrorClass::Exhausted, "{error}");
    assert!(
        chain_of(&error).contains("unpacked bytes"),
        "{}",
        chain_of(&error)
    );
    assert!(
        peak_memory_kib() - before < 64 * 1024,
        "{} KiB more",
        peak_memory_kib() - before
    );
    world.assert_empty();
}

/// The most memory this process ever had, from `/proc/self/status`.
fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn privileged_cve_2017_14992_zeros_take_no_space() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let zeros = vec![0; 64 << 20];
    let archive = Archive::new()
        .file("zeros", &zeros)
        .file("small", &[0; 100])
        .finish();
    let layer = Layer::compressed(None, &archive, Compression::Zstd);
    let staged = world.stage(&layer).unwrap();
    assert!(staged.usage().bytes < 1 << 20, "{:?}", staged.usage());
    world.store.commit_layers(vec![staged]).unwrap();
    let files = world.files_of(&layer.request.chain);
    assert_eq!(fs::metadata(files.join("zeros")).unwrap().len(), 64 << 20);
    assert!(
        fs::read(files.join("zeros"))
            .unwrap()
            .iter()
            .all(|&b| b == 0)
    );
}

#[test]
fn privileged_cve_2017_14992_counts_and_lengths_are_bounded() {
    if !can_run() {
        return;
    }
    let many = (0..100).fold(Archive::new(), |archive, i| {
        archive.file(&format!("f{i}"), b"")
    });
    let limits = Limits {
        entries: 50,
        ..Limits::default()
    };
    let (error, text) = refused(&many.finish(), limits);
    assert_eq!(error.class(), ErrorClass::Exhausted);
    assert!(text.contains("more than 50 entries"), "{text}");

    let long = "n".repeat(1 << 20);
    let name = Archive::new()
        .pax(&[("path", &long.as_bytes()[..1_000_000])])
        .file("f", b"");
    refused(&name.finish(), Limits::default());
    let gnu = Head {
        size: long.len() as u64,
        magic: GNU,
        ..Head::new("././@LongLink", b'L')
    };
    refused(
        &Archive::new()
            .entry(&gnu, long.as_bytes())
            .file("f", b"")
            .finish(),
        Limits::default(),
    );
    let deep = "d/".repeat(10_000);
    refused(
        &Archive::new()
            .pax(&[("path", deep.as_bytes())])
            .dir("f")
            .finish(),
        Limits::default(),
    );
    let value = vec![b'v'; 65_537];
    let attribute = Archive::new()
        .pax(&[("SCHILY.xattr.user.big", &value[..])])
        .file("f", b"");
    refused(&attribute.finish(), Limits::default());
    let value = vec![b'v'; 65_000];
    let keys: Vec<String> = (0..1000)
        .map(|i| format!("SCHILY.xattr.user.{i}"))
        .collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (&**key, &value[..])).collect();
    let (error, _) = refused(
        &Archive::new().pax(&records).file("f", b"").finish(),
        Limits::default(),
    );
    assert_eq!(error.class(), ErrorClass::Exhausted);

    let limits = Limits {
        remembered_bytes: 1000,
        ..Limits::default()
    };
    let directories = (0..50).fold(Archive::new(), |archive, i| archive.dir(&format!("d{i}")));
    refused(&directories.finish(), limits);
}

#[test]
fn privileged_cve_2021_20291_broken_streams_end_and_can_be_tried_again() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = Archive::new().file("f", &vec![7; 3_000_000]).finish();
    let good = Layer::new(None, &archive);
    for damage in ["bit", "cut", "not gzip", "cut archive"] {
        let mut bad = good.clone();
        match damage {
            "bit" => {
                let middle = bad.blob.len() / 2;
                bad.blob[middle] ^= 1;
            }
            "cut" => bad.blob.truncate(bad.blob.len() - 10),
            "not gzip" => bad.blob = vec![b'x'; 1000],
            _ => bad.blob = crate::archive::gzip(&archive[..1_000_000]),
        }
        // The digest of the blob is right, so only the content can be at fault.
        bad.request.blob = axil_snapshotter::Digest::sha256_of(&bad.blob);
        bad.request.size = bad.blob.len() as u64;
        let error = world.stage(&bad).map(|_| ()).unwrap_err();
        assert_eq!(
            error.class(),
            ErrorClass::InvalidArgument,
            "{damage}: {error}"
        );
        world.assert_empty();
    }
    assert!(world.stage(&good).is_ok());
}

#[test]
fn privileged_symbolic_link_loops_end() {
    if !can_run() {
        return;
    }
    let archive = Archive::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/f", b"");
    let (_, text) = refused(&archive.finish(), Limits::default());
    assert!(text.contains("too many symbolic links"), "{text}");
    // In lower layers the entry keeps its own directory.
    let world = World::new();
    let below = Archive::new().symlink("a", "b").symlink("b", "a").finish();
    let top = world
        .pull(&[below, Archive::new().file("a/f", b"x").finish()])
        .unwrap();
    assert_eq!(fs::read(world.files_of(&top).join("a/f")).unwrap(), b"x");
}

#[test]
fn privileged_hard_links_do_not_reach_outside() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let canary = world.canary.join("file");
    let canary = canary.to_str().unwrap();
    // To a path of the host, directly, through a link of this layer, and of a lower one.
    let direct = Archive::new().hard_link("l", canary).finish();
    let own = Archive::new()
        .symlink("d", world.canary.to_str().unwrap())
        .hard_link("l", "d/file");
    for archives in [
        vec![direct],
        vec![own.finish()],
        vec![
            Archive::new()
                .symlink("d", world.canary.to_str().unwrap())
                .finish(),
            Archive::new().hard_link("l", "d/file").finish(),
        ],
    ] {
        let layers = stack_of(&archives);
        let staged: Vec<_> = layers
            .iter()
            .map(|layer| world.stage(layer).unwrap())
            .collect();
        let error = world.store.commit_layers(staged).unwrap_err();
        assert!(
            chain_of(&error).contains("does not exist"),
            "{}",
            chain_of(&error)
        );
        world.assert_canary();
        // What does not fit together is not kept for another attempt.
        world.assert_empty();
    }
}
