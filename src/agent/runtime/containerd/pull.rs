//! Pulls an image: its documents and layers go into the content store as they arrive, several layers at once, and each
//! layer is unpacked while it arrives. The image gets its name last. All of it happens under
//! a lease; after trouble that may pass the lease is kept, so that the next try goes on where this one broke off.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::BytesMut;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::DeserializeOwned;
use toft_model::{image::ImageRef, pull::LayerState};
use tokio::sync::oneshot;

use super::{
    Shared,
    client::Lease,
    connection::{self, Collect, Session},
    content::{self, BlobWriter, Opened},
    images, import,
    media::{self, Descriptor, ImageConfig, Index, Manifest},
    resolve::{self, ResolvedImage, Unusable},
    unpack::{self, Begun, Prepared, Snapshots, Unpacker, Unpacking},
};
use crate::agent::{
    image::{Document, MAX_DOCUMENT_BYTES, PullError, PullErrorKind, PullReporter, Repository, Trouble},
    runtime::{Image, RuntimeError},
};

/// Layers downloaded at once.
const AT_ONCE: usize = unpack::AT_ONCE;
/// Most documents read to find this machine's manifest.
const MOST_DOCUMENTS: usize = 64;
/// Most layers of an image; overlayfs takes no more.
const MOST_LAYERS: usize = 500;
/// Largest layer.
const MAX_LAYER_BYTES: u64 = 1 << 40;
/// Bytes sent to containerd in one message.
const PIECE_BYTES: usize = 512 << 10;
/// After that containerd drops the lease of a pull that nobody took up again.
const LONGEST_HOURS: i64 = 24;
/// Broken pulls that can be taken up again.
const MOST_KEPT: usize = 16;

/// What pulls share with each other and with those that come after them.
#[derive(Debug, Default)]
pub(super) struct PullState {
    /// One download of a blob at a time.
    downloads: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Leases of pulls that broke off.
    broken: Mutex<VecDeque<(ImageRef, Lease)>>,
}

impl PullState {
    fn turn(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        downloads.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = downloads.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        downloads.insert(digest.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn take_broken(&self, image: &ImageRef) -> Option<Lease> {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let at = broken.iter().position(|(known, _)| known == image)?;
        broken.remove(at).map(|(_, lease)| lease)
    }

    /// Keeps a lease; gives the oldest back when there are too many.
    fn keep_broken(&self, image: &ImageRef, lease: Lease) -> Option<Lease> {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.push_back((image.clone(), lease));
        if broken.len() > MOST_KEPT { broken.pop_front().map(|(_, lease)| lease) } else { None }
    }
}

/// Pulls the image of `repository`.
pub(super) async fn run(shared: &Shared, repository: &Repository, reporter: &PullReporter) -> Result<Image, PullError> {
    let image = repository.image();
    let of_image = |error: RuntimeError| Trouble::from(error).of(image);
    let session = shared.session().map_err(of_image)?;
    let lease = match shared.pulls.take_broken(image) {
        Some(lease) => lease,
        None => {
            let lifetime = jiff::SignedDuration::from_hours(LONGEST_HOURS);
            connection::create_lease(&shared.client, "pull", Some(lifetime)).await.map_err(of_image)?
        }
    };
    let pull = Pull { shared, session: &session, lease: &lease, repository, reporter };
    let unpacker = Unpacker::new(pull.snapshots());
    let result = pull.all(&unpacker).await;
    unpacker.clean_up().await;
    if let Err(error) = pull.release(&result).await {
        // The lease expires by itself, and all goes with it.
        tracing::warn!(image = %image, error = %error, "what a pull had used could not be released");
    }
    let on_disk = |trouble: Trouble| match &session.root {
        Some(root) if trouble.kind == PullErrorKind::DiskFull => trouble.on_disk_of(root),
        _ => trouble,
    };
    result.map_err(|trouble| on_disk(trouble).of(image))
}

struct Pull<'a> {
    shared: &'a Shared,
    session: &'a Session,
    lease: &'a Lease,
    repository: &'a Repository,
    reporter: &'a PullReporter,
}

impl Pull<'_> {
    async fn release<T>(&self, result: &Result<T, Trouble>) -> Result<(), RuntimeError> {
        let client = &self.shared.client;
        match result {
            Ok(_) => connection::delete_lease(client, self.lease, Collect::Later).await,
            Err(trouble) if trouble.passes() => {
                match self.shared.pulls.keep_broken(self.repository.image(), self.lease.clone()) {
                    Some(oldest) => connection::delete_lease(client, &oldest, Collect::Later).await,
                    None => Ok(()),
                }
            }
            Err(trouble) => {
                let full = trouble.kind == PullErrorKind::DiskFull;
                import::undo(self.shared, self.session, self.lease, full).await
            }
        }
    }

