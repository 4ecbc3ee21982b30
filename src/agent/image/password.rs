//! Passwords in files.

use std::{fs::File, io::Read, path::Path};

use zeroize::Zeroizing;

/// Longest password.
const MOST_BYTES: u64 = 64 << 10;

/// Reads a password, without the end of its line. Blocks. Gives why it cannot be had.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(MOST_BYTES).read_to_string(&mut text).map_err(|e| e.to_string())?;
    let password = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if password.is_empty() { Err("it is empty".to_owned()) } else { Ok(password) }
}
