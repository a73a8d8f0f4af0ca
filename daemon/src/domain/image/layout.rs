//! What an archive of images says is in it: the `index.json` of an OCI image layout, or the `manifest.json` of
//! `docker save`. Hostile JSON in, checked values out; names stay text here, the caller parses them.

use serde::{Deserialize, Serialize};

use super::manifest::{Descriptor, MAX_DOCUMENT_BYTES, MAX_LAYERS};
use super::media::{self, MediaType};
use super::reference::shown;

/// Most images of one archive.
pub const MAX_IMAGES: usize = 256;
/// Most names of one image.
const MAX_NAMES: usize = 256;

/// Name of the document that lists the images of an OCI layout.
pub const INDEX: &str = "index.json";
/// Name of the document that says that this is an OCI layout.
pub const LAYOUT: &str = "oci-layout";
/// Name of the document that lists the images of `docker save`.
pub const DOCKER: &str = "manifest.json";

/// An image of an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutImage {
    /// Its manifest or index.
    pub descriptor: Descriptor,
    /// Its name, if the layout gives it a whole one.
    pub name: Option<String>,
}

/// An image of `docker save`; paths are those of members of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerImage {
    /// The configuration.
    pub config: String,
    /// `repository:tag` names.
    pub names: Vec<String>,
    /// The layers, the base first.
    pub layers: Vec<String>,
}

/// Why the list of images is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It is not JSON of this form.
    #[error("{document} is not valid: {source}")]
    Json {
        /// Which document.
        document: &'static str,
        /// The parser's error, with line and column.
        source: serde_json::Error,
    },
    /// A value of it is wrong.
    #[error("{document}, {field}: {reason}")]
    Value {
        /// Which document.
        document: &'static str,
        /// The path of the field.
        field: String,
        /// What is wrong, with the value cut and escaped.
        reason: String,
    },
}

#[derive(Deserialize)]
struct RawIndex {
    manifests: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<RawAnnotations>,
}

#[derive(Deserialize, Default)]
struct RawAnnotations {
    /// A whole name, as containerd writes it.
    #[serde(rename = "io.containerd.image.name")]
    name: Option<String>,
    /// A whole name or only a tag (OCI image specification, annotations).
    #[serde(rename = "org.opencontainers.image.ref.name")]
    reference: Option<String>,
}

/// Reads the `index.json` of a layout.
///
/// # Errors
/// Names the field.
pub fn parse_index(bytes: &[u8]) -> Result<Vec<LayoutImage>, LayoutError> {
    let document = INDEX;
    let raw: RawIndex =
        serde_json::from_slice(bytes).map_err(|source| LayoutError::Json { document, source })?;
    check_count(document, "manifests", raw.manifests.len(), MAX_IMAGES)?;
    let mut images = Vec::new();
    for (position, entry) in raw.manifests.into_iter().enumerate() {
        let field = |name: &str| format!("manifests[{position}].{name}");
        match MediaType::of(&entry.media_type) {
            MediaType::Manifest(_) | MediaType::Index(_) => {}
            // Signatures and other artifacts may lie beside images.
            _ => continue,
        }
        let digest = entry.digest.parse().map_err(|error| LayoutError::Value {
            document,
            field: field("digest"),
            reason: format!("{error}"),
        })?;
        if entry.size > MAX_DOCUMENT_BYTES as u64 {
            return Err(LayoutError::Value {
                document,
                field: field("size"),
                reason: format!("{} bytes, the limit is {MAX_DOCUMENT_BYTES}", entry.size),
            });
        }
        let annotations = entry.annotations.unwrap_or_default();
        // A tag alone says nothing of the repository.
        let whole = |name: &String| name.contains(['/', ':']);
        let name = annotations.name.or(annotations.reference).filter(whole);
        images.push(LayoutImage {
            descriptor: Descriptor {
                media_type: entry.media_type,
                digest,
                size: entry.size,
            },
            name,
        });
    }
    Ok(images)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawDockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Reads the `manifest.json` of `docker save`.
///
/// # Errors
/// Names the field.
pub fn parse_docker(bytes: &[u8]) -> Result<Vec<DockerImage>, LayoutError> {
    let document = DOCKER;
    let raw: Vec<RawDockerImage> =
        serde_json::from_slice(bytes).map_err(|source| LayoutError::Json { document, source })?;
    check_count(document, "the list", raw.len(), MAX_IMAGES)?;
    raw.into_iter()
        .enumerate()
        .map(|(position, image)| {
            let names = image.repo_tags.unwrap_or_default();
            let layers = image.layers.unwrap_or_default();
            let field = |name: &str| format!("[{position}].{name}");
            check_count(document, &field("RepoTags"), names.len(), MAX_NAMES)?;
            check_count(document, &field("Layers"), layers.len(), MAX_LAYERS)?;
            Ok(DockerImage {
                config: image.config,
                names,
                layers,
            })
        })
        .collect()
}

fn check_count(
    document: &'static str,
    field: &str,
    found: usize,
    limit: usize,
) -> Result<(), LayoutError> {
    if found <= limit {
        return Ok(());
    }
    Err(LayoutError::Value {
        document,
        field: field.to_owned(),
        reason: format!("{found} entries, the limit is {limit}"),
    })
}

/// A descriptor as it is written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    media_type: &'a str,
    digest: String,
    size: u64,
}

