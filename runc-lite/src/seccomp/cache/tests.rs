//! Tests of the cache: what it keeps, what it refuses, what it removes.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::seccomp::{FLAG_WAIT_KILLABLE_RECV, MAX_PROFILE};
use crate::sys::SECCOMP_NEW_LISTENER;

const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ERRNO",
    "syscalls":[{"names":["read","write","execve"],"action":"SCMP_ACT_ALLOW"}]}"#;

fn cached(root: &Path, profile: &str) -> Result<Filter, SeccompError> {
    filter(root, profile, &Log::none())
}

fn allow_all() -> Filter {
    Filter {
        flags: 0,
        programs: vec![vec![BpfInstruction {
            code: 6,
            jt: 0,
            jf: 0,
            k: 0x7fff_0000,
        }]],
        listener: None,
    }
}

fn entry(root: &Path) -> std::path::PathBuf {
    root.join(DIRECTORY).join(hex(&key(PROFILE)))
}

#[test]
fn the_second_lookup_reads_what_the_first_wrote() {
    let root = tempfile::tempdir().unwrap();
    let first = cached(root.path(), PROFILE).unwrap();
    assert!(entry(root.path()).exists());
    let directory = open_directory(root.path()).unwrap();
    assert_eq!(read(&directory, &key(PROFILE)), Some(first.clone()));
    assert_eq!(cached(root.path(), PROFILE).unwrap(), first);
}

#[test]
fn a_hostile_or_damaged_entry_is_compiled_again() {
    let root = tempfile::tempdir().unwrap();
    let good = cached(root.path(), PROFILE).unwrap();
    let path = entry(root.path());
    let bytes = std::fs::read(&path).unwrap();
    let mut flipped = bytes.clone();
    flipped[48 + 3] ^= 1;
    let damaged: Vec<Vec<u8>> = vec![
        Vec::new(),
        bytes[..bytes.len() - 1].to_vec(),
        flipped,
        vec![0; bytes.len()],
        // Well formed, but the entry of another profile.
        encode(&[7; 32], &allow_all()),
    ];
    for bytes in damaged {
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(cached(root.path(), PROFILE).unwrap(), good);
    }
    // Well formed and rightly named, but writable by others.
    std::fs::write(&path, encode(&key(PROFILE), &allow_all())).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    assert_eq!(cached(root.path(), PROFILE).unwrap(), good);
    // A link to such an entry.
    let elsewhere = root.path().join("elsewhere");
    std::fs::write(&elsewhere, encode(&key(PROFILE), &allow_all())).unwrap();
    std::fs::set_permissions(&elsewhere, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::remove_file(&path).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert_eq!(cached(root.path(), PROFILE).unwrap(), good);
}

#[test]
fn a_directory_others_can_write_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    cached(root.path(), PROFILE).unwrap();
    let directory = root.path().join(DIRECTORY);
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
    assert!(open_directory(root.path()).is_none());
    assert!(cached(root.path(), PROFILE).is_ok());
}

#[test]
fn an_entry_survives_the_round_trip_with_all_its_parts() {
    let program = allow_all().programs.remove(0);
    let whole = Filter {
        flags: SECCOMP_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV,
        programs: vec![program.clone(), program],
        listener: Some(Listener {
            path: "/run/agent".to_owned(),
            metadata: "some\ntext".to_owned(),
        }),
    };
    assert_eq!(decode(&encode(&[1; 32], &whole), &[1; 32]), Some(whole));
}

