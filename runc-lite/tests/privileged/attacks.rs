//! Hostile images, containers and neighbours: the real bytes of the advisories, named by their numbers.
//!
//! One file per class. Every test has a canary: a file outside the container with its inode, mode, owner,
//! times and bytes, the host's device nodes, the sysctls the attacks were after, the mounts of the test's
//! namespace and the runtime's binary are compared with how they were. What an attack writes into the host, should
//! it get through, is what is there already. The hostile programs are in
//! `examples/attacker`. The same races for as long as one likes, with counts of what was tried:
//! `cargo run -p runc-lite --example attack-loops -- [--seconds N] [NAME...]`.
//!
//! The numbers are those of a catalogue of the advisories of runc, crun, youki and CRI-O:
//!
//! | number | advisory or fix | where |
//! | --- | --- | --- |
//! | 1 | CVE-2016-9962 | `descriptors`: an init that stops and traces newcomers |
//! | 2 | CVE-2019-5736 | `own_binary` |
//! | 3 | CVE-2024-21626 | `working_directory`, `descriptors` |
//! | 4 | descriptors in the created state | `descriptors` |
//! | 5 | weak check of the working directory | `working_directory`, `process/environment.rs` |
//! | 6 | CVE-2021-43784 | `identity`, `userns` |
//! | 7 | CVE-2016-3697 | `identity` |
//! | 8 | CVE-2022-29162, -24769, -27649 to -27652 | `identity` |
//! | 9 | CVE-2018-1000400 | `identity` |
//! | 10 | CVE-2025-27612 | `identity` |
//! | 11 | GHSA-g54h-m393-cpwq | `dev` |
//! | 12 | CVE-2023-25809 | `mounts`; in a user namespace: `userns` |
//! | 13 | `exec --cgroup` of a sibling | `identity` |
//! | 14 | ids that are paths | `identity` |
//! | 15 | CVE-2025-24965 | `mounts`: the system calls of create, by strace |
//! | 16 | CVE-2026-84042 | `descriptors`: hooks; no other helper is started |
//! | 17 | bpf(2) that writes past its buffer | `sys/bpf.rs`: unit test |
//! | 18 | CVE-2019-16884 | `proc` |
//! | 19 | CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2019-18837, CVE-2025-54867 | `proc` |
//! | 20 | CVE-2021-30465 | `mounts` |
//! | 21 | CVE-2024-45310 | `mounts` |
//! | 22 | CVE-2025-31133, CVE-2025-62161 | `masked` |
//! | 23 | CVE-2025-52565 | `console` |
//! | 24 | CVE-2025-52881, CVE-2025-62596 | `proc`, `sysctls` |
//! | 25 | CVE-2026-41579, CVE-2026-47766 | `dev` |
//! | 26 | CVE-2026-88264 | `console` with a terminal, `dev` without |
//! | 27 | CVE-2026-88265 | `dev` |
//! | 28 | CVE-2018-10892, CVE-2017-16539, CVE-2020-8694 | `masked`; the list itself is the kubelet's |
//! | 29 | masks through links | `masked` |
//! | 30 | `--no-pivot`, mounts left on the host | `mounts` |
//! | 31 | CVE-2026-119101 and kin | `mounts`: the verbs are absent and say so, sources in the image stay in it |
//! | 32 | CVE-2022-0492, CVE-2022-0185, CVE-2026-31431 | `seccomp`; the default profile: `daemon/src/domain/container/seccomp/default/tests.rs` |
//! | 33 | CVE-2023-2431 | `seccomp`; profiles by name: `daemon/src/domain/container/seccomp/localhost/tests.rs`, `daemon/src/cri/convert/pod.rs` |

pub(crate) mod arena;
mod console;
mod descriptors;
mod dev;
mod identity;
pub(crate) mod loops;
mod masked;
mod mounts;
mod own_binary;
mod proc;
mod seccomp;
mod sysctls;
mod working_directory;
