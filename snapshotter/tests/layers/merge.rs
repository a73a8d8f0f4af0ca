//! What several layers look like on top of each other, where a layer alone cannot know.

use std::fs;
use std::os::unix::fs::MetadataExt;

use axil_snapshotter::Digest;

use crate::archive::{Archive, Head};
use crate::world::{World, can_run, xattr};

fn content(bytes: &[u8]) -> String {
    Digest::sha256_of(bytes).to_string()
}

#[test]
fn privileged_implied_directories_take_after_the_layer_below() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let described = Head {
        mode: 0o1777,
        uid: 7,
        gid: 8,
        mtime: 1000,
        ..Head::new("tmp", b'5')
    };
    let below = Archive::new()
        .pax(&[("SCHILY.xattr.user.note", b"below")])
        .entry(&described, b"")
        .node(Head {
            mode: 0o700,
            uid: 5,
            ..Head::new("./", b'5')
        })
        .finish();
    let middle = Archive::new().file("unrelated", b"").finish();
    let above = Archive::new()
        .file("tmp/f", b"x")
        .file("fresh/g", b"y")
        .finish();
    let top = world.pull(&[below, middle, above]).unwrap();
    let files = world.files_of(&top);
    let tmp = fs::metadata(files.join("tmp")).unwrap();
    assert_eq!(
        (tmp.mode() & 0o7777, tmp.uid(), tmp.gid(), tmp.mtime()),
        (0o1777, 7, 8, 1000)
    );
    assert_eq!(
        xattr(files.join("tmp"), "user.note").as_deref(),
        Some(&b"below"[..])
    );
    let fresh = fs::metadata(files.join("fresh")).unwrap();
    assert_eq!((fresh.mode() & 0o7777, fresh.uid()), (0o755, 0));
    let seen = world.mounted(&top);
    assert!(seen[""].starts_with("40700 5:0"), "{}", seen[""]);
}

#[test]
fn privileged_hard_links_to_lower_files_copy_them_up() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let tool = Head {
        mode: 0o4755,
        uid: 3,
        gid: 4,
        mtime: 77,
        size: 4,
        ..Head::new("usr/bin/tool", b'0')
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let below = Archive::new()
        .symlink("bin", "usr/bin")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .entry(&tool, b"tool")
        .symlink("usr/bin/alias", "tool")
        .finish();
    let above = Archive::new()
        .hard_link("usr/bin/again", "bin/tool")
        .hard_link("third", "usr/bin/again")
        .hard_link("link", "usr/bin/alias")
        .finish();
    let top = world.pull(&[below, above]).unwrap();
    let files = world.files_of(&top);
    for name in ["usr/bin/tool", "usr/bin/again", "third"] {
        let meta = fs::metadata(files.join(name)).unwrap();
        assert_eq!(meta.nlink(), 3, "{name}");
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()),
            (0o4755, 3, 4, 77)
        );
        let found = xattr(files.join(name), "security.capability");
        assert_eq!(found.as_deref(), Some(&capability[..]));
    }
    assert!(
        fs::symlink_metadata(files.join("link"))
            .unwrap()
            .is_symlink()
    );
    let missing = Archive::new().hard_link("x", "nowhere").finish();
    let hidden = Archive::new().file(".wh.third", b"").finish();
    let other = Archive::new().hard_link("y", "third").finish();
    assert!(world.pull(&[missing]).is_err());
    let base = Archive::new().file("third", b"3").finish();
    assert!(world.pull(&[base, hidden, other]).is_err());
}

#[test]
fn privileged_entries_go_through_symbolic_links_of_lower_layers() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let below = Archive::new()
        .dir("usr")
        .node(Head {
            mode: 0o711,
            uid: 9,
            ..Head::new("usr/bin", b'5')
        })
        .file("usr/bin/sh", b"sh")
        .symlink("bin", "usr/bin")
        .symlink("loop", "/bin")
        .finish();
    let above = Archive::new()
        .file("bin/tool", b"tool")
        .file("loop/deep/er", b"deeper")
        .hard_link("bin/link", "bin/tool")
        .file("bin/.wh.sh", b"")
        .finish();
    let top = world.pull(&[below, above]).unwrap();
    let seen = world.mounted(&top);
    assert!(seen["bin"].ends_with("-> usr/bin"), "{}", seen["bin"]);
    assert!(
        seen["usr/bin"].starts_with("40711 9:0"),
        "{}",
        seen["usr/bin"]
    );
    assert!(seen["usr/bin/tool"].contains(&content(b"tool")));
    assert!(seen["usr/bin/deep/er"].contains(&content(b"deeper")));
    assert!(
        seen["usr/bin/link"].contains("= usr/bin/link")
            || seen["usr/bin/tool"].contains("= usr/bin/link")
    );
    assert!(!seen.contains_key("usr/bin/sh"));
}

#[test]
fn privileged_whiteouts_apply_to_lower_layers_only() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let below = Archive::new()
        .file("a/low", b"low")
        .file("b/low", b"low")
        .file("c/low", b"low")
        .file("f", b"low")
        .file("g/low", b"low")
        .finish();
    let above = Archive::new()
        // Removed and made again, in both orders; opaque before and after content.
        .file(".wh.a", b"")
        .file("a/high", b"high")
        .file("b/high", b"high")
        .file(".wh.b", b"")
        .file("c/high", b"high")
        .file("c/.wh..wh..opq", b"")
        .file("f", b"high")
        .file(".wh.f", b"")
        // A file in between replaces the lower directory.
        .file("g", b"file")
        .dir("g")
        .file("g/high", b"high")
        .finish();
    let top = world.pull(&[below.clone(), above]).unwrap();
    let seen = world.mounted(&top);
    for directory in ["a", "b", "c", "g"] {
        assert!(
            seen.contains_key(&format!("{directory}/high")),
            "{directory}: {seen:?}"
        );
        assert!(
            !seen.contains_key(&format!("{directory}/low")),
            "{directory}: {seen:?}"
        );
    }
    assert!(seen["f"].contains(&content(b"high")));
    // An opaque root hides everything.
    let opaque = Archive::new()
        .file("only", b"1")
        .file(".wh..wh..opq", b"")
        .finish();
    let over = Archive::new().file("over", b"2").finish();
    let top = world.pull(&[below, opaque, over]).unwrap();
    let names: Vec<String> = world.mounted(&top).into_keys().collect();
    assert_eq!(names, ["", "only", "over"]);
}

#[test]
fn privileged_times_and_modes_of_directories_hold_after_their_content() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = Archive::new()
        .node(Head {
            mode: 0o555,
            mtime: 1000,
            ..Head::new("d", b'5')
        })
        .file("d/f", b"x")
        .pax(&[("mtime", b"-1.25")])
        .dir("d/e")
        .file("d/e/f", b"x")
        .finish();
    let above = Archive::new().hard_link("d/g", "d/f").finish();
    let top = world.pull(&[archive, above]).unwrap();
    let files = world.files_of(&top);
    let directory = fs::metadata(files.join("d")).unwrap();
    assert_eq!(
        (directory.mode() & 0o7777, directory.mtime()),
        (0o555, 1000)
    );
    let seen = world.mounted(&top);
    assert!(seen["d/g"].contains("= d/f"), "{seen:?}");
}
