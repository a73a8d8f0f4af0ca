//! Stored images to `Image`, and `AuthConfig` to credentials.

use axil_proto::cri;

use crate::domain::image::config::{Account, ImageUser};
use crate::domain::image::reference::shown;
use crate::domain::image::stored::StoredImage;
use crate::ports::images::PullAuth;

/// An image on the wire; `pinned` is the operator's wish.
#[must_use]
pub fn to_wire(image: &StoredImage, pinned: bool) -> cri::Image {
    // The CRI: a number goes to `uid`, a name to `username`, and no user at all is root.
    let (uid, username) = match ImageUser::parse(&image.config.user).map(|user| user.user) {
        Ok(Some(Account::Id(uid))) => (Some(uid), String::new()),
        Ok(Some(Account::Name(name))) => (None, name),
        Ok(None) => (Some(0), String::new()),
        // A bad user is refused when a container is made of the image; the list shows it, escaped and cut.
        Err(_) => (None, shown(&image.config.user)),
    };
    let uid = uid.map(|uid| cri::Int64Value {
        value: i64::from(uid),
    });
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.iter().cloned().collect(),
        repo_digests: image.repo_digests.iter().cloned().collect(),
        size: image.size_bytes.max(1),
        uid,
        username,
        spec: Some(cri::ImageSpec {
            image: image.reference(),
            annotations: image.annotations.clone().into_iter().collect(),
            ..cri::ImageSpec::default()
        }),
        pinned,
    }
}

/// Verbose information, one JSON document; documents of the image that cannot be read are null. `chainID` and
/// `imageSpec` are containerd's names, which `crictl inspecti` and scripts know.
///
/// The documents are put in as the text they are: as values they would take many times their size in memory.
#[must_use]
pub fn info(image: &StoredImage, manifest: &[u8], config: &[u8]) -> String {
    let own = serde_json::json!({
        "chainID": image.chain,
        "layers": image.chains,
        "manifestDigest": image.manifest,
    });
    let own = own.to_string();
    let own = own.trim_end_matches('}');
    let (manifest, config) = (as_json(manifest), as_json(config));
    format!(r#"{own},"manifest":{manifest},"imageSpec":{config}}}"#)
}

fn as_json(bytes: &[u8]) -> &str {
    let text = std::str::from_utf8(bytes).ok();
    let valid = |text: &&str| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    text.filter(valid).unwrap_or("null")
}

/// Credentials of a pull; none when every field is empty.
#[must_use]
pub fn auth(wire: Option<cri::AuthConfig>) -> Option<PullAuth> {
    let wire = wire?;
    let auth = PullAuth {
        username: wire.username,
        password: wire.password,
        auth: wire.auth,
        server_address: wire.server_address,
        identity_token: wire.identity_token,
        registry_token: wire.registry_token,
    };
    let empty = PullAuth {
        server_address: auth.server_address.clone(),
        ..PullAuth::default()
    };
    (auth != empty).then_some(auth)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::domain::image::stored::{IMAGE_RECORD_VERSION, StoredConfig};

    fn image(user: &str) -> StoredImage {
        StoredImage {
            version: IMAGE_RECORD_VERSION,
            id: "sha256:00".into(),
            manifest: "sha256:11".into(),
            repo_tags: BTreeSet::from(["h.x/r:1".to_owned()]),
            repo_digests: BTreeSet::from(["h.x/r@sha256:22".to_owned()]),
            size_bytes: 0,
            chain: None,
            chains: vec![],
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            endorsements: BTreeSet::new(),
            config: StoredConfig {
                user: user.to_owned(),
                ..StoredConfig::default()
            },
        }
    }

    #[test]
    fn the_user_is_a_number_or_a_name_and_root_when_there_is_none() {
        for (user, uid, name) in [
            ("", Some(0), ""),
            ("0", Some(0), ""),
            ("1000:1000", Some(1000), ""),
            ("nginx:www", None, "nginx"),
            (":5", Some(0), ""),
            ("99999999999", None, "99999999999"),
            ("a\u{1b}[2J", None, "a\\u{1b}[2J"),
        ] {
            let wire = to_wire(&image(user), false);
            assert_eq!(wire.uid.map(|uid| uid.value), uid, "{user:?}");
            assert_eq!(wire.username, name);
        }
        let long = to_wire(&image(&"x ".repeat(1000)), false);
        assert!(long.username.len() < 100);
    }

    #[test]
    fn every_field_is_filled() {
        let wire = to_wire(&image(""), true);
        assert!(wire.pinned && wire.size > 0);
        let spec = wire.spec.unwrap();
        assert_eq!(spec.image, "h.x/r@sha256:22");
        assert_eq!(spec.annotations["a"], "b");
    }

    #[test]
    fn verbose_information_has_the_documents_as_they_are() {
        let info = info(&image(""), br#"{"config": 1}"#, b"not json");
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["manifest"]["config"], 1);
        assert_eq!(info["imageSpec"], serde_json::Value::Null);
        assert_eq!(info["manifestDigest"], "sha256:11");
        assert!(info.get("chainID").is_some());
    }
}
