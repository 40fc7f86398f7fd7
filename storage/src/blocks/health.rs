//! What state a disk is in, and how it changes. Pure: events in, states out.
//!
//! ```text
//! Healthy ⇄ Full          free space or the configured capacity crossed the reserve, either way
//! Healthy, Full → ReadOnly   configured; a failed sync; a failed write; a read-only file system
//! any → Failed            not there (any more), or too many read errors in a row
//! any but Failed ⇄ Hanging   it does not answer / it answers again
//! ```
//!
//! `ReadOnly` and `Failed` last until the daemon is started again: a failed sync ends trust, since what
//! the kernel still claims to hold may never have reached the platter. (A disk that was *gone*, see [`Monitor::is_gone`],
//! may be opened anew before, with a new monitor.) No state is fatal to the daemon:
//! blocks of a failed disk are answered as unreadable, and fetched from other nodes again.

use serde::Serialize;
use std::fmt;
use std::io;

use crate::limits::MAX_READ_ERRORS;

/// Why a disk takes no writes for the rest of this run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "cause", content = "error")]
pub enum ReadOnlyReason {
    Configured,
    SyncFailed(String),
    WriteFailed(String),
    ReadOnlyFileSystem,
}

/// The state of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Health {
    /// Reads, writes, deletions.
    Healthy,
    /// Reads and deletions; writes again when there is room.
    Full,
    /// Reads only, until the daemon is started again.
    ReadOnly { reason: ReadOnlyReason },
    /// Nothing, until the daemon is started again.
    Failed { reason: String },
    /// Nothing, until it answers again.
    Hanging,
}

impl Health {
    /// Whether new blocks may be written.
    pub fn takes_writes(&self) -> bool {
        matches!(self, Self::Healthy)
    }

    /// Whether blocks may be deleted.
    pub fn takes_deletions(&self) -> bool {
        matches!(self, Self::Healthy | Self::Full)
    }

    /// Whether blocks may be read.
    pub fn takes_reads(&self) -> bool {
        !matches!(self, Self::Failed { .. } | Self::Hanging)
    }

    /// One word, for metrics and tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Full => "full",
            Self::ReadOnly { .. } => "read-only",
            Self::Failed { .. } => "failed",
            Self::Hanging => "hanging",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let until = "until the daemon is restarted; check the disk";
        match self {
            Self::Healthy => write!(f, "healthy"),
            Self::Full => {
                write!(f, "full: what is left is below the reserve, or the configured capacity is used up")
            }
            Self::ReadOnly { reason } => match reason {
                ReadOnlyReason::Configured => write!(f, "read-only: configured"),
                ReadOnlyReason::SyncFailed(e) => write!(f, "read-only {until}: a sync failed: {e}"),
                ReadOnlyReason::WriteFailed(e) => write!(f, "read-only {until}: a write failed: {e}"),
                ReadOnlyReason::ReadOnlyFileSystem => {
                    write!(f, "read-only {until}: the file system is read-only")
                }
            },
            Self::Failed { reason } => write!(f, "failed, set aside {until}: {reason}"),
            Self::Hanging => write!(f, "hanging: it has not answered for long; check the disk"),
        }
    }
}

