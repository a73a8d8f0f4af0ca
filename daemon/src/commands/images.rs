//! `axild images`: what is here, away with it, in from an archive, out to one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::{archive, ask, ask_with, body, each_line, say};
use crate::config::Config;
use crate::control::{Answer, Line, ListedImage, Request};
use crate::domain::image::media::Compression;

/// Commands of `axild images`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List images.
    #[command(visible_alias = "list")]
    Ls {
        /// Print one JSON document per image.
        #[arg(long)]
        json: bool,
    },
    /// Remove images with all their names; their space is free afterwards.
    #[command(visible_alias = "remove")]
    Rm {
        /// References, ids, or beginnings of ids.
        #[arg(required = true)]
        images: Vec<String>,
        /// Remove images that images.pinned pins as well.
        #[arg(short, long)]
        force: bool,
    },
    /// Take in the images of an OCI layout or of a docker archive, compressed by gzip or zstd or not.
    Import {
        /// A file, a directory with an OCI layout, or - for standard input.
        #[arg(default_value = "-")]
        source: PathBuf,
        /// Name for the archive's one image, instead of its own.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Write images as an archive that is an OCI layout and a docker archive at once.
    Export {
        /// A file, a directory that is there or ends in a slash, or - for standard output.
        #[arg(short, long, default_value = "-")]
        output: PathBuf,
        /// How layers are compressed: none, gzip or zstd. Compressing takes the time twice, once for the digests.
        #[arg(long, default_value = "none", value_name = "FORMAT")]
        compress: Compression,
        /// References or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ls { json } => {
            let answer = ask(config, Request::ListImages).await?;
            let images = images_of(answer).await?;
            if json {
                for image in &images {
                    say(serde_json::to_string(image)?);
                }
            } else {
                print(&images);
            }
        }
        Command::Rm { images, force } => {
            for name in images {
                let request = Request::RemoveImage {
                    name: name.clone(),
                    force,
                };
                let answer = ask(config, request).await?;
                each_line(answer, |_| {}).await?;
                say(format_args!("removed {name}"));
            }
        }
        Command::Import { source, name } => {
            let (pieces, body) = body();
            // It ends when nobody takes its pieces any more; how it fails is told by the answer.
            drop(tokio::task::spawn_blocking(move || {
                archive::read(&source, pieces);
            }));
            let answer = ask_with(config, Request::ImportImages { name }, body).await?;
            for image in images_of(answer).await? {
                let names = image.tags.join(" ");
                say(format_args!("imported {} {names}", image.id));
            }
        }
        Command::Export {
            output,
            compress,
            images,
        } => {
            let target = archive::Target::of(&output)?;
            let request = Request::ExportImages {
                names: images,
                compress,
            };
            let answer = ask(config, request).await?;
            let Answer::Archive(pieces) = answer else {
                anyhow::bail!("the answer is no archive");
            };
            let written = tokio::task::spawn_blocking(move || target.write(pieces));
            written.await.context("export")??;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn images_of(answer: Answer) -> anyhow::Result<Vec<ListedImage>> {
    let mut images = Vec::new();
    each_line(answer, |line| {
        if let Line::Image(image) = line {
            images.push(image);
        }
    })
    .await?;
    Ok(images)
}

/// One line per name; an image without a tag has its digest name or none.
fn print(images: &[ListedImage]) {
    let mut rows = vec![("IMAGE".to_owned(), "ID".to_owned(), "SIZE".to_owned())];
    for image in images {
        let hex = image.id.split_once(':').map_or(&*image.id, |(_, hex)| hex);
        let id = hex.get(..12).unwrap_or(hex).to_owned();
        let mut size = human(image.bytes);
        if image.incomplete {
            size.push_str(" (incomplete)");
        }
        if image.pinned {
            size.push_str(" (pinned)");
        }
        let names = match (image.tags.is_empty(), image.digests.first()) {
            (false, _) => image.tags.clone(),
            (true, Some(digest)) => vec![digest.clone()],
            (true, None) => vec!["<none>".to_owned()],
        };
        rows.extend(
            names
                .into_iter()
                .map(|name| (name, id.clone(), size.clone())),
        );
    }
    let width = rows.iter().map(|row| row.0.chars().count()).max();
    let width = width.unwrap_or_default();
    for (name, id, size) in rows {
        say(format_args!("{name:width$}  {id:12}  {size}"));
    }
}

/// Bytes with a binary unit and one decimal.
pub(super) fn human(bytes: u64) -> String {
    let mut tenths = u128::from(bytes) * 10;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if tenths < 10_240 || unit == "TiB" {
            return match unit {
                "B" => format!("{bytes} B"),
                _ => format!("{}.{} {unit}", tenths / 10, tenths % 10),
            };
        }
        tenths /= 1024;
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_600_000, "1.5 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
