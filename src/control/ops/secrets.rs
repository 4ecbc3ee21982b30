//! Operations on secrets. A value is sealed here, before anything is proposed: what follows sees only the sealed one.

use toft_model::{
    name::Name,
    secret::{MAX_VALUE_BYTES, SealedSecret},
    state::{Command, PutMode, Reply, SecretRow, SecretView, query_secret, secret_views},
};

use super::{Ops, now_ms};
use crate::{
    control::{ControlError, ErrorKind},
    seal::{Place, Plain},
};

/// How often a value is sealed anew because another was written in between.
const TRIES: usize = 5;

impl Ops {
    /// Writes a value and gives the secret as it then is. With [`PutMode::Create`] the name must be free.
    pub async fn put_secret(&self, name: Name, value: Plain, mode: PutMode) -> Result<SecretView, ControlError> {
        check_size(&value)?;
        let key = self
            .cluster_key
            .as_ref()
            .ok_or_else(|| ControlError::new(ErrorKind::Unavailable, "this node has no key to seal secrets with"))?;
        let size_bytes = value.as_bytes().len() as u64;
        let mut tries = 0;
        let row = loop {
            tries += 1;
            let version = 1 + match mode {
                PutMode::Create => 0,
                PutMode::Replace { if_generation: Some(seen) } => seen,
                PutMode::Replace { if_generation: None } => self.newest_version(&name).await?,
            };
            let place = Place { kind: "secret", name: name.as_str(), version };
            let sealed = key.seal(place, &value).map_err(|e| ControlError::new(ErrorKind::Internal, e.to_string()))?;
            let value = SealedSecret { version, sealed: sealed.into() };
            let command = Command::PutSecret { name: name.clone(), value, size_bytes, mode, at_ms: now_ms() };
            match self.submit(command).await.map_err(ControlError::from) {
                Ok(Reply::Secret(row)) => break row,
                Ok(_) => {
                    return Err(ControlError::new(
                        ErrorKind::Internal,
                        "the state answered something else than a secret",
                    ));
                }
                // Whoever names no version does not mind that another was written just now.
                Err(error)
                    if error.kind == ErrorKind::Stale
                        && mode == (PutMode::Replace { if_generation: None })
                        && tries < TRIES => {}
                Err(error) => return Err(error),
            }
        };
        let found = self.state.read(move |connection| query_secret(connection, &name)).await?;
        Ok(found.unwrap_or(SecretView { row: *row, users: Vec::new() }))
    }

    async fn newest_version(&self, name: &Name) -> Result<u64, ControlError> {
        let name = name.clone();
        let row = self.state.read(move |connection| SecretRow::named(connection, &name)).await?;
        Ok(row.map_or(0, |row| row.version))
    }

    /// Removes a secret that no workload uses.
    pub async fn remove_secret(&self, name: Name) -> Result<(), ControlError> {
        self.submit(Command::RemoveSecret { name, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// Every secret, by name; without values.
    pub async fn secrets(&self) -> Result<Vec<SecretView>, ControlError> {
        let rows = self.state.read(SecretRow::all).await?;
        let seen = self.seen().await?;
        let instances: Vec<_> = seen.instances().map(|one| &one.row).collect();
        Ok(secret_views(rows, &seen.workload_rows(), &instances))
    }

    /// The secret of that name; without its value.
    pub async fn secret(&self, name: &Name) -> Result<SecretView, ControlError> {
        let asked = name.clone();
        let found = self.state.read(move |connection| query_secret(connection, &asked)).await?;
        found.ok_or_else(|| {
            ControlError::new(ErrorKind::NotFound, format!("there is no secret `{name}`"))
                .hint("`toft secret ls` shows the secrets there are")
        })
    }
}

fn check_size(value: &Plain) -> Result<(), ControlError> {
    let bytes = value.as_bytes().len();
    let (kind, message) = match bytes {
        0 => (ErrorKind::Invalid, "the value is empty".to_owned()),
        1..=MAX_VALUE_BYTES => return Ok(()),
        _ => (ErrorKind::TooLarge, format!("the value has {bytes} bytes")),
    };
    Err(ControlError::new(kind, message).field("value").hint(format!("use 1 to {MAX_VALUE_BYTES} bytes")))
}
