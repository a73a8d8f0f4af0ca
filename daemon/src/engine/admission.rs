//! The three doors of images, and what the operator's policy says at each: a pull, an import, and the use by a
//! container or volume.
//!
//! The use is a door because an image is one for the whole node: what one namespace may pull, another finds here
//! and needs no pull for (`imagePullPolicy: IfNotPresent`), and what came before a rule was written stays. CRI-O
//! checks at container creation for the same reason; containerd does not. Containers that exist are left alone.

use std::collections::BTreeSet;

use super::images::Images;
use crate::domain::failure::{Class, Failure};
use crate::domain::image::policy::{Permit, Refusal};
use crate::domain::image::reference::Reference;
use crate::domain::image::stored::StoredImage;

fn refused(refusal: &Refusal) -> Failure {
    Failure::new(Class::PermissionDenied, refusal.to_string())
}

impl Images {
    /// Decides about a pull for a pod in `namespace`; answers whose signature it needs, of any of them.
    ///
    /// # Errors
    /// `PermissionDenied` with the rule.
    pub(super) fn admit_pull(
        &self,
        reference: &Reference,
        namespace: Option<&str>,
    ) -> Result<Demand, Failure> {
        let decided = self.policy.decide(Some(reference), namespace);
        let permit = decided.map_err(|refusal| self.count("pull", refused(&refusal)))?;
        Ok(Demand::of(permit))
    }

    /// Decides about an image of an archive with these names, in canonical form.
    ///
    /// # Errors
    /// `PermissionDenied` with the rule, also where it wants a signature: an archive has none.
    pub(super) fn admit_import(&self, names: &BTreeSet<String>) -> Result<(), Failure> {
        let mut wanted = Vec::new();
        for name in names {
            let parsed = Reference::parse(name);
            wanted.push(Some(
                parsed.map_err(|error| Failure::invalid("image name", name, error))?,
            ));
        }
        if wanted.is_empty() {
            wanted.push(None);
        }
        for name in &wanted {
            let decided = self.policy.decide(name.as_ref(), None);
            let permit = decided.map_err(|refusal| self.count("import", refused(&refusal)))?;
            let demand = Demand::of(permit);
            if !demand.signers.is_empty() {
                let message = format!("{}, and an archive has no signatures", demand.wish());
                return Err(self.count("import", Failure::unsigned(message)));
            }
        }
        Ok(())
    }

    /// Decides about the use of an image by a pod in `namespace`. `asked` is what the pod calls it, perhaps empty.
    ///
    /// An image has several names, and one that may be used is enough: they are names of the same bytes. Where
    /// the pod's own name for it is one of them, that one counts alone.
    ///
    /// # Errors
    /// `PermissionDenied` with the rule, also for an image whose signature was not checked when it came.
    pub fn admit_use(
        &self,
        image: &StoredImage,
        asked: &str,
        namespace: &str,
    ) -> Result<(), Failure> {
        if self.policy.is_off() {
            return Ok(());
        }
        let own: Vec<_> = image.repo_tags.iter().chain(&image.repo_digests).collect();
        let meant = Reference::parse(asked).ok().map(|name| name.stored_name());
        let meant = meant.filter(|name| own.contains(&name));
        let names: Vec<Option<Reference>> = match &meant {
            Some(name) => vec![Reference::parse(name).ok()],
            None if own.is_empty() => vec![None],
            None => own.iter().map(|name| Reference::parse(name).ok()).collect(),
        };
        let mut failure = None;
        for name in &names {
            match self.permit_use(image, name.as_ref(), namespace) {
                Ok(()) => return Ok(()),
                Err(refusal) => failure = failure.or(Some(refusal)),
            }
        }
        let failure = failure
            .unwrap_or_else(|| Failure::new(Class::PermissionDenied, "an image without a name"));
        Err(self.count("use", failure))
    }

    fn permit_use(
        &self,
        image: &StoredImage,
        name: Option<&Reference>,
        namespace: &str,
    ) -> Result<(), Failure> {
        let decided = self.policy.decide(name, Some(namespace));
        let demand = Demand::of(decided.map_err(|refusal| refused(&refusal))?);
        let is_endorsed = |signer: &String| {
            let known = self.signatures.endorsement(signer);
            known.is_some_and(|endorsement| image.endorsements.contains(&endorsement))
        };
        if demand.signers.is_empty() || demand.signers.iter().any(is_endorsed) {
            return Ok(());
        }
        let message = format!(
            "{}, and image {} came without that check; pull it again",
            demand.wish(),
            image.id
        );
        Err(Failure::unsigned(message))
    }

    /// Counts a refusal at a door.
    pub(super) fn count(&self, door: &'static str, failure: Failure) -> Failure {
        self.metrics.image_refused(door);
        failure
    }
}

/// Whose signature a pull needs, and which rule says so.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Demand {
    rule: String,
    /// One of them is enough; empty is no signature needed.
    pub(super) signers: BTreeSet<String>,
}

impl Demand {
    fn of(permit: Permit<'_>) -> Self {
        Self {
            rule: permit.rule.unwrap_or_default().to_owned(),
            signers: permit.signers.cloned().unwrap_or_default(),
        }
    }

    /// What the rule wants, for a refusal.
    pub(super) fn wish(&self) -> String {
        let signers: Vec<_> = self
            .signers
            .iter()
            .map(|name| format!("{name:?}"))
            .collect();
        format!(
            "rule {:?} (images.policy.rules) wants a signature of {}",
            self.rule,
            signers.join(" or ")
        )
    }
}
