//! One pod of the load: a container that ends by itself and is made again, and one that runs until it is stopped.

use std::path::PathBuf;

use anyhow::Result;
use axil_proto::cri::{ContainerFilter, ContainerState, PodSandboxConfig};

use super::{Asker, Place, log_directory};
use crate::build::{ContainerBuilder, PodBuilder};

/// Exit codes of the container that is told to stop: its own, or that of SIGTERM before the shell is ready for it.
const POLITE: [i32; 2] = [7, 143];

/// A place for a pod: it is empty, or the pod runs.
pub(super) struct Slot {
    name: String,
    logs: PathBuf,
    attempt: u32,
    running: Option<Running>,
    /// Ids whose lives are over.
    pub(super) ended: Vec<String>,
}

struct Running {
    id: String,
    config: PodSandboxConfig,
    short: Option<Short>,
    long: Option<String>,
    restarts: u32,
}

struct Short {
    id: String,
    code: i32,
}

impl Slot {
    pub(super) fn new(place: &Place, name: &str) -> Result<Self> {
        Ok(Self {
            logs: log_directory(&place.logs, name)?,
            name: name.to_owned(),
            attempt: 0,
            running: None,
            ended: Vec::new(),
        })
    }

    /// Does what a kubelet would do next.
    pub(super) fn step(&mut self, asker: &mut Asker, image: &str) {
        let Some(running) = &mut self.running else {
            return self.begin(asker, image);
        };
        match asker.dice.u32(0..10) {
            0 => self.end(asker),
            1 | 2 => running.restart_long(asker, image, &mut self.ended),
            3..=6 => running.look_at_short(asker, image, &mut self.ended),
            _ => running.relist(asker),
        }
    }

    fn begin(&mut self, asker: &mut Asker, image: &str) {
        let attempt = self.attempt;
        let logs = self.logs.to_string_lossy();
        // In a PID namespace of its own the first process would ignore a SIGTERM that comes early.
        let builder = PodBuilder::new(&self.name, &logs)
            .shared_pids()
            .with(|config| {
                if let Some(metadata) = &mut config.metadata {
                    metadata.attempt = attempt;
                }
            });
        self.attempt += 1;
        let config = builder.build();
        let what = format!("RunPodSandbox {} attempt {attempt}", self.name);
        let Some(id) = asker.insist(&what, |cri| cri.run_pod(&config)) else {
            return;
        };
        asker.report.pods += 1;
        let mut running = Running {
            id,
            config,
            short: None,
            long: None,
            restarts: 0,
        };
        running.start_long(asker, image);
        running.start_short(asker, image);
        self.running = Some(running);
    }

    /// Stops and removes the pod and what is in it.
    pub(super) fn end(&mut self, asker: &mut Asker) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        running.end_long(asker, &mut self.ended);
        let id = running.id.clone();
        asker.insist("StopPodSandbox", |cri| cri.stop_pod(&id));
        if let Some(short) = running.short.take() {
            asker.insist("RemoveContainer", |cri| cri.remove(&short.id));
            self.ended.push(short.id);
        }
        if asker
            .insist("RemovePodSandbox", |cri| cri.remove_pod(&id))
            .is_some()
        {
            self.ended.push(id);
        }
    }
}

impl Running {
    fn start(&mut self, asker: &mut Asker, container: &ContainerBuilder) -> Option<String> {
        let (pod, config) = (
            self.id.clone(),
            container.clone().attempt(self.restarts).build(),
        );
        self.restarts += 1;
        let sandbox = &self.config;
        let id = asker.insist("CreateContainer", |cri| cri.create(&pod, &config, sandbox))?;
        // The kubelet does not ask twice: what it gives up here it makes anew.
        asker.ask("StartContainer", |cri| cri.start(&id))?;
        asker.report.containers += 1;
        Some(id)
    }

    fn start_long(&mut self, asker: &mut Asker, image: &str) {
        let script = "trap 'exit 7' TERM; while :; do sleep 0.2; done";
        let container = ContainerBuilder::new("long", image).shell(script);
        self.long = self.start(asker, &container);
    }

    fn start_short(&mut self, asker: &mut Asker, image: &str) {
        let code = asker.dice.i32(0..100);
        let pause = asker.dice.u32(0..8);
        let script = format!("sleep 0.{pause}; exit {code}");
        let container = ContainerBuilder::new("short", image).shell(&script);
        let id = self.start(asker, &container);
        self.short = id.map(|id| Short { id, code });
    }

    fn restart_long(&mut self, asker: &mut Asker, image: &str, ended: &mut Vec<String>) {
        self.end_long(asker, ended);
        self.start_long(asker, image);
    }

    fn end_long(&mut self, asker: &mut Asker, ended: &mut Vec<String>) {
        let Some(id) = self.long.take() else { return };
        asker.insist("StopContainer", |cri| cri.stop(&id, 60));
        let status = asker.insist("ContainerStatus", |cri| cri.container_status(&id));
        if let Some(status) = status
            && (status.state() != ContainerState::ContainerExited
                || !POLITE.contains(&status.exit_code))
        {
            let state = (status.state(), status.exit_code);
            let problem = format!("container {id} was stopped and is {state:?}, not {POLITE:?}");
            asker.report.problems.push(problem);
        }
        asker.insist("RemoveContainer", |cri| cri.remove(&id));
        ended.push(id);
    }

    /// When the short container has ended, its exit code is compared, and it is made again.
    fn look_at_short(&mut self, asker: &mut Asker, image: &str, ended: &mut Vec<String>) {
        let Some(short) = &self.short else {
            return self.start_short(asker, image);
        };
        let (id, code) = (short.id.clone(), short.code);
        let status = asker.insist("ContainerStatus", |cri| cri.container_status(&id));
        let Some(status) = status else { return };
        if status.state() != ContainerState::ContainerExited {
            return;
        }
        if status.exit_code != code {
            let told = status.exit_code;
            let problem = format!("container {id} ended with {code}, told is {told}");
            asker.report.problems.push(problem);
        }
        asker.insist("RemoveContainer", |cri| cri.remove(&id));
        ended.push(id);
        self.start_short(asker, image);
    }

    /// What the kubelet looks at after each change: the containers of the pod.
    fn relist(&mut self, asker: &mut Asker) {
        let filter = ContainerFilter {
            pod_sandbox_id: self.id.clone(),
            ..ContainerFilter::default()
        };
        let wanted = usize::from(self.long.is_some()) + usize::from(self.short.is_some());
        let listed = asker.insist("ListContainers", |cri| cri.containers(Some(filter.clone())));
        if let Some(listed) = listed
            && listed.len() != wanted
        {
            let ids: Vec<_> = listed.iter().map(|one| &one.id).collect();
            let problem = format!("pod {}: {ids:?} are listed, {wanted} were made", self.id);
            asker.report.problems.push(problem);
        }
    }
}
