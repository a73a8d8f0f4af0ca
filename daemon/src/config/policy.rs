//! `[images.policy]`: which images may come and be used, and whose signature they need.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;
use crate::domain::image::policy::{Action, Policy, Rule, Scope};

/// `[images.policy]`; the table of keys says what each means.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// `allow` or `deny`.
    pub default: String,
    /// Rules in their order.
    pub rules: Vec<RuleConfig>,
    /// Who signs, by the name rules use. A table without entries is written as nothing.
    #[serde(default)]
    pub signers: BTreeMap<String, SignerConfig>,
}

/// One element of `images.policy.rules`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// What refusals call it.
    pub name: String,
    /// Scopes.
    pub images: Vec<String>,
    /// Kubernetes namespaces; empty is all.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// `allow`, `deny` or `signed`.
    pub action: String,
    /// Signers of `signed`; one of them has to have signed.
    #[serde(default)]
    pub signers: Vec<String>,
}

/// One element of `images.policy.signers`: keys, or identities that a certificate authority vouches for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SignerConfig {
    /// PEM files of public keys, as `cosign generate-key-pair` writes them; any of them counts.
    pub keys: Vec<PathBuf>,
    /// A trusted root (`trusted_root.json` of sigstore): authorities, logs and time stamp authorities.
    pub trusted_root: Option<PathBuf>,
    /// Who may have signed; any of them counts.
    pub identities: Vec<IdentityConfig>,
}

/// Somebody whom an OpenID Connect issuer knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// The issuer's URL.
    pub issuer: String,
    /// The mail address or URI.
    pub subject: String,
}

impl PolicyConfig {
    /// Checks the rules; what signers name is read when the daemon starts.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (name, signer) in &self.signers {
            signer.check(name)?;
        }
        self.policy().map(drop)
    }

    /// The rules as decisions are made by them.
    ///
    /// # Errors
    /// A value that cannot be.
    pub fn policy(&self) -> Result<Policy, ConfigError> {
        let allows_the_rest = match self.default.as_str() {
            "allow" => true,
            "deny" => false,
            other => {
                let reason = "must be allow or deny".to_owned();
                return Err(wrong("images.policy.default", other.to_owned(), reason));
            }
        };
        let mut names = BTreeSet::new();
        let mut rules = Vec::new();
        for rule in &self.rules {
            let rule = self
                .rule(rule)
                .map_err(|reason| wrong("images.policy.rules", rule.name.clone(), reason))?;
            if !names.insert(rule.name.clone()) {
                let reason = "two rules have this name".to_owned();
                return Err(wrong("images.policy.rules", rule.name, reason));
            }
            rules.push(rule);
        }
        Ok(Policy {
            rules,
            allows_the_rest,
        })
    }

    fn rule(&self, rule: &RuleConfig) -> Result<Rule, String> {
        if rule.name.is_empty() || rule.name.len() > 64 {
            return Err("a rule needs a name of 1 to 64 characters".to_owned());
        }
        if rule.images.is_empty() {
            return Err("images is empty; \"*\" is every image".to_owned());
        }
        let scopes: Result<Vec<_>, _> = rule.images.iter().map(|text| Scope::parse(text)).collect();
        let signers: BTreeSet<String> = rule.signers.iter().cloned().collect();
        let action = match (rule.action.as_str(), signers.is_empty()) {
            ("allow", true) => Action::Allow,
            ("deny", true) => Action::Deny,
            ("signed", false) => {
                let unknown = signers
                    .iter()
                    .find(|name| !self.signers.contains_key(*name));
                if let Some(unknown) = unknown {
                    return Err(format!("images.policy.signers has no {unknown:?}"));
                }
                Action::Signed(signers)
            }
            ("signed", true) => return Err("signed needs signers".to_owned()),
            ("allow" | "deny", false) => return Err("only signed has signers".to_owned()),
            (other, _) => return Err(format!("action {other:?} is not allow, deny or signed")),
        };
        Ok(Rule {
            name: rule.name.clone(),
            scopes: scopes.map_err(|error| error.to_string())?,
            namespaces: rule.namespaces.iter().cloned().collect(),
            action,
        })
    }
}

