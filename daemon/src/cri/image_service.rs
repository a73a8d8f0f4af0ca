//! The ImageService of the CRI.

use std::collections::HashMap;
use std::sync::Arc;

use axil_proto::cri;
use axil_proto::cri::image_service_server::ImageService;
use axil_snapshotter::Usage;
use tonic::{Request, Response, Status};

use super::chunks::{self, Streamed};
use super::convert::{image, need};
use super::status::call;
use crate::domain::failure::Failure;
use crate::domain::image::stored::StoredImage;
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::ports::unix_nanos;

/// The ImageService over the engine.
#[derive(Clone)]
#[expect(
    missing_debug_implementations,
    reason = "the engine holds trait objects"
)]
pub struct ImageCalls {
    engine: Engine,
    metrics: Arc<Metrics>,
    store: String,
}

impl ImageCalls {
    /// Serves this engine; `store` is the directory of the image file system.
    #[must_use]
    pub fn new(engine: Engine, metrics: Arc<Metrics>, store: String) -> Self {
        Self {
            engine,
            metrics,
            store,
        }
    }

    fn to_wire(&self, image: &StoredImage) -> cri::Image {
        image::to_wire(image, self.engine.images.is_pinned(image))
    }

    /// The images a filter wants.
    fn wanted(&self, filter: Option<cri::ImageFilter>) -> Result<Vec<Arc<StoredImage>>, Failure> {
        let wanted = filter.and_then(|filter| filter.image);
        let wanted = wanted
            .map(|image| image.image)
            .filter(|text| !text.is_empty());
        Ok(match wanted {
            None => self.engine.images.all(),
            Some(text) => self.engine.images.find(&text)?.into_iter().collect(),
        })
    }
}

/// What an image is asked for by; absent is an error that names the field.
fn asked(spec: Option<cri::ImageSpec>) -> Result<String, Failure> {
    let text = need("image", spec)?.image;
    if text.is_empty() {
        return Err(Failure::invalid("image.image", text, "is empty"));
    }
    Ok(text)
}

#[tonic::async_trait]
impl ImageService for ImageCalls {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        call(&self.metrics, "ListImages", async {
            let images = self.wanted(request.into_inner().filter)?;
            Ok(cri::ListImagesResponse {
                images: images.iter().map(|image| self.to_wire(image)).collect(),
            })
        })
        .await
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        call(&self.metrics, "ImageStatus", async {
            let request = request.into_inner();
            // An image that is not there is no error (CRI, ImageStatus).
            let Some(found) = self.engine.images.find(&asked(request.image)?)? else {
                return Ok(cri::ImageStatusResponse::default());
            };
            let mut info = HashMap::new();
            if request.verbose {
                let (manifest, config) = self.engine.images.documents(&found).await?;
                info.insert("info".to_owned(), image::info(&found, &manifest, &config));
            }
            Ok(cri::ImageStatusResponse {
                image: Some(self.to_wire(&found)),
                info,
            })
        })
        .await
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        call(&self.metrics, "PullImage", async {
            let request = request.into_inner();
            let auth = image::auth(request.auth);
            let pod = request.sandbox_config.and_then(|pod| pod.metadata);
            let namespace = pod.map(|metadata| metadata.namespace);
            let namespace = namespace.filter(|namespace| !namespace.is_empty());
            let image = self
                .engine
                .images
                .pull(&asked(request.image)?, auth, namespace.as_deref())
                .await?;
            Ok(cri::PullImageResponse {
                image_ref: image.id.clone(),
            })
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        call(&self.metrics, "RemoveImage", async {
            self.engine
                .images
                .remove(&asked(request.into_inner().image)?)
                .await?;
            Ok(cri::RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(
        &self,
        _request: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        call(&self.metrics, "ImageFsInfo", async {
            let usage = self.engine.images.usage().await?;
            let filesystem = |usage: Usage| cri::FilesystemUsage {
                timestamp: unix_nanos(),
                fs_id: Some(cri::FilesystemIdentifier {
                    mountpoint: self.store.clone(),
                }),
                used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
                inodes_used: Some(cri::UInt64Value {
                    value: usage.inodes,
                }),
            };
            // Writable layers live beside the image layers, on the same file system.
            Ok(cri::ImageFsInfoResponse {
                image_filesystems: vec![filesystem(usage)],
                container_filesystems: vec![filesystem(self.engine.images.containers_usage())],
            })
        })
        .await
    }

    type StreamImagesStream = Streamed<cri::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        call(&self.metrics, "StreamImages", async {
            let images = self.wanted(request.into_inner().filter)?.into_iter();
            let kept = self.engine.clone();
            let images = images.map(move |found| {
                let pinned = kept.images.is_pinned(&found);
                image::to_wire(&found, pinned)
            });
            Ok(chunks::stream(images, |images| cri::StreamImagesResponse {
                images,
            }))
        })
        .await
    }
}
