//! Keeps the nf_tables table and the pods' host ports in it; the one writer of both.

use std::collections::BTreeMap;

use ipnet::IpNet;
use rustix::io::Errno;

use super::{
    BuiltinError, refused,
    ruleset::{self, Elements, POD_SETS, Published},
};
use crate::{
    netlink::nft::{Batch, Nft},
    options::BuiltinOptions,
};

/// What should be in the table, and the socket to put it there.
#[derive(Debug)]
pub(crate) struct Publisher {
    table: String,
    bridge: String,
    subnets: Vec<IpNet>,
    published: BTreeMap<String, Published>,
    nft: Option<Nft>,
    written: bool,
}

impl Publisher {
    pub(crate) fn new(
        options: &BuiltinOptions,
        published: BTreeMap<String, Published>,
    ) -> Publisher {
        Publisher {
            table: options.table.clone(),
            bridge: options.bridge.clone(),
            subnets: options.subnets.clone(),
            published,
            nft: None,
            written: false,
        }
    }

    /// Writes the table when this process did not yet, or somebody removed rules; returns whether
    /// it had to.
    pub(crate) fn ensure(&mut self) -> Result<bool, BuiltinError> {
        if self.written && self.rules_are_whole()? {
            return Ok(false);
        }
        self.write().map(|()| true)
    }

    /// Replaces the whole table in one commit; connections and pods do not notice.
    fn write(&mut self) -> Result<(), BuiltinError> {
        let elements = ruleset::elements(self.published.values());
        let (table, nft) = self.table_and_socket()?;
        let batch = ruleset::whole_table(&table, &self.bridge, &self.subnets, &elements);
        self.nft
            .insert(nft)
            .commit(batch)
            .map_err(refused("write nf_tables table", &table))?;
        self.written = true;
        Ok(())
    }

    /// Adds the ports of a pod, all or none.
    pub(crate) fn publish(&mut self, pod: &str, published: Published) -> Result<(), BuiltinError> {
        let elements = ruleset::elements([&published]);
        self.published.insert(pod.to_owned(), published);
        match self.commit(|batch, set| batch.add_elements(set, &list(&elements, set))) {
            // Somebody removed the table.
            Err(Errno::NOENT) => self.write(),
            done => done.map_err(refused("add host ports to nf_tables table", &self.table)),
        }
        .inspect_err(|_| {
            self.published.remove(pod);
        })
    }

    /// Removes the ports of a pod; none is no error.
    pub(crate) fn withdraw(&mut self, pod: &str) -> Result<(), BuiltinError> {
        let Some(published) = self.published.get(pod).filter(|pod| !pod.ports.is_empty()) else {
            return Ok(());
        };
        let published = published.clone();
        let elements = ruleset::elements([&published]);
        self.published.remove(pod);
        match self.commit(|batch, set| batch.delete_elements(set, &list(&elements, set))) {
            // Some of it is gone already, perhaps the table itself.
            Err(Errno::NOENT) => self.sweep(),
            done => done.map_err(refused(
                "remove host ports from nf_tables table",
                &self.table,
            )),
        }
        .inspect_err(|_| {
            self.published.insert(pod.to_owned(), published);
        })
    }

    /// Compares the table with what should be in it and repairs it; returns whether it had to.
    pub(crate) fn restore(&mut self) -> Result<bool, BuiltinError> {
        if self.rules_are_whole()?
            && let Some(changed) = self.align()?
        {
            return Ok(changed);
        }
        self.write().map(|()| true)
    }

    /// Whether the kernel speaks nf_tables; writes nothing.
    pub(crate) fn probe(&mut self) -> Result<(), BuiltinError> {
        self.rules_are_whole().map(drop)
    }

    fn rules_are_whole(&mut self) -> Result<bool, BuiltinError> {
        let (table, mut nft) = self.table_and_socket()?;
        let counts = nft.rule_counts(&table);
        self.nft = Some(nft);
        let counts = counts.map_err(refused("read nf_tables table", &table))?;
        Ok(ruleset::rules_are_whole(&counts))
    }

    /// Removes the ports of unknown pods, if there is a table.
    pub(crate) fn sweep(&mut self) -> Result<(), BuiltinError> {
        self.align().map(drop)
    }

    /// Makes the elements what they should be and returns whether they were not; `None` when a
    /// set is missing.
    fn align(&mut self) -> Result<Option<bool>, BuiltinError> {
        let (table, mut nft) = self.table_and_socket()?;
        let expected = ruleset::elements(self.published.values());
        let mut batch = Batch::new(&table);
        for set in POD_SETS {
            let found = nft
                .elements(&table, set)
                .map_err(refused("read nf_tables set", set))?;
            let Some(found) = found else {
                self.nft = Some(nft);
                return Ok(None);
            };
            let stray: Vec<_> = found.difference(&expected[set]).cloned().collect();
            let missing: Vec<_> = expected[set].difference(&found).cloned().collect();
            batch.delete_elements(set, &stray);
            batch.add_elements(set, &missing);
        }
        let changed = !batch.is_empty();
        let committed = nft.commit(batch);
        self.nft = Some(nft);
        committed
            .map_err(refused("write elements of nf_tables table", &table))
            .map(|()| Some(changed))
    }

    fn commit(&mut self, fill: impl Fn(&mut Batch<'_>, &'static str)) -> Result<(), Errno> {
        let mut nft = self.nft.take().map_or_else(Nft::open, Ok)?;
        let mut batch = Batch::new(&self.table);
        for set in POD_SETS {
            fill(&mut batch, set);
        }
        let committed = nft.commit(batch);
        self.nft = Some(nft);
        committed
    }

    fn table_and_socket(&mut self) -> Result<(String, Nft), BuiltinError> {
        let nft = self
            .nft
            .take()
            .map_or_else(Nft::open, Ok)
            .map_err(refused("open", "nfnetlink"))?;
        Ok((self.table.clone(), nft))
    }
}

fn list(elements: &Elements, set: &str) -> Vec<crate::netlink::nft::Element> {
    elements.get(set).into_iter().flatten().cloned().collect()
}