impl SignerConfig {
    fn check(&self, name: &str) -> Result<(), ConfigError> {
        let is_keyed = !self.keys.is_empty();
        let is_keyless = self.trusted_root.is_some() && !self.identities.is_empty();
        let reason = match (is_keyed, is_keyless) {
            (false, false) => "needs keys, or trusted_root and identities",
            (true, true) => "has keys and identities; make two signers of it",
            (true, false) if !self.identities.is_empty() => "has identities and no trusted_root",
            (true, false) | (false, true) => return Ok(()),
        };
        let key = "images.policy.signers";
        Err(wrong(key, name.to_owned(), reason.to_owned()))
    }
}

fn wrong(key: &'static str, value: String, reason: String) -> ConfigError {
    ConfigError::Value { key, value, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy, String> {
        let config: PolicyConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        config.policy().map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_read_in_their_order() {
        let policy = read(
            r#"
            default = "deny"
            rules = [
                { name = "a", images = ["docker.io/library"], action = "deny" },
                { name = "b", images = ["*"], namespaces = ["x"], action = "signed", signers = ["k"] },
            ]
            [signers.k]
            keys = ["/etc/axil/k.pub"]
            "#,
        );
        let policy = policy.unwrap();
        assert!(!policy.allows_the_rest);
        assert_eq!(policy.rules[0].action, Action::Deny);
        assert_eq!(
            policy.rules[1].action,
            Action::Signed(BTreeSet::from(["k".to_owned()]))
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let with = |rule: &str| {
            format!(
                "default = \"allow\"\nrules = [{rule}]\nsigners = {{ k = {{ keys = [\"/k\"] }} }}\n"
            )
        };
        for (rule, words) in [
            (
                r#"{ name = "", images = ["*"], action = "deny" }"#,
                "needs a name",
            ),
            (
                r#"{ name = "r", images = [], action = "deny" }"#,
                "images is empty",
            ),
            (
                r#"{ name = "r", images = ["nginx"], action = "deny" }"#,
                "\"nginx\" is no scope",
            ),
            (
                r#"{ name = "r", images = ["*"], action = "maybe" }"#,
                "\"maybe\" is not",
            ),
            (
                r#"{ name = "r", images = ["*"], action = "signed" }"#,
                "needs signers",
            ),
            (
                r#"{ name = "r", images = ["*"], action = "allow", signers = ["k"] }"#,
                "only signed",
            ),
            (
                r#"{ name = "r", images = ["*"], action = "signed", signers = ["q"] }"#,
                "has no \"q\"",
            ),
            (r#"{ name = "r", images = ["*"], acton = "deny" }"#, "acton"),
            (
                r#"{ name = "r", images = ["*"], action = "deny" }, { name = "r", images = ["*"], action = "deny" }"#,
                "two rules",
            ),
        ] {
            let error = read(&with(rule)).unwrap_err();
            assert!(error.contains(words), "{rule}: {error}");
        }
        let base = "rules = []\ndefault = \"allow\"\n[signers.k]\n";
        for (signer, words) in [
            ("keys = []", "needs keys"),
            ("trusted_root = \"/t\"", "needs keys"),
            (
                "keys = [\"/k\"]\ntrusted_root = \"/t\"\nidentities = [{ issuer = \"i\", subject = \"s\" }]",
                "two signers",
            ),
            (
                "keys = [\"/k\"]\nidentities = [{ issuer = \"i\", subject = \"s\" }]",
                "no trusted_root",
            ),
        ] {
            let error = read(&format!("{base}{signer}\n")).unwrap_err();
            assert!(
                error.contains(words) && error.contains("\"k\""),
                "{signer}: {error}"
            );
        }
        assert!(
            read("default = \"x\"\nrules = []\nsigners = {}")
                .unwrap_err()
                .contains("allow or deny")
        );
    }
}
