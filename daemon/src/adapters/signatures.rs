//! `ports::images::Signatures`: finds signatures beside an image, in its repository and with the pull's own
//! credentials, and has them checked by the signers the operator named. Whatever is not a good signature is
//! refused: a registry can hold signatures back, but not make one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use axil_snapshotter::Digest;

use crate::config::PolicyConfig;
use crate::domain::failure::Failure;
use crate::domain::image::signature::{
    MAX_SIGNATURES, SignedPayload, check_payload, parse_bundle_manifest, parse_payloads,
    parse_referrers, payload_tag, referrers_tag,
};
use crate::engine::spawn::blocking;
use crate::ports::Answer;
use crate::ports::images::{RemoteImage, Signatures};

mod signer;

pub use signer::LoadSignerError;
use signer::Signer;

/// Most reasons a refusal repeats.
const MAX_REASONS: usize = 3;

/// Those whose signatures count, by name.
#[derive(Debug)]
pub struct Signers {
    signers: BTreeMap<String, Arc<Signer>>,
}

/// A signature as it was found.
#[derive(Debug, Clone)]
enum Found {
    Payload {
        bytes: Vec<u8>,
        signed: SignedPayload,
    },
    Bundle {
        bytes: Vec<u8>,
    },
}

impl Signers {
    /// Reads the keys and trusted roots of the configuration.
    ///
    /// # Errors
    /// A file that cannot be used; names the signer and the file.
    pub fn load(config: &PolicyConfig) -> Result<Self, LoadSignerError> {
        let load =
            |(name, config)| Ok((String::clone(name), Arc::new(Signer::load(name, config)?)));
        let signers = config.signers.iter().map(load);
        Ok(Self {
            signers: signers.collect::<Result<_, LoadSignerError>>()?,
        })
    }
}

#[async_trait]
impl Signatures for Signers {
    async fn check(
        &self,
        image: &dyn RemoteImage,
        digests: &[Digest],
        signers: &BTreeSet<String>,
    ) -> Answer<String> {
        let wanted: Vec<(String, Arc<Signer>)> = signers
            .iter()
            .filter_map(|name| Some((name.clone(), Arc::clone(self.signers.get(name)?))))
            .collect();
        let mut reasons = Vec::new();
        let mut count = 0;
        for digest in digests {
            for found in find(image, digest, &mut reasons).await? {
                count += 1;
                let (wanted, about) = (wanted.clone(), digest.clone());
                let judged = blocking("check a signature", move || {
                    Ok(judge(&found, &about, &wanted))
                });
                match judged.await? {
                    Ok(endorsement) => return Ok(endorsement),
                    Err(reason) => reasons.push(reason),
                }
            }
        }
        let shown: Vec<String> = digests.iter().map(ToString::to_string).collect();
        let shown = shown.join(" and ");
        reasons.truncate(MAX_REASONS);
        let message = match (count, reasons.is_empty()) {
            (0, true) => format!("there is no signature of {shown}"),
            (_, _) => format!("no signature of {shown} is good: {}", reasons.join("; ")),
        };
        Err(Failure::unsigned(message))
    }

    fn endorsement(&self, signer: &str) -> Option<String> {
        let known = self.signers.get(signer)?;
        Some(known.endorsement(signer))
    }
}

/// Asks each signer about a signature; answers what to remember, or why none takes it.
fn judge(
    found: &Found,
    digest: &Digest,
    wanted: &[(String, Arc<Signer>)],
) -> Result<String, String> {
    let mut reasons = Vec::new();
    for (name, signer) in wanted {
        let judged = match found {
            Found::Payload { bytes, signed } => signer.check_payload(bytes, signed),
            Found::Bundle { bytes } => signer.check_bundle(bytes, digest),
        };
        match judged {
            Ok(()) => return Ok(signer.endorsement(name)),
            Err(reason) => reasons.push(format!("{name:?}: {reason}")),
        }
    }
    Err(reasons.join(", "))
}

/// The signatures of a digest, at most twice [`MAX_SIGNATURES`]. What cannot be read is a reason; what cannot be
/// fetched is a failure, because then nobody knows.
async fn find(
    image: &dyn RemoteImage,
    digest: &Digest,
    reasons: &mut Vec<String>,
) -> Answer<Vec<Found>> {
    let mut found = Vec::new();
    if let Some(manifest) = image.tagged(&payload_tag(digest)).await? {
        for signed in take(parse_payloads(&manifest), reasons).unwrap_or_default() {
            let bytes = image.document(&signed.payload).await?;
            if take(check_payload(&bytes, digest), reasons).is_some() {
                found.push(Found::Payload { bytes, signed });
            }
        }
    }
    let mut index = image.referrers(digest).await?;
    if index.is_none() {
        index = image.tagged(&referrers_tag(digest)).await?;
    }
    let referrers = index.and_then(|index| take(parse_referrers(&index), reasons));
    for manifest in referrers.unwrap_or_default() {
        let manifest = image.document(&manifest).await?;
        let bundle = take(parse_bundle_manifest(&manifest), reasons).flatten();
        if let Some(bundle) = bundle {
            let bytes = image.document(&bundle).await?;
            found.push(Found::Bundle { bytes });
        }
    }
    debug_assert!(found.len() <= 2 * MAX_SIGNATURES);
    Ok(found)
}

fn take<T, E: std::error::Error>(parsed: Result<T, E>, reasons: &mut Vec<String>) -> Option<T> {
    parsed.map_err(|error| reasons.push(error.to_string())).ok()
}

#[cfg(test)]
mod tests;
