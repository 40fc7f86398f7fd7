//! The simulator's own test: the same seed run twice must give the same log, in one process and in two.

use super::{Options, simulate};
use anyhow::{Context as _, bail};
use std::path::Path;
use std::process::Command;

/// The first lines that differ, for people; none if the logs are equal.
pub(super) fn difference(one: &str, other: &str) -> Option<String> {
    if one == other {
        return None;
    }
    let (mut a, mut b) = (one.lines(), other.lines());
    for number in 1.. {
        let (a, b) = (a.next(), b.next());
        if a != b || a.is_none() {
            let (a, b) = (a.unwrap_or("(the end)"), b.unwrap_or("(the end)"));
            return Some(format!("line {number}:\n  {a}\n  {b}"));
        }
    }
    None
}

/// Runs a seed twice here.
pub(super) fn in_one_process(options: &Options) -> anyhow::Result<String> {
    let (one, other) = (simulate(options), simulate(options));
    match difference(&one.log, &other.log) {
        None => Ok(one.hash()),
        Some(where_) => bail!("seed {}: two runs in one process differ at {where_}", options.seed),
    }
}

/// Runs a seed in two processes of `program`.
pub(super) fn in_two_processes(program: &Path, options: &Options) -> anyhow::Result<String> {
    let run = || -> anyhow::Result<String> {
        let mut command = Command::new(program);
        command.arg("sim").arg("--print-log").args(["--seed", &options.seed.to_string()]);
        if let Some(seconds) = options.seconds {
            command.args(["--seconds", &seconds.to_string()]);
        }
        if let Some(nodes) = options.nodes {
            command.args(["--nodes", &nodes.to_string()]);
        }
        let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
        String::from_utf8(output.stdout).context("the log is not text")
    };
    let (one, other) = (run()?, run()?);
    if one.is_empty() {
        bail!("the simulator printed no log");
    }
    match difference(&one, &other) {
        None => Ok(super::log::hash(&one)),
        Some(where_) => bail!("seed {}: two processes differ at {where_}", options.seed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_where_they_begin() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert!(difference("a\nb\n", "a\nc\n").unwrap().starts_with("line 2"));
        assert!(difference("a\n", "a\nb\n").unwrap().contains("(the end)"));
    }
}
