//! Logins at registries. A password is sealed here, before anything is proposed.

use toft_model::{
    registry::{MAX_PASSWORD_BYTES, RegistryName, check_username},
    secret::SealedSecret,
    state::{Command, RegistryRow, Reply},
};

use super::{Ops, now_ms};
use crate::{
    control::{ControlError, ErrorKind},
    seal::{ClusterKey, OpenError, Place, Plain},
};

/// What a sealed password of a registry is bound to.
const KIND: &str = "registry";
/// How often a password is sealed anew because another was written in between.
const TRIES: usize = 5;

impl Ops {
    /// Writes the login at a registry, in place of the one that is there.
    pub async fn log_in(
        &self,
        registry: RegistryName,
        username: String,
        password: Plain,
    ) -> Result<RegistryRow, ControlError> {
        check_username(&username)?;
        check_password(&password)?;
        let key = self
            .cluster_key
            .as_ref()
            .ok_or_else(|| ControlError::new(ErrorKind::Unavailable, "this node has no key to seal passwords with"))?;
        let mut tries = 0;
        loop {
            tries += 1;
            let asked = registry.clone();
            let known = self.state.read(move |connection| RegistryRow::of(connection, &asked)).await?;
            let version = 1 + known.map_or(0, |row| row.version);
            let place = Place { kind: KIND, name: registry.as_str(), version };
            let sealed =
                key.seal(place, &password).map_err(|e| ControlError::new(ErrorKind::Internal, e.to_string()))?;
            let value = SealedSecret { version, sealed: sealed.into() };
            let (registry, username) = (registry.clone(), username.clone());
            let command = Command::PutRegistry { registry, username, value, at_ms: now_ms() };
            match self.submit(command).await.map_err(ControlError::from) {
                Ok(Reply::Registry(row)) => return Ok(*row),
                Ok(_) => {
                    return Err(ControlError::new(
                        ErrorKind::Internal,
                        "the state answered something else than a login",
                    ));
                }
                Err(error) if error.kind == ErrorKind::Stale && tries < TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes the login at a registry.
    pub async fn log_out(&self, registry: RegistryName) -> Result<(), ControlError> {
        self.submit(Command::RemoveRegistry { registry, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// Every login, by registry; without passwords.
    pub async fn logins(&self) -> Result<Vec<RegistryRow>, ControlError> {
        Ok(self.state.read(RegistryRow::all).await?)
    }
}

/// Opens the password of a login.
pub fn open_password(key: &ClusterKey, registry: &RegistryName, sealed: &SealedSecret) -> Result<Plain, OpenError> {
    key.open(Place { kind: KIND, name: registry.as_str(), version: sealed.version }, sealed.sealed.as_bytes())
}

fn check_password(password: &Plain) -> Result<(), ControlError> {
    let refuse = |message: &str| {
        let error = ControlError::new(ErrorKind::Invalid, message).field("password");
        Err(error.hint(format!("use 1 to {MAX_PASSWORD_BYTES} bytes of text without control characters")))
    };
    match std::str::from_utf8(password.as_bytes()) {
        Err(_) => refuse("the password is no text"),
        Ok("") => refuse("the password is empty"),
        Ok(text) if text.len() > MAX_PASSWORD_BYTES => refuse("the password is too long"),
        Ok(text) if text.chars().any(char::is_control) => refuse("the password holds control characters"),
        Ok(_) => Ok(()),
    }
}
