//! What the fuzz targets do with their bytes (`fuzz/fuzz_targets` only names these functions, so that the
//! everyday build checks them). Each panics when something that must always hold does not.

use crate::config::{Config, Linux, Process};
use crate::process::message::{Message, ToChild, ToParent};
use crate::seccomp::compile::compile;
use crate::seccomp::program::{Call, decide, is_legal, run};
use crate::spec::{plan, plan_process};
use crate::state::Record;
use crate::sys::BpfInstruction;

/// `config.json`: any bytes give a plan or an error.
pub fn oci_spec(bytes: &[u8]) {
    let Ok(config) = serde_json::from_slice::<Config>(bytes) else {
        return;
    };
    let mut warnings = Vec::new();
    if let Ok(plan) = plan(config, &mut warnings) {
        assert!(!plan.process.args.is_empty(), "there is a program to run");
        let clean = plan.mounts.iter().all(|m| m.destination.starts_with('/'));
        assert!(clean, "mount points are absolute");
    }
}

/// The file of `exec --process`, and the process of a document.
pub fn process_document(bytes: &[u8]) {
    if let Ok(process) = serde_json::from_slice::<Process>(bytes)
        && let Ok(plan) = plan_process(process, &Linux::default())
    {
        assert!(!plan.args.is_empty(), "there is a program to run");
        assert!(plan.cwd.starts_with('/'), "the directory is absolute");
    }
}

/// One packet between the runtime's processes, in both directions: what is understood means the same when it
/// is sent again.
pub fn handshake_message(bytes: &[u8]) {
    fn check<M: Message + PartialEq + std::fmt::Debug>(tag: u8, payload: &[u8]) {
        let Some(message) = M::decode(tag, payload) else {
            return;
        };
        let (tag, payload) = message.encode();
        assert_eq!(M::decode(tag, payload).as_ref(), Some(&message));
    }
    let Some((tag, payload)) = bytes.split_first() else {
        return;
    };
    check::<ToParent>(*tag, payload);
    check::<ToChild>(*tag, payload);
}

/// A seccomp profile: whatever compiles is a program the kernel takes, and answers every call. Bytes that are
/// no JSON are taken for a program: one that counts as legal runs to an answer.
pub fn seccomp_profile(bytes: &[u8]) {
    if bytes.first() != Some(&b'{') {
        return program(bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(filter) = compile(text, &mut |_| {}) else {
        return;
    };
    assert!(filter.programs.iter().all(|program| is_legal(program)));
    for nr in [
        0,
        1,
        59,
        102,
        117,
        231,
        317,
        435,
        5000,
        0x4000_0000,
        0x4000_0200,
        u32::MAX,
    ] {
        for arch in [0xc000_003e, 0x4000_0003, 0xc000_00b7, 0x4000_0028] {
            for argument in [0, 1, u64::from(u32::MAX), u64::MAX] {
                let args = [argument; 6];
                let answer = decide(&filter.programs, &Call { nr, arch, args });
                assert!(answer.is_some(), "{nr:#x} of {arch:#x} has an answer");
            }
        }
    }
}

fn program(bytes: &[u8]) {
    let instructions: Vec<BpfInstruction> = bytes
        .chunks_exact(8)
        .filter_map(|chunk| Some(BpfInstruction::from_bytes(chunk.try_into().ok()?)))
        .collect();
    if is_legal(&instructions) {
        let call = Call {
            nr: 59,
            arch: 0xc000_003e,
            args: [1, 2, 3, 4, 5, 6],
        };
        assert!(
            run(&instructions, &call).is_some(),
            "a legal program answers"
        );
    }
}

/// `state.json`: a record that is read is the same after it was written.
pub fn state_record(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Record>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&record).expect("a record is always JSON");
    let again: Record = serde_json::from_slice(&written).expect("what was written is read");
    let same = serde_json::to_vec(&again).is_ok_and(|second| second == written);
    assert!(same, "a record survives the round trip");
}

/// A target.
pub type Target = fn(&[u8]);

/// Every target by the name of its file in `fuzz/fuzz_targets`.
pub const TARGETS: [(&str, Target); 5] = [
    ("handshake_message", handshake_message),
    ("oci_spec", oci_spec),
    ("process_document", process_document),
    ("seccomp_profile", seccomp_profile),
    ("state_record", state_record),
];

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz")
            .join(name)
    }

    fn names(folder: &PathBuf) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_target_has_its_file_and_its_line_in_the_manifest() {
        let manifest = std::fs::read_to_string(folder("Cargo.toml")).unwrap();
        let files: Vec<String> = TARGETS
            .iter()
            .map(|(name, _)| format!("{name}.rs"))
            .collect();
        assert_eq!(names(&folder("fuzz_targets")), files);
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            let source = std::fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs")));
            let call = format!("runc_lite::fuzzing::{name}(bytes)");
            assert!(source.unwrap().contains(&call), "{name}");
        }
    }

    #[test]
    fn the_seeds_and_their_damaged_neighbours_hold_what_the_targets_check() {
        for (name, target) in TARGETS {
            let folder = folder("seeds").join(name);
            let seeds = names(&folder);
            assert!(!seeds.is_empty(), "{name} has seeds");
            for seed in seeds {
                let bytes = std::fs::read(folder.join(seed)).unwrap();
                target(&bytes);
                for at in 0..bytes.len() {
                    target(&bytes[..at]);
                    for change in [0x01, 0x20, 0xff] {
                        let mut damaged = bytes.clone();
                        damaged[at] ^= change;
                        target(&damaged);
                    }
                }
            }
        }
    }

    #[test]
    fn the_seeds_are_documents_that_are_accepted() {
        for seed in names(&folder("seeds/oci_spec")) {
            let bytes = std::fs::read(folder("seeds/oci_spec").join(&seed)).unwrap();
            let config = serde_json::from_slice(&bytes).unwrap();
            plan(config, &mut Vec::new()).unwrap_or_else(|e| panic!("{seed}: {e}"));
        }
        for seed in names(&folder("seeds/process_document")) {
            let bytes = std::fs::read(folder("seeds/process_document").join(&seed)).unwrap();
            let process = serde_json::from_slice(&bytes).unwrap();
            plan_process(process, &Linux::default()).unwrap_or_else(|e| panic!("{seed}: {e}"));
        }
        let record = std::fs::read(folder("seeds/state_record/full")).unwrap();
        serde_json::from_slice::<Record>(&record).unwrap();
    }
}
