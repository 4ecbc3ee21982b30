//! The files of the fake's containers: a directory of this machine each, empty but for `etc/passwd` and `tmp`.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags, open};
use toft_model::ids::InstanceId;
use uuid::Uuid;

use super::{Call, FakeRuntime};
use crate::agent::runtime::{
    RuntimeError,
    root::{Root, RootRuntime},
};

/// A directory that goes with its container.
#[derive(Debug)]
pub(super) struct FakeRoot(PathBuf);

impl FakeRoot {
    fn make() -> std::io::Result<Self> {
        let root = Self(std::env::temp_dir().join(format!("toft-fake-{}", Uuid::new_v4().simple())));
        for dir in ["etc", "tmp"] {
            std::fs::create_dir_all(root.0.join(dir))?;
        }
        std::fs::write(root.0.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
        Ok(root)
    }
}

impl Drop for FakeRoot {
    fn drop(&mut self) {
        // What is left lies among temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[async_trait]
impl RootRuntime for FakeRuntime {
    async fn root(&self, id: InstanceId) -> Result<Root, RuntimeError> {
        let failed = |reason: String| RuntimeError::Failed { doing: "opening the files of a container", reason };
        let mut state = self.begin(Call::Root)?;
        let container = state.containers.get_mut(&id).ok_or(RuntimeError::NotFound { id })?;
        let root = match &container.root {
            Some(root) => Arc::clone(root),
            None => {
                let made = FakeRoot::make().map_err(|error| failed(error.to_string()))?;
                Arc::clone(container.root.insert(Arc::new(made)))
            }
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(&root.0, flags, Mode::empty()).map_err(|errno| failed(errno.to_string()))?;
        Ok(Root { directory, held: Box::new(root) })
    }
}
