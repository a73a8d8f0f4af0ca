//! UpdateContainerResources: oom_score, cgroups.
//!
//! The driver has recorded what is wanted before this runs, and records the outcome after it: a daemon that dies
//! in between does the update again, and every write here may be done twice.

use std::sync::Arc;

use axil_proto::ids::ContainerId;

use super::Shared;
use super::steps::{Failed, Steps};
use crate::domain::container::oci;
use crate::domain::failure::{Class, Failure};
use crate::domain::resources::LinuxResources;
use crate::ports::Shim;

/// What UpdateContainerResources works on.
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct Work {
    /// What all share.
    pub shared: Arc<Shared>,
    /// The container.
    pub id: ContainerId,
    /// Its cgroup.
    pub cgroup: String,
    /// What the kernel is told.
    pub plan: UpdatePlan,
    /// Its pod's shim.
    pub shim: Arc<dyn Shim>,
}

/// A checked update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdatePlan {
    /// The container's limits afterwards.
    pub wanted: LinuxResources,
    /// OCI resources to set; empty when no cgroup file changes.
    document: Vec<u8>,
    /// OCI resources that take it back.
    undo: Vec<u8>,
    /// The `oom_score_adj` before and after, when it changes.
    oom_score_adj: Option<(i64, i64)>,
}

impl UpdatePlan {
    /// Plans a change of a container's limits.
    ///
    /// # Errors
    /// The field that is wrong, or that this host has no limit for.
    pub fn new(
        before: &LinuxResources,
        change: &LinuxResources,
        host: &oci::HostFacts,
    ) -> Result<Self, Failure> {
        let refused = |error: oci::OciError| Failure::new(error.class(), error.to_string());
        let wanted = before.with(change);
        // The whole has to be possible as well: a limit may contradict one that stays.
        oci::cgroup_resources(&wanted, None, host).map_err(refused)?;
        let document = |resources: &LinuxResources| -> Result<Vec<u8>, Failure> {
            let resources = oci::cgroup_resources(resources, None, host).map_err(refused)?;
            let json = serde_json::to_vec(&resources);
            let json = json.map_err(|error| Failure::internal("encode resources", &error))?;
            Ok(if json == b"{}" { Vec::new() } else { json })
        };
        let oom_score_adj = match change.oom_score_adj {
            0 => None,
            asked => {
                let score = |asked| oci::oom_score_adj(asked, host).map_err(refused);
                Some((score(before.oom_score_adj)?, score(asked)?))
            }
        };
        Ok(Self {
            document: document(&change.completed_from(&wanted))?,
            undo: document(&before.reversal_of(change))?,
            wanted,
            oom_score_adj,
        })
    }
}

/// Changes limits of a container, all or none.
///
/// # Errors
/// What the kernel refused; nothing is changed then.
pub async fn update_container_resources(work: Work) -> Result<(), Failure> {
    let Work {
        shared,
        id,
        cgroup,
        plan,
        shim,
    } = work;
    let cgroups = &shared.ports.cgroups;
    let mut steps = Steps::begin("UpdateContainerResources");
    let result = async {
        if let Some((before, after)) = plan.oom_score_adj {
            let undo = cgroups.set_oom_score_adj(&cgroup, before);
            let act = cgroups.set_oom_score_adj(&cgroup, after);
            steps.run_undo("oom_score", act, undo).await?;
        }
        // The runtime writes all of it or nothing; whether it did is not known when it does not answer.
        let tell = |document: &Vec<u8>| {
            let (shim, id, document) = (Arc::clone(&shim), id.clone(), document.clone());
            async move {
                if document.is_empty() {
                    return Ok(());
                }
                shim.update(&id, document).await
            }
        };
        let act = async {
            tell(&plan.document)
                .await
                .map_err(|f| refusal(f, &plan.wanted))
        };
        let undo = tell(&plan.undo);
        steps.run_undo("cgroups", act, undo).await
    };
    match result.await {
        Ok(()) => Ok(()),
        Err(failure) => {
            let Failed { failure, left } = steps.undo(failure).await;
            for left in &left {
                tracing::error!(container.id = %id, error = %left, "an update was not taken back");
            }
            Err(failure)
        }
    }
}

/// The files of limits of both cgroup versions, and the field that is written to each; runc, and `runc-lite` with it,
/// tells of a limit of memory below what is used without the file.
const FILES: [(&str, &str); 12] = [
    ("memory.memsw.limit_in_bytes", "memory_swap_limit_in_bytes"),
    ("memory.swap.max", "memory_swap_limit_in_bytes"),
    ("memory.limit_in_bytes", "memory_limit_in_bytes"),
    ("memory.max", "memory_limit_in_bytes"),
    ("memory limit", "memory_limit_in_bytes"),
    ("cpuset.cpus", "cpuset_cpus"),
    ("cpuset.mems", "cpuset_mems"),
    ("cpu.cfs_quota_us", "cpu_quota"),
    ("cpu.cfs_period_us", "cpu_period"),
    ("cpu.max", "cpu_quota"),
    ("cpu.shares", "cpu_shares"),
    ("cpu.weight", "cpu_shares"),
];

