//! The event log of a run: virtual time, who, what. Two runs of one seed must give the same bytes.

use parking_lot::Mutex;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The log, shared by everything in a run. Cheap to clone.
#[derive(Clone)]
pub(super) struct Log(Arc<Inner>);

struct Inner {
    start: Instant,
    echo: bool,
    text: Mutex<String>,
}

impl Log {
    /// An empty log whose time starts now. `echo` shows every line on standard error too.
    pub(super) fn new(start: Instant, echo: bool) -> Self {
        Self(Arc::new(Inner { start, echo, text: Mutex::default() }))
    }

    /// Virtual time since the start.
    pub(super) fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// Adds a line.
    pub(super) fn event(&self, who: &str, what: impl std::fmt::Display) {
        let at = self.now().as_secs_f64();
        if self.0.echo {
            eprintln!("{at:>9.3} {who:<4} {what}");
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.0.text.lock(), "{at:>9.3} {who:<4} {what}");
    }

    /// All lines so far.
    pub(super) fn text(&self) -> String {
        self.0.text.lock().clone()
    }
}

/// Who speaks for faults, so that a history of one key can show them too.
pub(super) const FAULT: &str = "!";

/// The hash that two runs of one seed have in common.
pub(super) fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// The lines about one key, and the faults, for people.
pub(super) fn about(text: &str, key: &str) -> String {
    let marked = format!("[{key}]");
    let concerns = |line: &&str| {
        line.contains(&marked) || line.split_whitespace().nth(1).is_some_and(|who| who == FAULT)
    };
    text.lines().filter(concerns).fold(String::new(), |out, line| out + "  " + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_s_history_has_its_lines_and_the_faults() {
        let text = "1.0 c1 put [a]\n1.1 ! crash s1\n1.2 c1 put [b]\n";
        assert_eq!(about(text, "a"), "  1.0 c1 put [a]\n  1.1 ! crash s1\n");
        assert_ne!(hash(text), hash("other"));
    }
}
