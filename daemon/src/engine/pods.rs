//! The registry of pods: names are reserved here, and each pod's driver is found here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axil_proto::ids::{ContainerId, PodId};
use tokio::sync::{mpsc, oneshot};

use super::pod_driver::{Command, PodDriver};
use super::{Engine, Shared, lock};
use crate::domain::container::record::ResolvedImage;
use crate::domain::container::spec::{ContainerSpec, ImageSpec};
use crate::domain::failure::{Class, Failure, KubeletError};
use crate::domain::image::stored::StoredImage;
use crate::domain::pod::spec::{PodMetadata, PodSpec};
use crate::domain::resources::LinuxResources;
use crate::domain::selinux::{Contexts, PAIRS, Selinux};

/// Commands a driver may have waiting: more than a kubelet sends to one pod at once.
const COMMANDS: usize = 256;

/// How often a command is sent again because the pod ended in between.
const ATTEMPTS: usize = 16;

/// Which pods there are.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pods: HashMap<PodId, Entry>,
    names: HashMap<PodMetadata, PodId>,
    containers: HashMap<ContainerId, PodId>,
    /// SELinux levels in use.
    levels: HashMap<PodId, String>,
}

#[derive(Debug)]
struct Entry {
    spec: Arc<PodSpec>,
    commands: mpsc::Sender<Command>,
}

impl Index {
    /// Reserves a pod's name and opens its command channel.
    pub(crate) fn register(&mut self, id: &PodId, spec: &Arc<PodSpec>) -> mpsc::Receiver<Command> {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        self.names.insert(spec.metadata.clone(), id.clone());
        self.pods.insert(
            id.clone(),
            Entry {
                spec: Arc::clone(spec),
                commands,
            },
        );
        receiver
    }

    /// Forgets a pod and frees its name.
    pub(crate) fn forget_pod(&mut self, id: &PodId) {
        self.levels.remove(id);
        if let Some(entry) = self.pods.remove(id) {
            self.names.remove(&entry.spec.metadata);
        }
    }

    /// Gives a pod the SELinux level it asked for or had before.
    pub(crate) fn own_level(&mut self, id: &PodId, level: &str) {
        self.levels.insert(id.clone(), level.to_owned());
    }

    /// Gives a pod an SELinux level that no other pod has: the first that is free, counted from `number`. None in a
    /// policy without levels.
    pub(crate) fn free_level(
        &mut self,
        id: &PodId,
        contexts: &Contexts,
        number: u32,
    ) -> Option<String> {
        let mut levels = (0..PAIRS).map(|more| contexts.level(number.wrapping_add(more)));
        let level = levels.find(|level| {
            let used = |level: &String| self.levels.values().any(|used| used == level);
            !level.as_ref().is_some_and(used)
        });
        let level = level.flatten()?;
        self.own_level(id, &level);
        Some(level)
    }

    /// Tells whose container it is.
    pub(crate) fn own_container(&mut self, container: ContainerId, pod: PodId) {
        self.containers.insert(container, pod);
    }

    /// Forgets a container.
    pub(crate) fn forget_container(&mut self, container: &ContainerId) {
        self.containers.remove(container);
    }
}