#[test]
fn an_entry_that_is_no_seccomp_filter_is_not_used() {
    let with = |change: &dyn Fn(&mut Filter)| {
        let mut filter = allow_all();
        change(&mut filter);
        decode(&encode(&[1; 32], &filter), &[1; 32])
    };
    assert!(with(&|_| {}).is_some());
    assert_eq!(with(&|f| f.programs.clear()), None);
    assert_eq!(with(&|f| f.programs[0].clear()), None);
    // A jump behind the end, a load behind the data, an instruction of other filters, a strange answer.
    for (code, k) in [
        (0x05, 1),
        (0x20, 64),
        (0x20, 2),
        (0x28, 0),
        (0x06, 0x7fff_0001),
        (0x06, 0x0004_0000),
    ] {
        let strange = BpfInstruction {
            code,
            jt: 0,
            jf: 0,
            k,
        };
        assert_eq!(
            with(&|f| f.programs[0].insert(0, strange)),
            None,
            "{code:#x} {k:#x}"
        );
    }
    // No answer at the end, and more instructions than the kernel takes.
    assert_eq!(with(&|f| f.programs[0][0].code = 0x20), None);
    assert_eq!(
        with(&|f| f.programs[0] = vec![f.programs[0][0]; MAX_INSTRUCTIONS + 1]),
        None
    );
    // Flags nobody knows, a listener without its flag, a question without a listener.
    assert_eq!(with(&|f| f.flags = 1 << 4), None);
    assert_eq!(with(&|f| f.flags = SECCOMP_NEW_LISTENER), None);
    assert_eq!(with(&|f| f.programs[0][0].k = 0x7fc0_0000), None);
}

#[test]
fn any_damage_to_an_entry_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let good = cached(root.path(), PROFILE).unwrap();
    let bytes = std::fs::read(entry(root.path())).unwrap();
    let key = key(PROFILE);
    assert_eq!(decode(&bytes, &key), Some(good));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        assert_eq!(decode(&damaged, &key), None, "byte {at}");
        assert_eq!(decode(&bytes[..at], &key), None, "cut at {at}");
    }
}

#[test]
fn a_fifo_a_directory_or_a_second_link_in_the_place_of_an_entry_is_not_read() {
    let root = tempfile::tempdir().unwrap();
    let good = cached(root.path(), PROFILE).unwrap();
    let path = entry(root.path());
    let other = root.path().join("other");
    std::fs::hard_link(&path, &other).unwrap();
    let directory = open_directory(root.path()).unwrap();
    assert_eq!(read(&directory, &key(PROFILE)), None, "two links");
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert_eq!(
        read(&directory, &key(PROFILE)),
        None,
        "a FIFO, and without waiting"
    );
    assert_eq!(cached(root.path(), PROFILE).unwrap(), good);
    assert!(
        read(&directory, &key(PROFILE)).is_some(),
        "replaced by the rename"
    );
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(cached(root.path(), PROFILE).unwrap(), good);
}

#[test]
fn the_directory_stays_bounded_and_keeps_the_newest() {
    let root = tempfile::tempdir().unwrap();
    let profile = |errno: usize| {
        format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":{errno},"syscalls":[]}}"#)
    };
    let directory = root.path().join(DIRECTORY);
    let count = || std::fs::read_dir(&directory).unwrap().count();
    for errno in 1..=2 * MAX_ENTRIES {
        cached(root.path(), &profile(errno)).unwrap();
        assert!(count() <= MAX_ENTRIES);
    }
    let open = open_directory(root.path()).unwrap();
    assert!(read(&open, &key(&profile(2 * MAX_ENTRIES))).is_some());
    assert!(read(&open, &key(&profile(1))).is_none());
    // What is large goes as well, whatever its name.
    for number in 0..4 {
        let file = std::fs::File::create(directory.join(format!("left-{number}"))).unwrap();
        file.set_len(MAX_TOTAL / 2).unwrap();
    }
    cached(root.path(), PROFILE).unwrap();
    let total: u64 = std::fs::read_dir(&directory)
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(total <= MAX_TOTAL, "{total}");
    assert!(read(&open, &key(PROFILE)).is_some());
}

#[test]
fn writers_at_the_same_time_and_readers_between_them_see_whole_entries() {
    let root = tempfile::tempdir().unwrap();
    let expect = cached(root.path(), PROFILE).unwrap();
    let path = entry(root.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let _ = std::fs::remove_file(&path);
                    assert_eq!(cached(root.path(), PROFILE).unwrap(), expect);
                }
            });
        }
    });
    let left = std::fs::read_dir(root.path().join(DIRECTORY)).unwrap();
    assert!(left.count() <= 1, "temporary files left");
}

#[test]
fn a_profile_above_the_bound_is_refused_before_it_is_looked_at() {
    let root = tempfile::tempdir().unwrap();
    let profile = " ".repeat(MAX_PROFILE + 1);
    let error = cached(root.path(), &profile).unwrap_err();
    assert!(matches!(error, SeccompError::TooBig { .. }), "{error}");
}
