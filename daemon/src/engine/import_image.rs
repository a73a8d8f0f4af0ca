//! Takes in the images of an archive: an OCI layout or what `docker save` writes. From there on it is a pull.

use std::io::Read;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::admission::Demand;
use super::images::Images;
use super::pull_image::{Intake, Names, take_in};
use super::steps::Steps;
use crate::domain::failure::{Class, Failure};
use crate::domain::image::reference::Reference;
use crate::domain::image::stored::StoredImage;
use crate::ports::images::ArchivedImage;

/// Imports every image of an archive that is for this machine. With `name`, the archive's one image gets that
/// name instead of its own.
///
/// # Errors
/// `InvalidArgument` for a bad archive or name, and whatever a pull can fail by. Images before the one that
/// failed are there.
pub async fn import_image(
    images: &Arc<Images>,
    source: Box<dyn Read + Send>,
    name: Option<&str>,
) -> Result<Vec<Arc<StoredImage>>, Failure> {
    let name = name.map(parse_name).transpose()?;
    let archived = images.layers.read_archive(source).await?;
    let count = archived.len();
    if let (Some(name), true) = (&name, count != 1) {
        let message = format!("{name} cannot name the {count} images of the archive");
        return Err(Failure::new(Class::InvalidArgument, message));
    }
    let mut imported: Vec<Arc<StoredImage>> = Vec::new();
    let mut passed_over = None;
    for image in archived {
        let mut names = Names::default();
        match &name {
            Some(name) => {
                names.tags.insert(name.clone());
            }
            None => {
                for text in &image.names {
                    names.tags.insert(parse_name(text)?);
                }
            }
        }
        images.admit_import(&names.tags)?;
        match import_one(images, &image, &names).await {
            Ok(image) => imported.push(image),
            // One of several may be for another platform.
            Err(failure) if failure.class == Class::NotFound && count > 1 => {
                tracing::info!(names = ?image.names, error = %failure, "an archived image is passed over");
                passed_over = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    match (imported.is_empty(), passed_over) {
        (true, Some(failure)) => Err(failure),
        (true, None) => Err(Failure::new(
            Class::InvalidArgument,
            "the archive has no image",
        )),
        (false, _) => Ok(imported),
    }
}

/// A name an import can give: a tag, since a digest names what it names already.
fn parse_name(text: &str) -> Result<String, Failure> {
    let reference =
        Reference::parse(text).map_err(|error| Failure::invalid("image name", text, error))?;
    if reference.digest().is_some() {
        let why = "an import gives tags, not digests";
        return Err(Failure::invalid("image name", text, why));
    }
    Ok(reference.stored_name())
}

async fn import_one(
    images: &Arc<Images>,
    image: &ArchivedImage,
    names: &Names,
) -> Result<Arc<StoredImage>, Failure> {
    let named: Vec<&str> = names.tags.iter().map(String::as_str).collect();
    let entry = images.progress.begin(format!("import {}", named.join(" ")));
    let mut steps = Steps::begin("PullImage").telling(|step| entry.step(step));
    let intake = Intake {
        remote: &image.image,
        names,
        demand: &Demand::default(),
        entry: &entry,
        // The operator's import goes on to its end.
        stop: &CancellationToken::new(),
    };
    let taken = take_in(images, &intake, &mut steps).await;
    match taken {
        Ok((image, bytes)) => {
            tracing::info!(image.id = %image.id, bytes, "image is imported");
            Ok(image)
        }
        Err(failure) => {
            // As after a failed pull; partly read layers are no use, but small and gone within the hour.
            if let Err(failure) = images.collect().await {
                tracing::error!(error = %failure, "after a failed import");
            }
            Err(failure.during("import"))
        }
    }
}
