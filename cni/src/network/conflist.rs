//! Attaching and detaching by a conflist: what is recorded when, and what DEL is given.

use std::{path::Path, sync::Arc, time::Duration};

use super::{Core, Serving, addresses, undone};
use crate::{
    cache::{AttachmentRecord, Via},
    chain::{Attachment, Chain},
    conf::Conflist,
    error::NetworkError,
    lanes::Turn,
    netns,
    pod::{PodAddresses, PodNetwork},
    result::CniResult,
    select::Selection,
    stray,
};

impl Core {
    pub(super) async fn conflist_up(
        self: &Arc<Self>,
        pod: &PodNetwork,
        selection: Selection,
        mut timings: Vec<(String, Duration)>,
        turn: &Turn,
    ) -> Result<PodAddresses, NetworkError> {
        let list = selection.list;
        let _shared = self.garbage.read().await;
        let capabilities = pod.capabilities();
        warn_of_ignored(pod, &list);
        let via = Via::Conflist {
            file: selection.path,
            list: list.raw.clone(),
            args: pod.cni_args(),
            capabilities: capabilities.clone(),
        };
        let mut record = AttachmentRecord::new(&pod.id, &pod.netns, via);
        self.cache
            .put(record.clone())
            .map_err(NetworkError::Record)?;
        let attachment = Attachment {
            container_id: pod.id.clone(),
            netns: pod.netns.to_string_lossy().into_owned(),
            args: pod.cni_args(),
            capabilities,
        };
        let chain = Chain {
            list: &list,
            plugins: &self.plugins,
        };
        let attached = async {
            let result = chain.add(&attachment, &mut timings).await?;
            let addresses = addresses(&list.name, &result, timings)?;
            record.result = Some(result.raw);
            self.cache.put(record).map_err(NetworkError::Record)?;
            Ok(addresses)
        };
        match attached.await {
            Ok(addresses) => Ok(addresses),
            Err(cause) => Err(undone(
                &pod.id,
                cause,
                self.tear_down(&pod.id, Some(pod), turn).await,
            )),
        }
    }

    pub(super) async fn conflist_down(&self, record: AttachmentRecord) -> Vec<NetworkError> {
        if record.inherited && record.result.is_none() {
            let killed = stray::kill_plugins_of(&record.pod);
            tracing::info!(
                pod.id = record.pod,
                killed,
                "undoing an interrupted attachment"
            );
        }
        let (list, attachment) = match of_record(&record, &record.netns) {
            Ok(parts) => parts,
            Err(error) => return vec![error],
        };
        let result = record.result.map(|raw| CniResult::parse(raw, list.version));
        // It was checked before it was recorded; a damaged one is better left out of DEL.
        let result = result.and_then(Result::ok);
        let chain = Chain {
            list: &list,
            plugins: &self.plugins,
        };
        let mut errors = chain.delete(&attachment, result.as_ref()).await;
        if errors.is_empty() {
            errors.extend(
                self.cache
                    .remove(&record.pod)
                    .map_err(NetworkError::Record)
                    .err(),
            );
        }
        errors
    }

    pub(super) async fn present_conflist_down(
        &self,
        id: &str,
        pod: Option<&PodNetwork>,
    ) -> Vec<NetworkError> {
        let Ok(Serving::Conflist(selection)) = self.serving() else {
            return Vec::new();
        };
        let unknown = PodNetwork {
            id: id.to_owned(),
            ..PodNetwork::default()
        };
        let pod = pod.unwrap_or(&unknown);
        let attachment = Attachment {
            container_id: id.to_owned(),
            netns: usable(&pod.netns),
            args: pod.cni_args(),
            capabilities: pod.capabilities(),
        };
        let chain = Chain {
            list: &selection.list,
            plugins: &self.plugins,
        };
        chain.delete(&attachment, None).await
    }
}

/// The conflist and the arguments a pod's ADD had.
pub(super) fn of_record(
    record: &AttachmentRecord,
    netns: &Path,
) -> Result<(Conflist, Attachment), NetworkError> {
    let Via::Conflist {
        file,
        list,
        args,
        capabilities,
    } = &record.via
    else {
        unreachable!("called for conflists only");
    };
    let list =
        Conflist::parse(file, list.clone()).map_err(|error| NetworkError::Conf(Arc::new(error)))?;
    let attachment = Attachment {
        container_id: record.pod.clone(),
        netns: usable(netns),
        args: args.clone(),
        capabilities: capabilities.clone(),
    };
    Ok((list, attachment))
}

/// `CNI_NETNS` of DEL: empty when the namespace is gone, or something else is in its place.
fn usable(netns: &Path) -> String {
    match netns::open(netns) {
        Ok(_) => netns.to_string_lossy().into_owned(),
        Err(_) => String::new(),
    }
}

/// What the pod asks for and no plugin of the list will do.
fn warn_of_ignored(pod: &PodNetwork, list: &Conflist) {
    let declared = |name: &str| {
        list.plugins
            .iter()
            .any(|plugin| plugin.capabilities.contains(name))
    };
    let asked = [
        ("portMappings", !pod.host_ports().is_empty()),
        ("bandwidth", pod.bandwidth.is_some()),
    ];
    for (capability, _) in asked
        .iter()
        .filter(|(name, asked)| *asked && !declared(name))
    {
        tracing::warn!(
            pod.id = pod.id,
            network = list.name,
            capability,
            "no plugin has the capability"
        );
    }
}