impl<'a> From<&'a Descriptor> for Written<'a> {
    fn from(descriptor: &'a Descriptor) -> Self {
        Self {
            media_type: &descriptor.media_type,
            digest: descriptor.digest.to_string(),
            size: descriptor.size,
        }
    }
}

/// Writes the OCI manifest of a configuration and layers.
#[must_use]
pub fn write_manifest(config: &Descriptor, layers: &[Descriptor]) -> Vec<u8> {
    let layers: Vec<Written<'_>> = layers.iter().map(Written::from).collect();
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": Written::from(config),
        "layers": layers,
    });
    document.to_string().into_bytes()
}

/// Writes the `index.json` of a layout: each manifest once per name, or once without one.
#[must_use]
pub fn write_index(images: &[(Descriptor, Vec<String>)]) -> Vec<u8> {
    let mut manifests = Vec::new();
    for (descriptor, names) in images {
        let entry = serde_json::json!(Written::from(descriptor));
        if names.is_empty() {
            manifests.push(entry);
            continue;
        }
        for name in names {
            let mut entry = entry.clone();
            entry["annotations"] = serde_json::json!({
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name,
            });
            manifests.push(entry);
        }
    }
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_INDEX,
        "manifests": manifests,
    });
    document.to_string().into_bytes()
}

/// Writes the `manifest.json` that `docker load` reads.
#[must_use]
pub fn write_docker(images: &[DockerImage]) -> Vec<u8> {
    let list: Vec<_> = images
        .iter()
        .map(|image| {
            serde_json::json!({
                "Config": image.config,
                "RepoTags": image.names,
                "Layers": image.layers,
            })
        })
        .collect();
    serde_json::Value::from(list).to_string().into_bytes()
}

/// Where a layout keeps what has this digest.
#[must_use]
pub fn blob_path(digest: &axil_snapshotter::Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// A name of an archive, cut and escaped for a message.
#[must_use]
pub fn shown_name(name: &str) -> String {
    shown(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> String {
        axil_snapshotter::Digest::sha256_of(text.as_bytes()).to_string()
    }

    #[test]
    fn a_layout_that_was_written_is_read_again() {
        let descriptor = Descriptor {
            media_type: media::OCI_MANIFEST.to_owned(),
            digest: digest("m").parse().unwrap(),
            size: 7,
        };
        let name = "registry.example/a:1".to_owned();
        let images = [
            (descriptor.clone(), vec![name.clone()]),
            (descriptor.clone(), Vec::new()),
        ];
        let read = parse_index(&write_index(&images)).unwrap();
        let expected = [Some(name.clone()), None].map(|name| LayoutImage {
            descriptor: descriptor.clone(),
            name,
        });
        assert_eq!(read, expected);
        let docker = [DockerImage {
            config: "blobs/sha256/x".to_owned(),
            names: vec![name],
            layers: vec!["a".to_owned()],
        }];
        assert_eq!(parse_docker(&write_docker(&docker)).unwrap(), docker);
    }

    #[test]
    fn a_tag_alone_is_no_name_and_artifacts_are_passed_over() {
        let text = format!(
            r#"{{"manifests":[
              {{"mediaType":"{0}","digest":"{1}","size":1,
                "annotations":{{"org.opencontainers.image.ref.name":"latest"}}}},
              {{"mediaType":"application/x-signature","digest":"junk","size":1}}]}}"#,
            media::OCI_MANIFEST,
            digest("a"),
        );
        let images = parse_index(text.as_bytes()).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].name, None);
    }

    #[test]
    fn hostile_lists_are_refused_with_the_field() {
        let entry = format!(
            r#"{{"mediaType":"{}","digest":"{}","size":1}}"#,
            media::OCI_MANIFEST,
            digest("a")
        );
        let many = vec![entry.as_str(); MAX_IMAGES + 1].join(",");
        for (text, field) in [
            (format!(r#"{{"manifests":[{many}]}}"#), "manifests"),
            (entry.replace("sha256:", "sha256:../"), "not valid"),
            (
                format!(
                    r#"{{"manifests":[{}]}}"#,
                    entry.replace("sha256:", "sha256:../")
                ),
                "manifests[0].digest",
            ),
            (
                format!(
                    r#"{{"manifests":[{}]}}"#,
                    entry.replace(":1}", ":99999999}")
                ),
                "manifests[0].size",
            ),
        ] {
            let error = parse_index(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        let layers = vec!["\"l\""; MAX_LAYERS + 1].join(",");
        let text = format!(r#"[{{"Config":"c","RepoTags":null,"Layers":[{layers}]}}]"#);
        let error = parse_docker(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("[0].Layers"), "{error}");
    }
}
