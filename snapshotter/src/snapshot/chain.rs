//! Chain ids: the name of a stack of layers (OCI image specification, config, "Layer ChainID").

use std::fmt;

use crate::content::digest::Digest;

/// Names a layer together with all layers below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId(Digest);

impl ChainId {
    /// Returns the chain id of a bottom layer: its diff id.
    #[must_use]
    pub fn first(diff: &Digest) -> Self {
        Self(diff.clone())
    }

    /// Returns the chain id of a layer on top of this stack.
    #[must_use]
    pub fn extend(&self, diff: &Digest) -> Self {
        Self(Digest::sha256_of(format!("{} {diff}", self.0).as_bytes()))
    }

    /// Returns the chain id of every layer of an image, bottom first.
    #[must_use]
    pub fn of(diffs: &[Digest]) -> Vec<Self> {
        let mut chains: Vec<Self> = Vec::with_capacity(diffs.len());
        for diff in diffs {
            let next = match chains.last() {
                Some(below) => below.extend(diff),
                None => Self::first(diff),
            };
            chains.push(next);
        }
        chains
    }

    /// Returns the digest that is the name.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl From<Digest> for ChainId {
    /// Takes a digest that is known to be a chain id, such as one from a record.
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chains_as_the_specification_defines_them() {
        let (a, b) = (Digest::sha256_of(b"a"), Digest::sha256_of(b"b"));
        let chains = ChainId::of(&[a.clone(), b.clone()]);
        assert_eq!(chains[0].digest(), &a);
        assert_eq!(
            chains[1].digest(),
            &Digest::sha256_of(format!("{a} {b}").as_bytes())
        );
        assert!(ChainId::of(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_chain_depends_on_every_layer_and_their_order(seeds in proptest::collection::vec(any::<u8>(), 2..8)) {
            let diffs: Vec<Digest> = seeds.iter().map(|seed| Digest::sha256_of(&[*seed])).collect();
            let mut swapped = diffs.clone();
            swapped.swap(0, 1);
            let last = |diffs: &[Digest]| ChainId::of(diffs).pop();
            prop_assert_eq!(last(&diffs) == last(&swapped), diffs[0] == diffs[1]);
            prop_assert_ne!(last(&diffs), last(&diffs[1..]));
        }
    }
}