    fn snapshots(&self) -> Snapshots<'_> {
        Snapshots { client: &self.shared.client, snapshotter: &self.session.snapshotter, lease: self.lease }
    }

    async fn all(&self, unpacker: &Unpacker<'_>) -> Result<Image, Trouble> {
        let target = self.store_documents().await?;
        let image = resolve::resolve(&self.shared.client, &target).await.map_err(unusable)?;
        self.repository.look_for(image.layers.iter().map(|layer| layer.digest.as_str())).await;
        let layers = image.layers.iter().map(|layer| (layer.digest.clone(), layer.size));
        self.reporter.layers(layers);
        let unpacked = self.snapshots().holds_all(&image).await?;
        let (told, known): (Vec<_>, Vec<_>) = image.layers.iter().map(|_| oneshot::channel()).unzip();
        let download = async |number: usize, told: oneshot::Sender<Prepared>| {
            let begun = match unpacked {
                true => Begun::Waits(Prepared::Unpacked),
                false => unpacker.begin(&image, number).await?,
            };
            let prepared = self.download(&image, number, unpacker, begun).await?;
            // The other half of the pull has ended with trouble of its own.
            drop(told.send(prepared));
            Ok(())
        };
        let downloads: Vec<_> = told.into_iter().enumerate().map(|(number, told)| download(number, told)).collect();
        let downloads = stream::iter(downloads).buffer_unordered(AT_ONCE).try_collect::<()>();
        tokio::try_join!(downloads, self.settle(&image, unpacker, known))?;
        let client = &self.shared.client;
        let children = std::iter::once(&image.config_descriptor).chain(&image.layers);
        content::label_children(client, self.lease, &image.manifest.digest, children).await?;
        let name = self.repository.image();
        let before = images::record(self.shared, name.as_str()).await?;
        let record = images::named(name, &target);
        let record = images::write_record(self.shared, self.lease, record, before.is_some()).await?;
        Ok(images::describe(self.shared, record).await?)
    }

    /// Fetches the documents that lead to this machine's manifest, and it and its config. Gives what the name stands for.
    async fn store_documents(&self) -> Result<Descriptor, Trouble> {
        let before = images::record(self.shared, self.repository.image().as_str()).await?;
        let root = self.repository.named(before.is_some()).await?;
        if let Some(node) = self.repository.by_word_of() {
            self.reporter.by_word_of(&node);
        }
        let target = described(&root);
        let mut queue = VecDeque::from([(target.clone(), Some(root))]);
        let mut others = Vec::new();
        for _ in 0..MOST_DOCUMENTS {
            let Some((descriptor, at_hand)) = queue.pop_front() else { return Err(not_for_this_machine(others)) };
            let document = match at_hand {
                Some(document) => document,
                None => self.repository.manifest(&descriptor.digest).await?,
            };
            if document.media_type != descriptor.media_type && !descriptor.media_type.is_empty() {
                let reason = format!("its index names `{}` as another kind than it is", descriptor.digest);
                return Err(Trouble::new(PullErrorKind::BadContent, reason));
            }
            self.store(&document.digest, document.bytes.clone()).await?;
            if descriptor.is_index() {
                let index: Index = read(&document.bytes, "index")?;
                let mut usable = Vec::new();
                for manifest in index.manifests.into_iter().filter(|manifest| !manifest.is_attestation()) {
                    match &manifest.platform {
                        Some(platform) if !platform.runs_here() => others.push(platform.to_string()),
                        _ => usable.push(manifest),
                    }
                }
                if let Some(bad) = usable.iter().find(|manifest| !media::digest_ok(&manifest.digest)) {
                    return Err(no_digest(&bad.digest));
                }
                content::label_children(&self.shared.client, self.lease, &document.digest, usable.iter()).await?;
                queue.extend(usable.into_iter().map(|manifest| (manifest, None)));
                continue;
            }
            let manifest: Manifest = read(&document.bytes, "manifest")?;
            check(&document.media_type, &manifest)?;
            let Descriptor { digest, size, .. } = &manifest.config;
            let bytes = self.repository.small_blob(digest, *size).await?;
            let config: ImageConfig = read(&bytes, "config")?;
            self.store(digest, bytes).await?;
            if config.platform.runs_here() {
                return Ok(target);
            }
            content::label_children(
                &self.shared.client,
                self.lease,
                &document.digest,
                std::iter::once(&manifest.config),
            )
            .await?;
            others.push(config.platform.to_string());
        }
        Err(Trouble::new(PullErrorKind::Unusable, "its index is nested too deeply"))
    }

    async fn store(&self, digest: &str, bytes: Vec<u8>) -> Result<(), Trouble> {
        let turn = self.shared.pulls.turn(digest);
        let _turn = turn.lock().await;
        Ok(content::write_whole(&self.shared.client, self.lease, digest, bytes).await?)
    }

    /// Fetches a layer, if it is not here, and unpacks it meanwhile.
    async fn download(
        &self,
        image: &ResolvedImage,
        number: usize,
        unpacker: &Unpacker<'_>,
        begun: Begun,
    ) -> Result<Prepared, Trouble> {
        let layer = &image.layers[number];
        let mut begun = begun;
        let fetched = loop {
            let unpacking = match &begun {
                Begun::Unpacking(unpacking) => Some(unpacking),
                Begun::Waits(_) => None,
            };
            match self.fetch(number, layer, unpacking).await? {
                Fetched::Wrong if unpacking.is_some() => begun = unpacker.begin(image, number).await?,
                Fetched::Wrong => {}
                fetched => break fetched,
            }
        };
        let prepared = match begun {
            Begun::Waits(prepared) => prepared,
            Begun::Unpacking(unpacking) => {
                self.reporter.layer(number, LayerState::Unpacking, layer.size);
                let prepared = match fetched {
                    Fetched::AndGiven => unpacking.end(layer, &image.config.rootfs.diff_ids[number]).await,
                    Fetched::Before | Fetched::Wrong => unpacker.give_from_store(image, number, unpacking).await,
                };
                prepared.map_err(unusable)?
            }
        };
        Ok(prepared)
    }

    /// Tries once to fetch a layer, and gives it to whoever unpacks it if all of it comes now.
    async fn fetch(
        &self,
        number: usize,
        layer: &Descriptor,
        unpacking: Option<&Unpacking>,
    ) -> Result<Fetched, Trouble> {
        let (client, digest) = (&self.shared.client, layer.digest.as_str());
        let told = |state, done| self.reporter.layer(number, state, done);
        let turn = self.shared.pulls.turn(digest);
        let _turn = turn.lock().await;
        let reference = format!("{}-{digest}", self.lease.id);
        let mut writer = match BlobWriter::open(client, self.lease, reference.clone(), layer.size, Some(digest)).await?
        {
            Opened::Writer(writer) => writer,
            Opened::Present => {
                if content::size(client, digest).await? != Some(layer.size) {
                    let reason = format!("its manifest names a wrong size for `{digest}`");
                    return Err(Trouble::new(PullErrorKind::BadContent, reason));
                }
                told(LayerState::Downloaded, layer.size);
                return Ok(Fetched::Before);
            }
        };
        let mut done = writer.offset();
        let unpacking = unpacking.filter(|_| done == 0);
        let mut blob = self.repository.blob(digest, layer.size, done).await;
        let mut gathered = BytesMut::with_capacity(PIECE_BYTES);
        told(LayerState::Downloading, done);
        loop {
            let piece = match blob.next().await {
                Ok(piece) => piece,
                Err(trouble) => {
                    // What came so far is where the next try goes on.
                    if trouble.passes() && !gathered.is_empty() {
                        writer.write(gathered.freeze()).await?;
                        writer.settle().await?;
                    }
                    return Err(if layer.is_foreign() { not_handed_out(layer, trouble) } else { trouble });
                }
            };
            let ended = piece.is_none();
            if let Some(piece) = piece {
                done += piece.len() as u64;
                self.reporter.from(number, blob.node().map(|node| &node.name));
                gathered.extend_from_slice(&piece);
            }
            if gathered.len() >= PIECE_BYTES || (ended && !gathered.is_empty()) {
                let piece = gathered.split().freeze();
                writer.write(piece.clone()).await?;
                if let Some(unpacking) = unpacking {
                    // Who takes no more says why when asked for the result; a layer that is not what its digest says
                    // may be the reason, and that is found out first.
                    unpacking.give(piece).await;
                }
                told(LayerState::Downloading, done);
            }
            if ended {
                break;
            }
        }
        match writer.commit(digest).await {
            Ok(()) => {}
            Err(RuntimeError::Failed { reason, .. }) if reason.contains("unexpected commit") => {
                blob.wrong()?;
                content::abort(client, &reference).await?;
                return Ok(Fetched::Wrong);
            }
            Err(error) => return Err(error.into()),
        }
        told(LayerState::Downloaded, layer.size);
        Ok(if unpacking.is_some() { Fetched::AndGiven } else { Fetched::Before })
    }

    /// Puts the layers on top of each other from the lowest up, each when it is there.
    async fn settle(
        &self,
        image: &ResolvedImage,
        unpacker: &Unpacker<'_>,
        layers: Vec<oneshot::Receiver<Prepared>>,
    ) -> Result<(), Trouble> {
        for (number, layer) in layers.into_iter().enumerate() {
            // The other half of the pull ends this one when it fails.
            let Ok(layer) = layer.await else { return std::future::pending().await };
            let size = image.layers[number].size;
            if matches!(layer, Prepared::Packed) {
                self.reporter.layer(number, LayerState::Unpacking, size);
            }
            unpacker.settle(image, number, layer).await.map_err(unusable)?;
            self.reporter.layer(number, LayerState::Done, size);
        }
        Ok(self.snapshots().note_top(image).await?)
    }
}

