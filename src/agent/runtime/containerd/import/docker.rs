//! What `docker save` writes: `manifest.json` names configs, layers and tags. The manifest that containerd wants is
//! made here; the digests in it are those of the members as they are.

use serde::Deserialize;
use toft_model::image::ImageRef;

use super::{
    super::{
        client::{Client, Lease},
        content,
        media::{DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_LAYER_TAR, DOCKER_MANIFEST, Descriptor, Manifest, digest_of},
    },
    Found, bad,
    spool::{Contents, Spooled},
};
use crate::agent::runtime::RuntimeError;

/// Most images, and most layers of an image.
const MOST: usize = 256;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The images that `manifest.json` names; their manifests are written to the store.
pub(super) async fn images(
    client: &Client,
    lease: &Lease,
    document: &[u8],
    contents: &Contents,
) -> Result<Vec<Found>, RuntimeError> {
    let saved: Vec<Saved> = serde_json::from_slice(document)
        .map_err(|error| bad(format!("its `manifest.json` cannot be read: {error}")))?;
    if saved.len() > MOST {
        return Err(bad(format!("it names more than {MOST} images")));
    }
    let mut images = Vec::new();
    for image in saved {
        let target = manifest(client, lease, &image, contents).await?;
        let tags = image.repo_tags.unwrap_or_default();
        if tags.is_empty() {
            images.push(Found { name: None, written: None, target });
            continue;
        }
        for tag in tags.into_iter().take(MOST) {
            let name: ImageRef =
                tag.parse().map_err(|error| bad(format!("an image in it is named wrongly: {error}")))?;
            images.push(Found { name: Some(name), written: Some(tag), target: target.clone() });
        }
    }
    Ok(images)
}

async fn manifest(
    client: &Client,
    lease: &Lease,
    image: &Saved,
    contents: &Contents,
) -> Result<Descriptor, RuntimeError> {
    let find = |path: &str| {
        let shown: String = path.chars().take(120).collect();
        contents.file(path).ok_or_else(|| bad(format!("`{shown}` is missing")))
    };
    let layers = image.layers.as_deref().unwrap_or_default();
    if layers.len() > MOST {
        return Err(bad(format!("an image in it has more than {MOST} layers")));
    }
    let layers = layers.iter().map(|path| {
        let layer = find(path)?;
        Ok(describe(layer, if layer.gzip { DOCKER_LAYER_GZIP } else { DOCKER_LAYER_TAR }))
    });
    let manifest = Manifest {
        schema_version: 2,
        media_type: DOCKER_MANIFEST.to_owned(),
        config: describe(find(&image.config)?, DOCKER_CONFIG),
        layers: layers.collect::<Result<_, RuntimeError>>()?,
    };
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|error| RuntimeError::Failed { doing: "writing a manifest", reason: error.to_string() })?;
    let digest = digest_of(&bytes);
    let size = bytes.len() as u64;
    content::write_whole(client, lease, &digest, bytes).await?;
    Ok(Descriptor {
        media_type: DOCKER_MANIFEST.to_owned(),
        digest,
        size,
        annotations: Default::default(),
        platform: None,
    })
}

fn describe(member: &Spooled, media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: member.digest.clone(),
        size: member.size,
        annotations: Default::default(),
        platform: None,
    }
}
