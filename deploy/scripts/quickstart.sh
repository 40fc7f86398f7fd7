#!/usr/bin/env bash
# Builds Hayloft, starts a cluster on this machine (three storage nodes in three zones, one gateway), stores a file in
# it and fetches it back, then leaves the cluster running until Ctrl-C. Data stays in ./hayloft-dev (git ignores it).
#
#   deploy/scripts/quickstart.sh              all of that
#   deploy/scripts/quickstart.sh --once       stop the cluster after the file has come back
#
# Needs a Rust toolchain (1.95 or newer), a C compiler, curl (7.76 or newer) and Python 3.
set -euo pipefail
cd "$(dirname "$0")/../.."
once=${1:-}
dir=hayloft-dev
for tool in cargo cc curl python3; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: install it, then run this again" >&2; exit 1; }
done
mkdir -p "$dir"

cargo build --release --locked --bin hayloft --bin hayloft-storage --bin hayloft-gateway
rm -f "$dir/cluster.json"
"${CARGO_TARGET_DIR:-target}/release/hayloft" dev --dir "$dir" &
dev=$!
trap 'kill -TERM $dev 2>/dev/null; wait $dev 2>/dev/null || true' EXIT
for _ in $(seq 600); do
    [ -s "$dir/cluster.json" ] && break
    kill -0 $dev || exit 1
    sleep 0.1
done

read -r url region key secret bucket < <(python3 - "$dir/cluster.json" <<'PY'
import json, sys
s3 = json.load(open(sys.argv[1]))["s3"]
print(s3["endpoints"][0], s3["region"], s3["access_key"], s3["secret_key"], s3["bucket"])
PY
)
sign=(--silent --show-error --fail --noproxy "*" --aws-sigv4 "aws:amz:$region:s3" --user "$key:$secret")
head -c 5000000 /dev/urandom >"$dir/hay"
curl "${sign[@]}" -H "x-amz-content-sha256: UNSIGNED-PAYLOAD" -T "$dir/hay" "$url/$bucket/hay"
curl "${sign[@]}" -H "x-amz-content-sha256: UNSIGNED-PAYLOAD" -o "$dir/hay.back" "$url/$bucket/hay"
cmp "$dir/hay" "$dir/hay.back"
rm "$dir/hay" "$dir/hay.back"
echo "A file of 5 MB went to $url/$bucket/hay on three nodes and came back the same."
[ "$once" = --once ] && exit 0
echo "The cluster keeps running; Ctrl-C stops it."
wait $dev
