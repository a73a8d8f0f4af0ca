//! Which client certificate a server is shown, where several are configured.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{DistinguishedName, Error, SignatureScheme};

/// Shows the first certificate that an authority named by the server has issued (RFC 8446, 4.2.4; RFC 5246, 7.4.4).
/// A server that names none, or none of ours, is shown the first one whose key it can check.
#[derive(Debug)]
pub(super) struct ByIssuer(Vec<Candidate>);

#[derive(Debug)]
struct Candidate {
    certified: Arc<CertifiedKey>,
    /// Who issued the certificate and each other one of its chain.
    issuers: Vec<DistinguishedName>,
}

impl ByIssuer {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one, to be shown after those added before.
    ///
    /// # Errors
    /// A certificate of the chain cannot be read.
    pub(super) fn add(&mut self, certified: CertifiedKey) -> Result<(), Error> {
        let issuers: Result<Vec<_>, _> = certified.cert.iter().map(issuer).collect();
        self.0.push(Candidate {
            issuers: issuers?,
            certified: Arc::new(certified),
        });
        Ok(())
    }
}

fn issuer(certificate: &CertificateDer<'_>) -> Result<DistinguishedName, Error> {
    let read = webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| Error::General(format!("read a client certificate: {error}")))?;
    Ok(DistinguishedName::in_sequence(read.issuer()))
}

impl ResolvesClientCert for ByIssuer {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let is_usable =
            |candidate: &&Candidate| candidate.certified.key.choose_scheme(sigschemes).is_some();
        let is_wanted = |candidate: &&Candidate| {
            let mut issuers = candidate.issuers.iter();
            issuers.any(|issuer| root_hint_subjects.contains(&issuer.as_ref()))
        };
        let usable = || self.0.iter().filter(is_usable);
        let chosen = usable().find(is_wanted).or_else(|| usable().next())?;
        Some(Arc::clone(&chosen.certified))
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}
