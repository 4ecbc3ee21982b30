//! Images from other nodes and from registries: speaks the distribution protocol as a client ([`Repository`]), asks the nodes
//! around first ([`Neighbours`]), and sees to it that an image is pulled once however many wait for it ([`Puller`]). Where the
//! bytes go is the runtime's business.
//!
//! Whatever a registry answers is bounded: heads, documents, redirects, tries, silence. A blob never gives more bytes
//! than its manifest says, and the runtime checks its digest before anything is made of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use toft_model::image::ImageRef;

mod auth;
mod blob;
mod endpoint;
mod error;
pub mod fake;
mod http;
mod neighbours;
mod password;
mod proxy;
mod puller;
mod repository;
mod settings;
mod tries;

pub use auth::Login;
pub(crate) use error::Trouble;
pub use error::{PullError, PullErrorKind};
pub use neighbours::{Holding, MOST_DIGESTS, Neighbour, Neighbours, Pieces, Wanted};
pub use proxy::{Proxy, ProxySettings};
pub use puller::{FailedPull, PullReporter, PullStatus, Puller, Pulls};
pub(crate) use repository::{Document, MAX_DOCUMENT_BYTES};
pub use repository::{Repository, TagWord};
pub use settings::{Patience, RegistrySettings, Settings};

use self::{endpoint::Endpoint, http::Http, neighbours::Around};

/// Who knows the logins.
#[async_trait]
pub trait Logins: Send + Sync + 'static {
    /// The login for a registry (`docker.io`, `nas:5000`), if there is one; else why it cannot be had.
    async fn login(&self, registry: &str) -> Result<Option<Login>, String>;
}

/// The logins of the configuration, with passwords in files.
#[derive(Debug, Clone)]
pub struct LoginFiles(pub Settings);

#[async_trait]
impl Logins for LoginFiles {
    async fn login(&self, registry: &str) -> Result<Option<Login>, String> {
        let login = self.0.registries.get(registry).and_then(|settings| settings.login.as_ref());
        let Some((username, path)) = login else { return Ok(None) };
        let failed =
            |why: String| format!("the password for `{registry}` cannot be had from `{}`: {why}", path.display());
        // Read anew each time, so that a changed password needs no restart.
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || password::read(&file)).await;
        let password = read.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
        Ok(Some(Login { username: username.clone(), password }))
    }
}

/// The registries there are.
pub struct Registries {
    settings: Settings,
    logins: Arc<dyn Logins>,
    neighbours: Option<Arc<dyn Neighbours>>,
    /// Clients by the file of certificates they trust besides the system's; made when first needed.
    clients: Mutex<HashMap<Option<std::path::PathBuf>, Http>>,
}

impl Registries {
    /// Spoken to as `settings` say.
    pub fn new(settings: Settings, logins: Arc<dyn Logins>) -> Self {
        Self { settings, logins, neighbours: None, clients: Mutex::default() }
    }

    /// Asks other nodes before registries.
    pub fn with_neighbours(self, neighbours: Arc<dyn Neighbours>) -> Self {
        Self { neighbours: Some(neighbours), ..self }
    }

    /// Where `image` is found, and who says what its tag stands for.
    pub async fn repository(&self, image: &ImageRef, word: TagWord) -> Result<Repository, PullError> {
        let registry = image.registry();
        let mirrors = self.settings.registries.get(registry).map(|settings| settings.mirrors.as_slice());
        let names = mirrors.unwrap_or_default().iter().map(String::as_str).chain([registry]);
        let mut endpoints = Vec::new();
        for name in names {
            let http = self.client(name).await.map_err(|trouble| trouble.of(image))?;
            let scheme = self.settings.scheme(name);
            let repository = image.repository().to_owned();
            endpoints.push(Endpoint::new(name.to_owned(), repository, http, scheme, Arc::clone(&self.logins)));
        }
        let repository = Repository::new(image.clone(), endpoints, self.settings.patience);
        Ok(repository.with_nodes(Around::new(self.neighbours.clone()), word))
    }

    async fn client(&self, registry: &str) -> Result<Http, Trouble> {
        let ca_file = self.settings.registries.get(registry).and_then(|settings| settings.ca_file.clone());
        let known = || self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = known().get(&ca_file) {
            return Ok(client.clone());
        }
        let (path, silence) = (ca_file.clone(), self.settings.patience.silence);
        let proxies = self.settings.proxies.clone();
        let made = tokio::task::spawn_blocking(move || Http::new(path.as_deref(), &proxies, silence)).await;
        let client = made.map_err(|e| Trouble::new(PullErrorKind::Unreachable, e.to_string()))??;
        known().insert(ca_file, client.clone());
        Ok(client)
    }
}
