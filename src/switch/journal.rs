//! The line of a switch in the journal.

use super::switcher::Switched;
use super::target::Target;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::active::Active;
use crate::store::journal::{Asker, Line};

/// The line for an attempt; `None` for one that changed nothing and is nobody's business later.
pub(super) fn line(
    target: &Target,
    from: Option<&Active>,
    message: Option<String>,
    asker: Asker,
    result: &Result<Switched>,
) -> Option<Line> {
    let mut line = Line::done(target.action(), asker);
    line.from = from.map(|active| active.release.clone());
    line.message = message;
    match result {
        Ok(switched) if switched.is_nothing() => return None,
        Ok(switched) => {
            line.to = Some(switched.to.clone());
            line.switch = Some(switched.number);
        }
        Err(Error::Request(_)) => return None,
        Err(error) => {
            line.to = target.to.as_ref().map(ToString::to_string);
            line.ok = false;
            line.note = Some(error.to_string());
        }
    }
    Some(line)
}

/// The line for the first release, which nobody asked for: it was mounted.
pub(super) fn first_line(active: &Active) -> Line {
    let mut line = Line::done("switch", Asker::this_process());
    line.to = Some(active.release.clone());
    line.switch = Some(active.switch);
    line.note = Some("first release to be mounted".to_owned());
    line
}

/// Writes a line. What was done is done: without its line the next mount, or the next switch without one, writes it.
pub(super) fn write(store: &Store, line: &Line) -> Option<String> {
    let error = store.write_journal(line).err()?;
    log::error!("{error}");
    Some(format!("{error}; the next mount writes the line"))
}
