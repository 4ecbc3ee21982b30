//! The logins that pulls use: those of this node's configuration first, then those of the cluster.

use async_trait::async_trait;
use toft_model::{registry::RegistryName, state::RegistryRow};
use zeroize::Zeroizing;

use crate::{
    agent::image::{Login, LoginFiles, Logins},
    consensus::Handle,
    control::ops::registries::open_password,
    seal::ClusterKey,
};

/// Both of them.
pub(super) struct AllLogins {
    pub(super) files: LoginFiles,
    pub(super) state: Handle,
    pub(super) key: ClusterKey,
}

#[async_trait]
impl Logins for AllLogins {
    async fn login(&self, registry: &str) -> Result<Option<Login>, String> {
        if let Some(login) = self.files.login(registry).await? {
            return Ok(Some(login));
        }
        // What the configuration calls a mirror may be no registry.
        let Ok(name) = registry.parse::<RegistryName>() else { return Ok(None) };
        let failed = |why: String| format!("the login at `{registry}` cannot be had: {why}");
        let asked = name.clone();
        let found = self.state.read(move |connection| RegistryRow::sealed(connection, &asked)).await;
        let Some((username, sealed)) = found.map_err(|error| failed(error.to_string()))? else { return Ok(None) };
        let opened = open_password(&self.key, &name, &sealed).map_err(|error| failed(error.to_string()))?;
        let text = std::str::from_utf8(opened.as_bytes()).map_err(|_| failed("the password is no text".to_owned()))?;
        Ok(Some(Login { username, password: Zeroizing::new(text.to_owned()) }))
    }
}
