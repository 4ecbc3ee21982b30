//! A tree on this machine as the end that gives.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{FileType, OFlags, SeekFrom, fstat, seek},
    io::Errno,
};

use super::{Entry, MoveError, Part, Source, Want, walk};

/// Bytes given at once.
const PIECE: usize = 256 << 10;

/// The tree below an open directory.
pub struct Local(OwnedFd);

impl Local {
    /// Of that directory.
    pub fn new(root: OwnedFd) -> Self {
        Self(root)
    }

    /// Gives the bytes of a file from an offset on, without its holes.
    fn file(&self, want: &Want, each: &mut dyn FnMut(Part<'_>) -> Result<(), MoveError>) -> Result<(), MoveError> {
        let failed = MoveError::here(&want.path);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file = match walk::beneath(self.0.as_fd(), &want.path, flags) {
            Ok(file) => file,
            // It has gone, or is something else now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        if FileType::from_raw_mode(fstat(&file).map_err(&failed)?.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let file = File::from(file);
        let mut buffer = vec![0; PIECE];
        let mut at = want.from;
        while at < want.size {
            at = match seek(&file, SeekFrom::Data(at)) {
                Ok(at) => at,
                // There is a hole to its end.
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                Err(error) => return Err(failed(error)),
            };
            let end = match seek(&file, SeekFrom::Hole(at)) {
                Ok(end) => end.min(want.size),
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => want.size,
                Err(error) => return Err(failed(error)),
            };
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let count = file
                    .read_at(&mut buffer[..most], at)
                    .map_err(|source| MoveError::Here { path: super::entry::shown(&want.path), source })?;
                if count == 0 {
                    return Ok(());
                }
                each(Part::Bytes { offset: at, bytes: &buffer[..count] })?;
                at += count as u64;
            }
        }
        Ok(())
    }
}

impl Source for Local {
    fn list(&self, each: &mut dyn FnMut(Entry) -> Result<(), MoveError>) -> Result<(), MoveError> {
        walk::walk(self.0.as_fd(), each)
    }

    fn read(&self, wanted: &[Want], each: &mut dyn FnMut(Part<'_>) -> Result<(), MoveError>) -> Result<(), MoveError> {
        for want in wanted {
            self.file(want, each)?;
            each(Part::End)?;
        }
        Ok(())
    }
}
