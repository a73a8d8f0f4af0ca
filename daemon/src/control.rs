//! The operator's side door: what `axild fsck` and `axild images` ask of the daemon, over HTTP on a socket only
//! root can open, `<state>/control.sock`. The same requests are answered in the command's own process when no
//! daemon runs (`commands.rs`).
//!
//! ```text
//! POST /v1    axil-request: {"verb": ..}      body: an archive (import), else none
//!        ->   200, one JSON document per line, the last one "done" or "failed"
//!        ->   200, application/x-tar (export)
//!        ->   4xx or 5xx, one line "failed": nothing was begun
//! ```

pub mod client;
pub mod server;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::domain::failure::{Class, Failure};
use crate::domain::image::media::Compression;
use crate::domain::image::stored::StoredImage;
use crate::engine::export_image::{export_failure, plan_export};
use crate::engine::fsck::{self, FsckOptions};
use crate::engine::images::Images;
use crate::engine::import_image::import_image;
use crate::engine::progress::PullView;
use crate::engine::spawn::spawn;
use crate::pieces::{Piece, PieceReader, PieceWriter, WAITING};

/// How often who watches pulls hears of them.
const BETWEEN: Duration = Duration::from_millis(250);

/// Header that carries the request as JSON.
const REQUEST: &str = "axil-request";

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Check the store.
    Fsck(FsckOptions),
    /// Every image.
    ListImages,
    /// Remove an image with all its names.
    RemoveImage {
        /// A reference, an id, or the beginning of one.
        name: String,
        /// Also when it is pinned.
        #[serde(default)]
        force: bool,
    },
    /// Take in the archive that is the body.
    ImportImages {
        /// Name of the archive's one image, instead of its own.
        name: Option<String>,
    },
    /// How far pulls are.
    ListPulls {
        /// Again and again, until who asked has gone.
        watch: bool,
    },
    /// Write an archive of images.
    ExportImages {
        /// References or ids.
        names: Vec<String>,
        /// How layers are compressed in it.
        #[serde(default)]
        compress: Compression,
    },
}

impl Request {
    /// Whether only a daemon that runs has an answer.
    #[must_use]
    pub fn needs_daemon(&self) -> bool {
        matches!(self, Self::ListPulls { .. })
    }
}

/// An image, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedImage {
    /// Digest of the configuration.
    pub id: String,
    /// `host/repository:tag` names.
    pub tags: Vec<String>,
    /// `host/repository@digest` names.
    pub digests: Vec<String>,
    /// Bytes on disk; layers shared with other images count here too.
    pub bytes: u64,
    /// Whether it lost something and waits to be pulled again.
    pub incomplete: bool,
    /// Whether the configuration pins it.
    #[serde(default)]
    pub pinned: bool,
}

impl ListedImage {
    fn of(image: &StoredImage, incomplete: bool, pinned: bool) -> Self {
        Self {
            id: image.id.clone(),
            tags: image.repo_tags.iter().cloned().collect(),
            digests: image.repo_digests.iter().cloned().collect(),
            bytes: image.size_bytes,
            incomplete,
            pinned,
        }
    }
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// News of a check.
    Check(fsck::Event),
    /// An image that is here, or came.
    Image(ListedImage),
    /// The pulls at work.
    Pulls(Vec<PullView>),
    /// The end.
    Done,
    /// The end, with the reason.
    Failed(String),
}

/// An answer on its way.
#[derive(Debug)]
pub enum Answer {
    /// Lines; the last is `Done` or `Failed`.
    Lines(mpsc::Receiver<Line>),
    /// A tar archive; an error piece means that it is not whole.
    Archive(mpsc::Receiver<Piece>),
}

/// Answers a request.
///
/// # Errors
/// Nothing was begun.
pub async fn answer(
    images: &Arc<Images>,
    request: Request,
    body: mpsc::Receiver<Piece>,
) -> Result<Answer, Failure> {
    if let Request::ExportImages { names, compress } = &request {
        let export = plan_export(images, names, *compress).await?;
        let (sender, pieces) = mpsc::channel(WAITING);
        let broken = sender.clone();
        let write = move || {
            if let Err(error) = export.write(PieceWriter::new(sender)) {
                tracing::warn!(error = %export_failure(&error), "an export broke off");
                // Ignored: whoever asked may be why it broke off.
                let _gone = broken.blocking_send(Err(error));
            }
        };
        drop(tokio::task::spawn_blocking(write));
        return Ok(Answer::Archive(pieces));
    }
    let (lines, answer) = mpsc::channel(WAITING);
    let images = Arc::clone(images);
    // The work outlives whoever asked for it, as that of any call.
    spawn("control", async move {
        let result = carry_out(&images, request, body, &lines).await;
        let last = match result {
            Ok(()) => Line::Done,
            Err(failure) => Line::Failed(failure.to_string()),
        };
        // Ignored: whoever asked may have gone.
        let _gone = lines.send(last).await;
    });
    Ok(Answer::Lines(answer))
}

async fn carry_out(
    images: &Arc<Images>,
    request: Request,
    body: mpsc::Receiver<Piece>,
    lines: &mpsc::Sender<Line>,
) -> Result<(), Failure> {
    let tell = async |image: &StoredImage, incomplete| {
        // Ignored: whoever asked may have gone.
        let line = Line::Image(ListedImage::of(image, incomplete, images.is_pinned(image)));
        let _gone = lines.send(line).await;
    };
    match request {
        Request::Fsck(options) => {
            let (events, mut news) = mpsc::channel(1);
            let forward = async {
                while let Some(event) = news.recv().await {
                    let _gone = lines.send(Line::Check(event)).await;
                }
            };
            let check = async {
                let result = fsck::fsck(images, options, &events).await;
                drop(events);
                result
            };
            let (result, ()) = tokio::join!(check, forward);
            let _gone = lines.send(Line::Check(fsck::Event::Report(result?))).await;
        }
        Request::ListImages => {
            for image in images.all() {
                tell(&image, false).await;
            }
            for image in images.incomplete() {
                tell(&image, true).await;
            }
        }
        Request::ListPulls { watch } => {
            while lines.send(Line::Pulls(images.pulls())).await.is_ok() && watch {
                tokio::time::sleep(BETWEEN).await;
            }
        }
        Request::RemoveImage { name, force } => {
            if !images.is_known(&name)? {
                return Err(Failure::not_found(format!("image {name:?} is not here")));
            }
            // The CRI is not asked: its RemoveImage must remove pinned images too (CRI, `Image.pinned`).
            if !force && images.names_pinned(&name)? {
                return Err(Failure::precondition(format!(
                    "image {name:?} is pinned by images.pinned; --force removes it all the same"
                )));
            }
            images.remove(&name).await?;
        }
        Request::ImportImages { name } => {
            let source = Box::new(PieceReader::new(body));
            for image in import_image(images, source, name.as_deref()).await? {
                tell(&image, false).await;
            }
        }
        Request::ExportImages { .. } => {
            return Err(Failure::new(Class::Internal, "an export has no lines"));
        }
    }
    Ok(())
}
