//! Archives made at random, unpacked by us and by GNU tar, compared entry by entry.
//!
//! `AXIL_TEST_ARCHIVES` is how many archives there are (60).

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use axil_snapshotter::Compression;

use crate::archive::{Archive, GNU, Head, USTAR};
use crate::world::{Layer, World, can_run, see};

/// A stream of numbers that depends on its seed only (xorshift).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.roll(from.len() as u64);
        &from[usize::try_from(at).unwrap()]
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.roll(most);
        let plain = self.roll(3) == 0;
        (0..length)
            .map(|_| {
                if plain {
                    0
                } else {
                    self.roll(256).to_le_bytes()[0]
                }
            })
            .collect()
    }
}

pub(crate) fn count(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// What an archive is about to make, so that entries refer to each other in ways every reader takes alike.
#[derive(Default)]
struct Made {
    directories: Vec<String>,
    files: Vec<String>,
    others: Vec<String>,
}

impl Made {
    fn free_path(&self, dice: &mut Dice) -> String {
        loop {
            let mut path = match dice.roll(3) {
                0 => String::new(),
                _ if self.directories.is_empty() => String::new(),
                _ => format!("{}/", dice.pick(&self.directories)),
            };
            for _ in 0..dice.roll(3) {
                path += dice.pick::<&str>(&["a/", "b c/", "d\u{e9}/", ".../", "-x/", "..y/"]);
            }
            path += dice.pick::<&str>(&[
                "f",
                "g",
                "file name",
                "\u{4e2d}",
                "*",
                "new\nline",
                "'q'",
                "\\b",
                "~",
            ]);
            path += &dice.roll(1000).to_string();
            if dice.roll(8) == 0 {
                path += &"long".repeat(usize::try_from(dice.roll(60)).unwrap());
            }
            if path.split('/').all(|name| name.len() < 255) && !self.is_taken(&path) {
                return path;
            }
        }
    }

    fn is_taken(&self, path: &str) -> bool {
        let below = |file: &String| {
            path.strip_prefix(&**file)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        let is = |other: &String| *other == path || other.starts_with(&format!("{path}/"));
        let solid = || self.files.iter().chain(&self.others);
        solid().any(|file| below(file) || is(file)) || self.directories.iter().any(is)
    }
}

/// Adds an entry in one of the notations for long names and large numbers.
fn add(
    archive: Archive,
    head: &Head,
    content: &[u8],
    mut records: Vec<(String, Vec<u8>)>,
    dice: &mut Dice,
) -> Archive {
    let mut head = head.clone();
    head.size = if matches!(head.kind, b'0' | b'7') {
        content.len() as u64
    } else {
        0
    };
    let mut archive = archive;
    let is_long = head.name.len() > 100 || head.link.len() > 100;
    if is_long && dice.roll(2) == 0 && records.is_empty() {
        // GNU: an entry with the name, ended by a NUL, before the entry itself.
        for (kind, text) in [(b'L', &head.name), (b'K', &head.link)] {
            if text.len() > 100 {
                let text = [text, &b"\0"[..]].concat();
                let long = Head {
                    size: text.len() as u64,
                    magic: GNU,
                    ..Head::new("././@LongLink", kind)
                };
                archive = archive.entry(&long, &text);
            }
        }
        head.magic = GNU;
    } else if is_long {
        records.push(("path".to_owned(), head.name.clone()));
        if !head.link.is_empty() {
            records.push(("linkpath".to_owned(), head.link.clone()));
        }
    } else {
        head.magic = if dice.roll(2) == 0 { GNU } else { USTAR };
    }
    if !records.is_empty() {
        let records: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (&**k, &**v)).collect();
        archive = archive.pax(&records);
    }
    archive.entry(&head, content)
}

fn random_archive(seed: u64) -> (Archive, Vec<String>) {
    let mut dice = Dice::new(seed);
    let mut made = Made::default();
    let mut archive = Archive::new();
    for _ in 0..5 + dice.roll(30) {
        let path = made.free_path(&mut dice);
        let mut head = Head {
            mode: dice.roll(0o10000),
            uid: *dice.pick(&[0, 1, 1000, 65_534, 2_000_000]),
            gid: *dice.pick(&[0, 5, 3_000_000]),
            mtime: dice.roll(1 << 32),
            ..Head::new(&path, b'0')
        };
        let mut records = Vec::new();
        if dice.roll(3) == 0 {
            let time = format!("{}.{:09}", head.mtime, dice.roll(1_000_000_000));
            records.push(("mtime".to_owned(), time.into_bytes()));
        }
        if dice.roll(6) == 0 {
            records.push((
                "comment".to_owned(),
                dice.bytes(50).iter().map(|b| b | 1).collect(),
            ));
        }
        let content = dice.bytes(3000);
        match dice.roll(12) {
            0 | 1 => {
                head.kind = b'5';
                if dice.roll(2) == 0 {
                    head.name.push(b'/');
                }
                if dice.roll(4) == 0 {
                    records.push(("SCHILY.xattr.user.d".to_owned(), dice.bytes(40)));
                }
                made.directories.push(path);
            }
            2 => {
                head.kind = b'2';
                head.link = dice
                    .pick(&["/etc", "../x", "f", "a b", "/"])
                    .as_bytes()
                    .to_vec();
                if dice.roll(5) == 0 {
                    head.link = format!("t/{}", "l".repeat(150)).into_bytes();
                }
                head.mode = 0o777;
                made.others.push(path);
            }
            3 if !made.files.is_empty() => {
                head.kind = b'1';
                let target = dice.pick(&made.files).clone();
                head.link = target.into_bytes();
                records.clear();
                made.others.push(path);
            }
            4 => {
                head.kind = b'6';
                made.others.push(path);
            }
            5 => {
                head.kind = *dice.pick(b"34");
                head.device = (1 + dice.roll(200), dice.roll(200_000));
                made.others.push(path);
            }
            6 if !made.files.is_empty() => {
                // Replaces what came before.
                head.name = dice.pick(&made.files).clone().into_bytes();
            }
            _ => {
                if dice.roll(3) == 0 {
                    let value = dice.bytes(200);
                    records.push(("SCHILY.xattr.user.note".to_owned(), value));
                }
                if dice.roll(9) == 0 {
                    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
                    records.push(("SCHILY.xattr.security.capability".to_owned(), capability));
                }
                made.files.push(path);
            }
        }
        let content = if head.kind == b'0' {
            content
        } else {
            Vec::new()
        };
        // A record without a value means that there is none.
        records.retain(|(_, value)| !value.is_empty());
        archive = add(archive, &head, &content, records, &mut dice);
    }
    (archive, made.directories)
}

/// What GNU tar makes of an archive.
fn by_tar(archive: &[u8], into: &Path) {
    let mut tar = Command::new("tar")
        .args([
            "--extract",
            "--file=-",
            "--numeric-owner",
            "--same-owner",
            "--same-permissions",
        ])
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--delay-directory-restore",
            "--directory",
        ])
        .arg(into)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tar is on every machine that has a package manager");
    // Ignored: a tar that does not read on says why.
    let _ = tar.stdin.take().unwrap().write_all(archive);
    let output = tar.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tar: {errors}");
}