/// What the kernel says of a value that it does not take as `strerror(3)` of glibc and of musl have it, in lower case: no such
/// value, out of range, not part of the parent's set, in use beyond it; and runc's words for the last.
const REFUSALS: [&str; 7] = [
    "invalid argument",
    "numerical result out of range",
    "result not representable",
    "permission denied",
    "resource busy",
    "rejecting memory limit",
    "unable to set memory limit",
];

/// Runtimes say that the kernel did not take a value only in words. Such a value is wrong for this container as it
/// is now, which the client can mend; everything else stays what it is.
fn refusal(failure: Failure, wanted: &LinuxResources) -> Failure {
    if failure.class != Class::Internal {
        return failure;
    }
    let said = failure.message.to_lowercase();
    let Some((_, field)) = FILES.iter().find(|(file, _)| said.contains(file)) else {
        return failure;
    };
    if !REFUSALS.iter().any(|refusal| said.contains(refusal)) {
        return failure;
    }
    let value = match *field {
        "memory_swap_limit_in_bytes" => wanted.memory_swap_limit_bytes.to_string(),
        "memory_limit_in_bytes" => wanted.memory_limit_bytes.to_string(),
        "cpuset_cpus" => wanted.cpuset_cpus.clone(),
        "cpuset_mems" => wanted.cpuset_mems.clone(),
        "cpu_quota" => wanted.cpu_quota_us.to_string(),
        "cpu_period" => wanted.cpu_period_us.to_string(),
        _ => wanted.cpu_shares.to_string(),
    };
    let message = format!(
        "linux.{field}: {value}: not possible now: {}",
        failure.message
    );
    Failure::new(Class::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> oci::HostFacts {
        oci::HostFacts {
            swap: true,
            ..oci::HostFacts::default()
        }
    }

    fn plan(
        before: &LinuxResources,
        change: &LinuxResources,
    ) -> Result<(String, Option<(i64, i64)>), Failure> {
        let plan = UpdatePlan::new(before, change, &host())?;
        let json = String::from_utf8(plan.document).unwrap();
        Ok((json, plan.oom_score_adj))
    }

    #[test]
    fn only_what_changes_is_written_and_memory_with_its_swap() {
        let before = LinuxResources {
            cpu_shares: 512,
            memory_limit_bytes: 100,
            memory_swap_limit_bytes: 150,
            ..LinuxResources::default()
        };
        let cpu = LinuxResources {
            cpu_quota_us: 20_000,
            cpu_period_us: 100_000,
            ..LinuxResources::default()
        };
        let cpu_only = r#"{"cpu":{"quota":20000,"period":100000}}"#;
        assert_eq!(plan(&before, &cpu).unwrap(), (cpu_only.to_owned(), None));
        let memory = LinuxResources {
            memory_limit_bytes: 200,
            oom_score_adj: 300,
            ..LinuxResources::default()
        };
        let both = r#"{"memory":{"limit":200,"swap":250}}"#;
        assert_eq!(
            plan(&before, &memory).unwrap(),
            (both.to_owned(), Some((0, 300)))
        );
        let nothing = LinuxResources::default();
        assert_eq!(plan(&before, &nothing).unwrap(), (String::new(), None));
    }

    #[test]
    fn a_change_that_contradicts_what_stays_is_refused_by_name() {
        let before = LinuxResources {
            memory_limit_bytes: 100,
            memory_swap_limit_bytes: 100,
            ..LinuxResources::default()
        };
        let change = LinuxResources {
            memory_swap_limit_bytes: 50,
            ..LinuxResources::default()
        };
        let refused = plan(&before, &change).unwrap_err();
        assert!(
            refused.message.contains("memory_swap_limit_in_bytes"),
            "{refused}"
        );
        let unified = LinuxResources {
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..LinuxResources::default()
        };
        let refused = plan(&before, &unified).unwrap_err();
        assert!(refused.message.contains("unified"), "{refused}");
    }

    #[test]
    fn a_value_the_kernel_does_not_take_is_the_requests_fault_and_nothing_else_is() {
        let wanted = LinuxResources {
            memory_limit_bytes: 1,
            cpuset_cpus: "99".to_owned(),
            ..LinuxResources::default()
        };
        let of = |message: &str| refusal(Failure::new(Class::Internal, message), &wanted);
        let busy =
            of("cannot write 1 to /c/memory.limit_in_bytes: Device or resource busy (os error 16)");
        assert_eq!(busy.class, Class::InvalidArgument);
        assert!(
            busy.message.starts_with("linux.memory_limit_in_bytes: 1: "),
            "{busy}"
        );
        let used = of("OCI runtime update failed: rejecting memory limit 1 < usage 4096");
        assert!(
            used.message.starts_with("linux.memory_limit_in_bytes: 1: "),
            "{used}"
        );
        let cpus = of("write /c/cpuset.cpus: invalid argument");
        assert!(
            cpus.message.starts_with("linux.cpuset_cpus: 99: "),
            "{cpus}"
        );
        for other in [
            "cannot write 1 to /c/memory.max: No space left on device",
            "killed by signal 11",
        ] {
            assert_eq!(of(other).class, Class::Internal, "{other}");
        }
        let gone = Failure::new(Class::Unavailable, "cpuset.cpus: invalid argument");
        assert_eq!(refusal(gone, &wanted).class, Class::Unavailable);
    }
}