/// How a layer came into the store.
enum Fetched {
    /// All of it now, and whoever unpacks it has it too.
    AndGiven,
    /// Some of it was there before.
    Before,
    /// It came, but some of it from a node or an earlier pull, and it is not what its digest says. Nothing of it is kept, and
    /// another try may do better.
    Wrong,
}

fn described(document: &Document) -> Descriptor {
    Descriptor {
        media_type: document.media_type.clone(),
        digest: document.digest.clone(),
        size: document.bytes.len() as u64,
        annotations: Default::default(),
        platform: None,
    }
}

/// Whether a manifest is one of an image that can be pulled at all.
fn check(media_type: &str, manifest: &Manifest) -> Result<(), Trouble> {
    let refuse = |reason: String| Err(Trouble::new(PullErrorKind::Unusable, reason));
    let shown = |text: &str| text.chars().filter(|c| !c.is_control()).take(120).collect::<String>();
    if manifest.schema_version != 2 || ![media::OCI_MANIFEST, media::DOCKER_MANIFEST].contains(&media_type) {
        return refuse(format!("its manifest is of the kind `{}`, which is not known or too old", shown(media_type)));
    }
    let config = &manifest.config;
    if ![media::OCI_CONFIG, media::DOCKER_CONFIG].contains(&config.media_type.as_str()) {
        return refuse(format!("it is no container image but something of the kind `{}`", shown(&config.media_type)));
    }
    if config.size > MAX_DOCUMENT_BYTES {
        return refuse("its config is larger than 4 MiB".to_owned());
    }
    if manifest.layers.len() > MOST_LAYERS {
        return refuse(format!("it has {} layers, more than {MOST_LAYERS}", manifest.layers.len()));
    }
    if let Some(bad) = manifest.layers.iter().chain([config]).find(|part| !media::digest_ok(&part.digest)) {
        return Err(no_digest(&bad.digest));
    }
    for layer in &manifest.layers {
        if !layer.is_layer() {
            let kind = shown(&layer.media_type);
            return refuse(format!("its layer `{}` is of the unknown kind `{kind}`", layer.digest));
        }
        if layer.size > MAX_LAYER_BYTES {
            return refuse(format!("its layer `{}` would be larger than 1 TiB", layer.digest));
        }
    }
    Ok(())
}