/// As [`see`], with the times of directories that have an entry.
fn see_with_times(root: &Path, directories: &[String]) -> BTreeMap<String, String> {
    let mut seen = see(root);
    for directory in directories {
        let meta = fs::symlink_metadata(root.join(directory)).unwrap();
        let text = seen.get_mut(directory).unwrap();
        *text += &format!(" {}.{:09}", meta.mtime(), meta.mtime_nsec());
    }
    // The root has no entry.
    seen.remove("");
    seen
}

#[track_caller]
fn assert_equal(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>, what: &str) {
    let differ = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| -> Vec<String> {
        a.iter()
            .filter(|(name, text)| b.get(*name) != Some(text))
            .map(|(name, text)| format!("{name}: {text}"))
            .collect()
    };
    let (only_ours, only_theirs) = (differ(ours, theirs), differ(theirs, ours));
    assert!(
        only_ours.is_empty() && only_theirs.is_empty(),
        "{what}\nours:   {only_ours:#?}\ntheirs: {only_theirs:#?}"
    );
}

#[test]
fn privileged_random_archives_come_out_as_gnu_tar_unpacks_them() {
    if !can_run() {
        return;
    }
    let compressions = [Compression::None, Compression::Gzip, Compression::Zstd];
    let mut entries = 0;
    let count = count("AXIL_TEST_ARCHIVES", 60);
    for seed in 1..=count {
        let (archive, directories) = random_archive(seed);
        let archive = archive.finish();
        let theirs = tempfile::tempdir().unwrap();
        by_tar(&archive, theirs.path());
        let world = World::new();
        let compression = compressions[usize::try_from(seed % 3).unwrap()];
        let layer = Layer::compressed(None, &archive, compression);
        let staged = world
            .stage(&layer)
            .unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        world.store.commit_layers(vec![staged]).unwrap();
        let ours = see_with_times(&world.files_of(&layer.request.chain), &directories);
        let theirs = see_with_times(theirs.path(), &directories);
        assert_equal(&ours, &theirs, &format!("seed {seed}"));
        entries += ours.len();
    }
    println!("{count} archives, {entries} entries, no difference");
}
