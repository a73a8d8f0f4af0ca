//! Stored images to `Image`, and `AuthConfig` to credentials.

use axil_proto::cri;

use crate::domain::image::config::{Account, ImageUser};
use crate::domain::image::stored::StoredImage;
use crate::ports::images::PullAuth;

/// An image on the wire.
#[must_use]
pub fn to_wire(image: &StoredImage) -> cri::Image {
    // The CRI: a number goes to `uid`, a name to `username`, and no user at all is root.
    let (uid, username) = match ImageUser::parse(&image.config.user).map(|user| user.user) {
        Ok(Some(Account::Id(uid))) => (Some(uid), String::new()),
        Ok(Some(Account::Name(name))) => (None, name),
        Ok(None) => (Some(0), String::new()),
        // A bad user is refused when a container is made of the image; the list shows it as it is.
        Err(_) => (None, image.config.user.clone()),
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
            ..cri::ImageSpec::default()
        }),
        pinned: false,
    }
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
