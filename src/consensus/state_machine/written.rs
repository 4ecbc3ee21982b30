//! Which rows were written, for those who follow them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::Connection;
use toft_model::state::Followed;

/// Most rows that are remembered; who comes later reads all.
const MOST: usize = 65_536;

/// What was written since it was last asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// These rows, new, changed or gone.
    These(BTreeSet<(Followed, i64)>),
    /// Whatever there is.
    All,
}

/// Who follows the rows: each is told all of them once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// The scheduler, while this member leads.
    Scheduler,
    /// What people look at.
    Views,
    /// What containers call each other.
    Names,
}

/// Rows that were written: noted while a transaction runs, and told when it is committed.
#[derive(Clone)]
pub(in super::super) struct Written {
    noted: Arc<Mutex<Rows>>,
    /// By who follows.
    told: [Arc<Mutex<Rows>>; 3],
}

impl Rows {
    /// Whether a row of one of these tables may be among them.
    pub fn touch(&self, tables: &[Followed]) -> bool {
        match self {
            Self::These(rows) => rows.iter().any(|(table, _)| tables.contains(table)),
            Self::All => true,
        }
    }
}

impl Default for Written {
    fn default() -> Self {
        let nothing = || Arc::new(Mutex::new(Rows::These(BTreeSet::new())));
        Self { noted: nothing(), told: [nothing(), nothing(), nothing()] }
    }
}

impl Written {
    /// Notes what `connection` writes from now on.
    pub(super) fn watch(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let noted = Arc::clone(&self.noted);
        connection.update_hook(Some(move |_, _: &str, table: &str, row| {
            if let Some(table) = Followed::named(table) {
                add(&mut noted.lock().unwrap_or_else(PoisonError::into_inner), Rows::These([(table, row)].into()));
            }
        }))
    }

    /// What was noted is committed. Rows of a transaction that was rolled back may be among them, which does no harm.
    pub(super) fn tell(&self) {
        let noted = take(&self.noted);
        for told in &self.told {
            add(&mut told.lock().unwrap_or_else(PoisonError::into_inner), noted.clone());
        }
    }

    /// The state is another as a whole.
    pub(super) fn tell_all(&self) {
        take(&self.noted);
        for told in &self.told {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Rows::All;
        }
    }

    /// What was told since it was last taken.
    pub(in super::super) fn take(&self, who: Follows) -> Rows {
        take(&self.told[who as usize])
    }
}

fn take(rows: &Mutex<Rows>) -> Rows {
    std::mem::replace(&mut *rows.lock().unwrap_or_else(PoisonError::into_inner), Rows::These(BTreeSet::new()))
}

fn add(to: &mut Rows, more: Rows) {
    match (&mut *to, more) {
        (Rows::These(known), Rows::These(more)) if known.len() + more.len() <= MOST => known.extend(more),
        _ => *to = Rows::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_when_they_are_committed() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE volumes (name TEXT); CREATE TABLE events (name TEXT)").unwrap();
        let written = Written::default();
        written.watch(&mut connection).unwrap();
        connection.execute_batch("INSERT INTO volumes VALUES ('a'), ('b'); INSERT INTO events VALUES ('c')").unwrap();
        assert_eq!(written.take(Follows::Views), Rows::These(BTreeSet::new()), "it is not committed yet");
        written.tell();
        let rows = written.take(Follows::Views);
        assert_eq!(rows, Rows::These([(Followed::Volumes, 1), (Followed::Volumes, 2)].into()));
        assert!(rows.touch(&[Followed::Instances, Followed::Volumes]) && !rows.touch(&[Followed::Instances]));
        assert!(Rows::All.touch(&[Followed::Instances]));
        assert_eq!(written.take(Follows::Views), Rows::These(BTreeSet::new()));
        connection.execute_batch("DELETE FROM volumes WHERE name = 'a'").unwrap();
        written.tell();
        assert_eq!(written.take(Follows::Views), Rows::These([(Followed::Volumes, 1)].into()));
        for _ in 0..=MOST {
            connection.execute_batch("INSERT INTO volumes VALUES ('d')").unwrap();
        }
        written.tell();
        assert_eq!(written.take(Follows::Views), Rows::All, "more than is remembered");
        assert_eq!(written.take(Follows::Scheduler), Rows::All, "who has not asked yet is told as well");
        written.tell_all();
        assert_eq!(written.take(Follows::Views), Rows::All);
    }
}
