//! Copies of files that keep their holes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

const CHUNK: usize = 1 << 20;

/// Which of the two files failed.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// The one that is copied.
    Reading(io::Error),
    /// The copy.
    Writing(io::Error),
}

impl From<CopyError> for io::Error {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Reading(error) | CopyError::Writing(error) => error,
        }
    }
}

/// Reads `from` to its end and gives every piece to `each`; into `to`, if there is one, it writes all but what is
/// zero, and sets the length. Gives the number of bytes read.
pub(crate) fn copy(from: &File, to: Option<&File>, mut each: impl FnMut(&[u8])) -> Result<u64, CopyError> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let len = match from.read_at(&mut buffer, at) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Reading(error)),
        };
        let piece = &buffer[..len];
        each(piece);
        if let Some(to) = to
            && piece.iter().any(|byte| *byte != 0)
        {
            to.write_all_at(piece, at).map_err(CopyError::Writing)?;
        }
        at += len as u64;
    }
    if let Some(to) = to {
        to.set_len(at).map_err(CopyError::Writing)?;
    }
    Ok(at)
}