/// What may be behind trouble with a layer that registries need not have. Where else it might be had its manifest may
/// say; such addresses come from strangers and are not asked.
fn not_handed_out(layer: &Descriptor, trouble: Trouble) -> Trouble {
    match trouble.kind {
        PullErrorKind::BadContent => {
            let kind = &layer.media_type;
            trouble
                .hint(format!("registries need not hand out layers of the kind `{kind}`; use one that has all of it"))
        }
        _ => trouble,
    }
}

fn no_digest(digest: &str) -> Trouble {
    let shown: String = digest.chars().filter(|c| !c.is_control()).take(80).collect();
    Trouble::new(PullErrorKind::BadContent, format!("its documents name `{shown}`, which is no digest"))
}

fn not_for_this_machine(mut others: Vec<String>) -> Trouble {
    others.sort();
    others.dedup();
    others.truncate(8);
    let reason = if others.is_empty() {
        "its index holds no manifest of an image".to_owned()
    } else {
        format!("it is made for {}, this machine is linux/{}", others.join(", "), std::env::consts::ARCH)
    };
    Trouble::new(PullErrorKind::Unusable, reason)
}

fn read<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Trouble> {
    serde_json::from_slice(bytes)
        .map_err(|error| Trouble::new(PullErrorKind::BadContent, format!("its {what} cannot be read: {error}")))
}

fn unusable(unusable: Unusable) -> Trouble {
    match unusable {
        Unusable::Image(reason) => Trouble::new(PullErrorKind::Unusable, reason),
        Unusable::Runtime(error) => error.into(),
    }
}