/// What happened on a disk.
#[derive(Debug)]
pub enum Event<'a> {
    /// `available` bytes may still be written; `reserve` of them must stay free.
    Space {
        available: u64,
        reserve: u64,
    },
    ReadWorked,
    ReadFailed(&'a io::Error),
    WriteFailed(&'a io::Error),
    SyncFailed(&'a io::Error),
    /// The directory, or part of it, is not there any more.
    Gone(String),
    /// The disk cannot be used at all.
    Unusable(String),
    /// It has not answered for long.
    Hangs,
    Answers,
}

/// The state of one disk and what it is derived from.
#[derive(Debug)]
pub struct Monitor {
    health: Health,
    read_errors: u32,
    hangs: bool,
    gone: bool,
}

impl Monitor {
    pub fn new(read_only: bool) -> Self {
        let health =
            if read_only { Health::ReadOnly { reason: ReadOnlyReason::Configured } } else { Health::Healthy };
        Self { health, read_errors: 0, hangs: false, gone: false }
    }

    pub fn health(&self) -> Health {
        match &self.health {
            Health::Failed { .. } => self.health.clone(),
            _ if self.hangs => Health::Hanging,
            other => other.clone(),
        }
    }

    /// Whether it failed because its directory is not there: it may be opened anew when that is mended.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Takes an event in; returns the new state if it changed in kind.
    pub fn apply(&mut self, event: Event<'_>) -> Option<Health> {
        let before = self.health().word();
        match event {
            Event::Hangs => self.hangs = true,
            Event::Answers => self.hangs = false,
            Event::Gone(_) => self.gone |= !matches!(self.health, Health::Failed { .. }),
            _ => {}
        }
        let Some(next) = self.next(event) else {
            return (before != self.health().word()).then(|| self.health());
        };
        let worse_than_full = |h: &Health| matches!(h, Health::ReadOnly { .. } | Health::Failed { .. });
        let keeps = match (&self.health, &next) {
            (Health::Failed { .. }, _) => true,
            (Health::ReadOnly { .. }, Health::Failed { .. }) => false,
            (current, _) => worse_than_full(current),
        };
        if keeps {
            return None;
        }
        self.health = next;
        (before != self.health().word()).then(|| self.health())
    }

    fn next(&mut self, event: Event<'_>) -> Option<Health> {
        match event {
            Event::Space { available, reserve } if available <= reserve => Some(Health::Full),
            Event::Space { .. } => Some(Health::Healthy),
            Event::ReadWorked => {
                self.read_errors = 0;
                None
            }
            Event::ReadFailed(error) => {
                self.read_errors += 1;
                (self.read_errors >= MAX_READ_ERRORS).then(|| Health::Failed {
                    reason: format!("{} read errors in a row, the last: {error}", self.read_errors),
                })
            }
            Event::WriteFailed(error) => Some(match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Health::Full,
                io::ErrorKind::ReadOnlyFilesystem => {
                    Health::ReadOnly { reason: ReadOnlyReason::ReadOnlyFileSystem }
                }
                _ => Health::ReadOnly { reason: ReadOnlyReason::WriteFailed(error.to_string()) },
            }),
            Event::SyncFailed(error) => {
                Some(Health::ReadOnly { reason: ReadOnlyReason::SyncFailed(error.to_string()) })
            }
            Event::Gone(reason) | Event::Unusable(reason) => Some(Health::Failed { reason }),
            Event::Hangs | Event::Answers => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(kind: io::ErrorKind) -> io::Error {
        io::Error::from(kind)
    }

    #[test]
    fn a_full_disk_recovers_and_a_failed_sync_does_not() {
        let mut monitor = Monitor::new(false);
        assert_eq!(monitor.apply(Event::Space { available: 10, reserve: 5 }), None);
        assert_eq!(
            monitor.apply(Event::WriteFailed(&io(io::ErrorKind::StorageFull))).unwrap().word(),
            "full"
        );
        assert!(monitor.health().takes_deletions() && !monitor.health().takes_writes());
        assert_eq!(monitor.apply(Event::Space { available: 10, reserve: 5 }), Some(Health::Healthy));
        let changed = monitor.apply(Event::SyncFailed(&io(io::ErrorKind::Other))).unwrap();
        assert_eq!(changed.word(), "read-only");
        assert_eq!(monitor.apply(Event::Space { available: 10, reserve: 5 }), None);
        assert!(!monitor.health().takes_writes() && monitor.health().takes_reads());
    }

    #[test]
    fn a_hanging_disk_is_what_it_was_once_it_answers() {
        let mut monitor = Monitor::new(true);
        assert_eq!(monitor.apply(Event::Hangs), Some(Health::Hanging));
        assert_eq!(monitor.apply(Event::Hangs), None);
        assert!(!monitor.health().takes_reads());
        assert_eq!(monitor.apply(Event::Answers).unwrap().word(), "read-only");
        assert_eq!(monitor.apply(Event::Gone("x".into())).unwrap().word(), "failed");
        assert!(monitor.is_gone());
        assert_eq!(monitor.apply(Event::Hangs), None);
        let mut failing = Monitor::new(false);
        failing.apply(Event::Unusable("y".into()));
        failing.apply(Event::Gone("x".into()));
        assert!(!failing.is_gone(), "a disk that fails is not opened anew");
    }

    #[test]
    fn read_errors_in_a_row_set_a_disk_aside() {
        let mut monitor = Monitor::new(true);
        for _ in 1..MAX_READ_ERRORS {
            assert_eq!(monitor.apply(Event::ReadFailed(&io(io::ErrorKind::Other))), None);
        }
        monitor.apply(Event::ReadWorked);
        for _ in 1..MAX_READ_ERRORS {
            assert_eq!(monitor.apply(Event::ReadFailed(&io(io::ErrorKind::Other))), None);
        }
        let changed = monitor.apply(Event::ReadFailed(&io(io::ErrorKind::Other))).unwrap();
        assert_eq!(changed.word(), "failed");
        assert_eq!(monitor.apply(Event::SyncFailed(&io(io::ErrorKind::Other))), None);
        assert!(!monitor.health().takes_reads());
    }
}
