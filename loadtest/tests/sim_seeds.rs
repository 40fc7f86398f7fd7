//! The simulator gives the same run for the same seed, passes on some seeds, and finds bugs that were put in on
//! purpose. More seeds: `hayloft-loadtest sim --seeds 0..500`.

use hayloft_loadtest::sim::{Bug, Options, simulate};
use std::process::Command;

/// Seeds run by every test run, and for how many virtual seconds.
const SEEDS: std::ops::Range<u64> = 1_000..1_006;
const SECONDS: u64 = 5;
/// A broken variant must be found within so many seeds of as many seconds.
const BROKEN: u64 = 100;

fn options(seed: u64) -> Options {
    Options { seed, seconds: Some(SECONDS), ..Options::default() }
}

#[test]
fn acknowledged_writes_survive_the_faults_of_some_seeds() {
    for seed in SEEDS {
        let report = simulate(&options(seed));
        assert!(
            report.passed(),
            "seed {seed} fails:\n{}replay with: hayloft-loadtest sim --seed {seed} --seconds {SECONDS}",
            report.explain(3)
        );
        assert!(report.counts.keys().any(|name| name.ends_with(": ok")), "seed {seed} did nothing");
    }
}

/// Seeds that once failed: one in a line, then the virtual seconds, then what it found.
#[test]
fn seeds_that_once_failed_pass() {
    for line in include_str!("../seeds/sim.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("seed and seconds");
        let (seed, seconds) = (number(), number());
        let report = simulate(&Options { seed, seconds: Some(seconds), ..Options::default() });
        assert!(report.passed(), "seed {seed} fails again ({line}):\n{}", report.explain(3));
    }
}

#[test]
fn the_same_seed_gives_the_same_log_in_one_process() {
    for seed in 0..3 {
        let (one, other) = (simulate(&options(seed)), simulate(&options(seed)));
        let differs = one.log.lines().zip(other.log.lines()).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(one.log.len(), other.log.len(), "seed {seed}");
    }
    assert_ne!(simulate(&options(0)).hash(), simulate(&options(1)).hash());
}

#[test]
fn the_same_seed_gives_the_same_log_in_two_processes() {
    let seconds = SECONDS.to_string();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hayloft-loadtest"));
        let output = command.args(["sim", "--seed", "3", "--seconds", &seconds, "--print-log"]).output();
        String::from_utf8(output.expect("the program runs").stdout).expect("a log is text")
    };
    let (one, other) = (run(), run());
    assert!(one.lines().count() > 50, "{one}");
    let differs = one.lines().zip(other.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None);
    assert_eq!(one, other);
    assert_eq!(one, simulate(&options(3)).log, "this process gives another log");
}

/// Tries seeds from `first` on: one that is known to find it soon, so that the test is quick.
fn is_found(bug: Bug, first: u64) {
    let found = (first..BROKEN).any(|seed| {
        let report = simulate(&Options { bug: Some(bug), ..options(seed) });
        !report.passed()
    });
    assert!(found, "no seed from {first} to {BROKEN} finds {bug:?}");
}

#[test]
fn nodes_that_acknowledge_before_they_sync_are_found() {
    is_found(Bug::NoFsync, 20);
}

#[test]
fn gateways_that_need_no_quorum_are_found() {
    is_found(Bug::Dangerous, 0);
}

#[test]
fn nodes_that_release_blocks_too_early_are_found() {
    is_found(Bug::EarlyBlockDeletion, 4);
}
