#!/usr/bin/env bash
# Everything that must pass before a change lands: formatting, lints, docs, licences, unit, property, component and
# simulation tests, then real clients against a real cluster. Needs a Rust toolchain, a C compiler and Python 3; the
# rest is installed from the package registries (Debian packages only where apt-get and root are there).
#
#   deploy/scripts/test.sh            all of it (about 25 minutes on two cores)
#   deploy/scripts/test.sh rust       only what cargo tests
#   deploy/scripts/test.sh clients    only the real clients (further arguments go to pytest)
#   deploy/scripts/test.sh processes  a minute of faults on real processes, which `all` leaves out
set -euo pipefail
cd "$(dirname "$0")/../.."
what=${1:-all}
[ $# -gt 0 ] && shift

step() { printf '\n== %s (%(%H:%M:%S)T)\n' "$1" -1; }

rust() {
    step "formatting"
    cargo fmt --all -- --check
    step "build"
    cargo build --release --workspace --bins --locked
    step "lints"
    cargo clippy --release --workspace --all-targets --locked -- -D warnings
    step "documentation"
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --locked --quiet
    step "licences and layout of the tree"
    python3 deploy/scripts/tidy.py
    step "tests"
    cargo test --release --workspace --locked
}

clients() {
    step "build"
    cargo build --release --workspace --bins --locked
    step "real clients"
    if ! command -v rclone s3cmd restic >/dev/null || ! command -v restic >/dev/null || ! command -v s3cmd >/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            apt-get update -qq
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq rclone s3cmd restic
        else
            echo "install rclone, s3cmd and restic, then run this again" >&2
            exit 1
        fi
    fi
    if ! .venv/bin/python -c 'import pytest' 2>/dev/null; then
        rm -rf .venv
        python3 -m venv .venv
        .venv/bin/pip install --quiet --disable-pip-version-check -r loadtest/clients/requirements.txt
    fi
    PYTHONDONTWRITEBYTECODE=1 .venv/bin/python -m pytest -q -p no:cacheprovider --durations=5 loadtest/clients "$@"
}

# A smoke test of the tools and of the worst: the long runs are in loadtest/README.md.
processes() {
    step "build"
    cargo build --release --workspace --bins --locked
    step "faults on real processes"
    target/release/hayloft-loadtest chaos --minutes 0.3 --round-seconds 9 --limit-minutes 3
    target/release/hayloft-loadtest scenario power-cut --small --limit-minutes 3
}

case $what in
all) rust && clients "$@" ;;
rust) rust ;;
clients) clients "$@" ;;
processes) processes ;;
*) echo "usage: $0 [all|rust|clients|processes]" >&2; exit 2 ;;
esac