/// A new random identifier: 64 hexadecimal digits, as the field's tools expect.
///
/// # Errors
/// The kernel gives no random bytes.
pub(crate) fn random_id() -> Result<String, Failure> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Class::Internal, format!("read random bytes: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The SELinux level of a new pod's containers, kept from others till the pod is gone; none without SELinux.
///
/// # Errors
/// `FailedPrecondition` or `InvalidArgument`: the pod's options cannot be honoured here.
pub(crate) async fn selinux_level(
    shared: &Shared,
    id: &PodId,
    spec: &PodSpec,
) -> Result<Option<String>, Failure> {
    let options = spec.security.selinux.as_ref();
    let asked = options.map(|options| options.level.as_str());
    let asked = asked.filter(|level| !level.is_empty());
    let Some(labels) = shared.host.selinux.labels(options, asked)? else {
        return Ok(None);
    };
    for context in [&labels.process, &labels.file] {
        crate::host::selinux::check(context).await?;
    }
    let mut number = [0; 4];
    getrandom::fill(&mut number)
        .map_err(|error| Failure::new(Class::Internal, format!("read random bytes: {error}")))?;
    let mut index = lock(&shared.index);
    Ok(match (asked, &shared.host.selinux) {
        (Some(level), _) => {
            index.own_level(id, level);
            Some(level.to_owned())
        }
        (None, Selinux::On(contexts)) => index.free_level(id, contexts, u32::from_ne_bytes(number)),
        (None, Selinux::Off | Selinux::NoContexts) => None,
    })
}

impl Engine {
    /// Runs a pod, or joins the attempt that runs the same one.
    ///
    /// # Errors
    /// `AlreadyExists` when the name belongs to another configuration, or the verb's own failure.
    pub async fn run_pod_sandbox(&self, spec: PodSpec) -> Result<PodId, Failure> {
        let spec = Arc::new(spec);
        for _ in 0..ATTEMPTS {
            let (reply, answer) = oneshot::channel();
            let commands = self.reserve(&spec)?;
            if commands.send(Command::Run(reply)).await.is_ok()
                && let Ok(result) = answer.await
            {
                return result;
            }
            // The pod ended between look-up and command: the name is free or about to be.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(Failure::new(
            Class::Unavailable,
            "the pod of this name keeps ending; try again",
        ))
    }

    /// The command channel of the pod with this name, spawning its driver if it is new.
    fn reserve(&self, spec: &Arc<PodSpec>) -> Result<mpsc::Sender<Command>, Failure> {
        let id: PodId = random_id()?
            .parse()
            .map_err(|e| Failure::internal("pod id", &e))?;
        let mut index = lock(&self.shared.index);
        if let Some(known) = index.names.get(&spec.metadata)
            && let Some(entry) = index.pods.get(known)
        {
            if entry.spec == *spec {
                return Ok(entry.commands.clone());
            }
            let m = &spec.metadata;
            return Err(Failure::new(
                Class::AlreadyExists,
                format!(
                    "pod {}/{} (uid {}, attempt {}) exists as {known} with another configuration",
                    m.namespace, m.name, m.uid, m.attempt
                ),
            ));
        }
        let receiver = index.register(&id, spec);
        let commands = index.pods.get(&id).map(|entry| entry.commands.clone());
        drop(index);
        PodDriver::new(&self.shared, id, Arc::clone(spec)).spawn(receiver);
        commands.ok_or_else(|| Failure::new(Class::Internal, "the new pod is not registered"))
    }

    /// Stops a pod; success when it is unknown or stopped.
    ///
    /// # Errors
    /// Something could not be given back.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Failure> {
        let Some(id) = self.find_pod(id)? else {
            return Ok(());
        };
        self.ask(&id, Command::Stop).await.unwrap_or(Ok(()))
    }

    /// Stops and removes a pod and its containers; success when it is unknown.
    ///
    /// # Errors
    /// Something could not be given back.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Failure> {
        let Some(id) = self.find_pod(id)? else {
            return Ok(());
        };
        let containers = self.shared.views.containers();
        let own = containers.iter().filter(|view| view.pod == id);
        let images: Vec<String> = own.map(|view| view.record.image.id.clone()).collect();
        self.ask(&id, Command::Remove).await.unwrap_or(Ok(()))?;
        self.images.collect_unless_kept(&images).await
    }

    /// Makes a container, or joins the attempt that makes the same one.
    ///
    /// # Errors
    /// `NotFound` for an unknown pod, `FailedPrecondition` for one that is not ready, `AlreadyExists`
    /// when the name belongs to another configuration, or the verb's own failure.
    pub async fn create_container(
        &self,
        pod: &str,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Failure> {
        let gone = || Failure::not_found(format!("pod sandbox {pod:?} does not exist"));
        let id = self.find_pod(pod)?.ok_or_else(gone)?;
        let view = self.shared.views.pod(&id).ok_or_else(gone)?;
        let namespace = &view.record.spec.metadata.namespace;
        let image = self.images.find(&spec.image.image)?.ok_or_else(|| {
            Failure::not_found(format!(
                "image {:?} is not on this node; pull it",
                spec.image.image
            ))
        })?;
        self.images
            .admit_use(&image, spec.image.asked(), namespace)?;
        let volumes = spec.mounts.iter().filter_map(|mount| mount.image.as_ref());
        let volumes = volumes
            .map(|volume| self.volume_image(&volume.image, namespace))
            .collect::<Result<Vec<_>, _>>()?;
        let make = |reply| {
            Command::Create(Box::new(Creation {
                spec,
                image,
                volumes,
                reply,
            }))
        };
        self.ask(&id, make).await.unwrap_or_else(|| Err(gone()))
    }

    /// The image of a volume, if a pod in `namespace` may use it.
    fn volume_image(
        &self,
        asked: &ImageSpec,
        namespace: &str,
    ) -> Result<Arc<StoredImage>, Failure> {
        let text = &asked.image;
        let refuse = |failure: Failure| match failure.known_as {
            Some(_) => failure,
            None => failure.known_as(KubeletError::ImageVolumeMountFailed),
        };
        let image = self.images.find(text)?.ok_or_else(|| {
            let message = format!("mounts.image {text:?} is not on this node; pull it");
            refuse(Failure::not_found(message))
        })?;
        let admitted = self.images.admit_use(&image, asked.asked(), namespace);
        admitted.map_err(|failure| refuse(failure.during(format!("mounts.image {text:?}"))))?;
        Ok(image)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` when it has ended, or the verb's own failure.
    pub async fn start_container(&self, id: &str) -> Result<(), Failure> {
        let (pod, container) = self.need_container(id)?;
        let gone = || Err(unknown_container(id));
        self.ask(&pod, |reply| Command::Start(container, reply))
            .await
            .unwrap_or_else(gone)
    }

    /// Stops a container within `grace`; success when it is unknown or has ended.
    ///
    /// # Errors
    /// It could not be ended.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Failure> {
        let Some((pod, container)) = self.find_container(id)? else {
            return Ok(());
        };
        let command = |reply| Command::StopContainer(container, grace, reply);
        self.ask(&pod, command).await.unwrap_or(Ok(()))
    }

    /// Ends and removes a container; success when it is unknown.
    ///
    /// # Errors
    /// Something could not be given back.
    pub async fn remove_container(&self, id: &str) -> Result<(), Failure> {
        let Some((pod, container)) = self.find_container(id)? else {
            return Ok(());
        };
        let view = self.shared.views.container(&container);
        let images: Vec<String> = view
            .iter()
            .map(|view| view.record.image.id.clone())
            .collect();
        let command = |reply| Command::RemoveContainer(container, reply);
        self.ask(&pod, command).await.unwrap_or(Ok(()))?;
        self.images.collect_unless_kept(&images).await
    }

    /// Changes limits of a container; what the change leaves unset stays.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` when it has ended, `InvalidArgument`, or what the kernel refused;
    /// nothing is changed then.
    pub async fn update_container_resources(
        &self,
        id: &str,
        change: LinuxResources,
    ) -> Result<(), Failure> {
        let (pod, container) = self.need_container(id)?;
        let command = |reply| Command::Update(container, Box::new(change), reply);
        self.ask(&pod, command)
            .await
            .unwrap_or_else(|| Err(unknown_container(id)))
    }

    /// Sends a command to a pod's driver; `None` when the pod is gone.
    pub(super) async fn ask<T>(
        &self,
        pod: &PodId,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let commands = lock(&self.shared.index).pods.get(pod)?.commands.clone();
        let (reply, answer) = oneshot::channel();
        commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    /// A pod by id or by a prefix that only one pod has.
    ///
    /// # Errors
    /// `InvalidArgument` when several pods match.
    pub fn find_pod(&self, id: &str) -> Result<Option<PodId>, Failure> {
        if id.is_empty() {
            return Err(Failure::invalid("pod_sandbox_id", id, "is empty"));
        }
        let Ok(parsed) = id.parse::<PodId>() else {
            return Ok(None);
        };
        if lock(&self.shared.index).pods.contains_key(&parsed) {
            return Ok(Some(parsed));
        }
        let found = self.shared.views.pods_by_prefix(id, 2);
        only(found).map_err(|()| Failure::invalid("pod_sandbox_id", id, "names several pods"))
    }

    /// A container by id or by a prefix that only one container has, with its pod.
    ///
    /// # Errors
    /// `InvalidArgument` when several containers match.
    pub fn find_container(&self, id: &str) -> Result<Option<(PodId, ContainerId)>, Failure> {
        if id.is_empty() {
            return Err(Failure::invalid("container_id", id, "is empty"));
        }
        let Ok(parsed) = id.parse::<ContainerId>() else {
            return Ok(None);
        };
        let index = lock(&self.shared.index);
        if let Some(pod) = index.containers.get(&parsed) {
            return Ok(Some((pod.clone(), parsed)));
        }
        let found = only(self.shared.views.containers_by_prefix(id, 2))
            .map_err(|()| Failure::invalid("container_id", id, "names several containers"))?;
        Ok(found.and_then(|id| index.containers.get(&id).cloned().map(|pod| (pod, id))))
    }

    pub(crate) fn need_container(&self, id: &str) -> Result<(PodId, ContainerId), Failure> {
        self.find_container(id)?
            .ok_or_else(|| unknown_container(id))
    }
}

/// The error for a container nobody knows.
pub(crate) fn unknown_container(id: &str) -> Failure {
    Failure::not_found(format!("container {id:?} does not exist"))
}

fn only<T>(mut found: Vec<T>) -> Result<Option<T>, ()> {
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        _ => Err(()),
    }
}

/// A container to make.
#[derive(Debug)]
pub struct Creation {
    /// What was asked for.
    pub spec: ContainerSpec,
    /// The image it names.
    pub image: Arc<StoredImage>,
    /// The images of its volumes, in the order of those mounts.
    pub volumes: Vec<Arc<StoredImage>>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<ContainerId, Failure>>,
}

impl Creation {
    /// The image, as the container's record keeps it.
    #[must_use]
    pub fn resolved_image(&self) -> ResolvedImage {
        resolved(&self.spec.image, &self.image)
    }

    /// The images of the volumes, likewise.
    #[must_use]
    pub fn resolved_volumes(&self) -> Vec<ResolvedImage> {
        let mounts = self.spec.mounts.iter();
        let asked = mounts.filter_map(|mount| mount.image.as_ref());
        let volumes = asked.zip(&self.volumes);
        volumes
            .map(|(volume, image)| resolved(&volume.image, image))
            .collect()
    }
}

fn resolved(asked: &ImageSpec, image: &StoredImage) -> ResolvedImage {
    let asked = [asked.user_specified_image.as_str(), asked.image.as_str()];
    ResolvedImage {
        id: image.id.clone(),
        reference: image.reference_for(&asked),
        tag: image.tag_for(&asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selinux_levels_are_apart_and_come_back() {
        let text = "process = \"u:r:c_t:s0\"\nfile = \"u:object_r:f_t:s0\"\n";
        let contexts = Contexts::parse(text).unwrap();
        let pod = |c: &str| c.repeat(64).parse::<PodId>().unwrap();
        let mut index = Index::default();
        index.own_level(&pod("a"), "s0:c0,c2");
        let free = |index: &mut Index, c, number| index.free_level(&pod(c), &contexts, number);
        assert_eq!(free(&mut index, "b", 0).unwrap(), "s0:c0,c1");
        assert_eq!(free(&mut index, "c", 0).unwrap(), "s0:c1,c2");
        assert!(free(&mut index, "d", u32::MAX).is_some());
        index.forget_pod(&pod("a"));
        assert_eq!(free(&mut index, "e", 0).unwrap(), "s0:c0,c2");
    }
}
