"""Command line clients as people use them: trees go up, come down, and are compared byte for byte."""

import shutil
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
from conftest import contents, run

AWS = [sys.executable, "-m", "awscli"]


def test_aws_cli_syncs_a_tree_both_ways(cluster, bucket, tree, tmp_path):
    env = cluster.env()
    run([*AWS, "s3", "sync", tree, f"s3://{bucket}/tree"], env)
    run([*AWS, "s3", "sync", f"s3://{bucket}/tree", tmp_path / "back"], env)
    assert contents(tmp_path / "back") == contents(tree)
    # A second sync has nothing to do.
    assert run([*AWS, "s3", "sync", tree, f"s3://{bucket}/tree"], env).strip() == ""
    listing = run([*AWS, "s3", "ls", f"s3://{bucket}/tree/", "--recursive"], env)
    assert len(listing.splitlines()) == len(contents(tree))


def test_aws_cli_copies_a_large_file_in_parts(cluster, bucket, tmp_path):
    env = cluster.env()
    source = tmp_path / "large"
    with open(source, "wb") as out, open("/dev/urandom", "rb") as random:
        for _ in range(100):
            out.write(random.read(1 << 20))
    run([*AWS, "s3", "cp", source, f"s3://{bucket}/large"], env)
    run([*AWS, "s3", "cp", f"s3://{bucket}/large", f"s3://{bucket}/copy"], env)
    run([*AWS, "s3", "mv", f"s3://{bucket}/copy", f"s3://{bucket}/moved"], env)
    run([*AWS, "s3", "cp", f"s3://{bucket}/moved", tmp_path / "back"], env)
    assert source.read_bytes() == (tmp_path / "back").read_bytes()
    run([*AWS, "s3", "rm", f"s3://{bucket}", "--recursive"], env)
    assert run([*AWS, "s3", "ls", f"s3://{bucket}"], env).strip() == ""


def test_aws_cli_makes_removes_and_presigns(cluster, tmp_path):
    env = cluster.env()
    run([*AWS, "s3", "mb", "s3://made-by-cli"], env)
    assert "made-by-cli" in run([*AWS, "s3", "ls"], env)
    (tmp_path / "f").write_bytes(b"presigned")
    run([*AWS, "s3", "cp", tmp_path / "f", "s3://made-by-cli/a b+c%.txt"], env)
    url = run([*AWS, "s3", "presign", "s3://made-by-cli/a b+c%.txt"], env).strip()
    assert urllib.request.urlopen(url).read() == b"presigned"
    run([*AWS, "s3", "rb", "s3://made-by-cli", "--force"], env)
    assert "made-by-cli" not in run([*AWS, "s3", "ls"], env)


@pytest.fixture
def rclone(cluster, tmp_path):
    conf = tmp_path / "rclone.conf"
    s3 = cluster.s3
    conf.write_text(
        f"[h]\ntype = s3\nprovider = Other\nendpoint = {s3['endpoints'][0]}\nregion = {s3['region']}\n"
        f"access_key_id = {s3['access_key']}\nsecret_access_key = {s3['secret_key']}\n"
    )
    return ["rclone", "--config", conf, "--retries", "1"]


def test_rclone_syncs_checks_and_purges(cluster, bucket, tree, tmp_path, rclone):
    env = cluster.env()
    run([*rclone, "sync", tree, f"h:{bucket}/tree"], env)
    run([*rclone, "check", "--download", tree, f"h:{bucket}/tree"], env)
    run([*rclone, "sync", f"h:{bucket}/tree", tmp_path / "back"], env)
    assert contents(tmp_path / "back") == contents(tree)
    (tree / "plain.txt").write_bytes(b"changed")
    shutil.rmtree(tree / "many")
    run([*rclone, "sync", tree, f"h:{bucket}/tree"], env)
    run([*rclone, "check", tree, f"h:{bucket}/tree"], env)
    run([*rclone, "copyto", "--s3-upload-cutoff", "0", "--s3-chunk-size", "5M", tree / "plain.txt", f"h:{bucket}/mp"], env)
    assert run([*rclone, "cat", f"h:{bucket}/mp"], env) == "changed"
    run([*rclone, "purge", f"h:{bucket}/tree"], env)
    assert run([*rclone, "lsf", f"h:{bucket}"], env).split() == ["mp"]


def test_s3cmd_syncs_a_tree_both_ways(cluster, bucket, tree, tmp_path):
    host = urllib.parse.urlparse(cluster.s3["endpoints"][0]).netloc
    conf = tmp_path / "s3cfg"
    conf.write_text(
        f"[default]\nhost_base = {host}\nhost_bucket = {host}\nuse_https = False\n"
        f"access_key = {cluster.s3['access_key']}\nsecret_key = {cluster.s3['secret_key']}\n"
        f"bucket_location = {cluster.s3['region']}\n"
    )
    s3cmd = ["s3cmd", "-c", conf, "--no-progress"]
    env = {**cluster.env(), "LC_ALL": "C.UTF-8"}
    run([*s3cmd, "sync", f"{tree}/", f"s3://{bucket}/tree/"], env)
    run([*s3cmd, "sync", f"s3://{bucket}/tree/", f"{tmp_path}/back/"], env)
    assert contents(tmp_path / "back") == contents(tree)
    run([*s3cmd, "put", "--multipart-chunk-size-mb=5", tree / "deep/er/and/deeper/file", f"s3://{bucket}/one"], env)
    run([*s3cmd, "cp", f"s3://{bucket}/one", f"s3://{bucket}/two"], env)
    assert "two" in run([*s3cmd, "ls", f"s3://{bucket}"], env)
    run([*s3cmd, "del", "--recursive", "--force", f"s3://{bucket}"], env)
    run([*s3cmd, "rb", f"s3://{bucket}"], env)


def test_restic_backs_up_checks_and_restores(cluster, bucket, tree, tmp_path):
    env = {
        **cluster.env(),
        "RESTIC_PASSWORD": "secret",
        "RESTIC_REPOSITORY": f"s3:{cluster.s3['endpoints'][0]}/{bucket}/restic",
        "RESTIC_CACHE_DIR": str(tmp_path / "cache"),
    }
    run(["restic", "init"], env)
    run(["restic", "backup", tree], env)
    before = contents(tree)
    (tree / "plain.txt").write_bytes(b"second generation")
    run(["restic", "backup", tree], env)
    run(["restic", "check", "--read-data"], env)
    run(["restic", "restore", "latest", "--target", tmp_path / "back"], env)
    assert contents(f"{tmp_path}/back{tree}") == contents(tree)
    run(["restic", "forget", "--keep-last", "1", "--prune"], env)
    run(["restic", "check"], env)
    assert before != contents(tree)


def test_the_command_line_shows_its_help_and_state(cluster):
    status = cluster.ctl("status")
    assert len([n for n in status["nodes"] if n["isUp"]]) >= 3
    layout = cluster.ctl("layout", "show")
    assert layout["version"] == 1 and len(layout["roles"]) == 3
    key = cluster.ctl("key", "create", "from-test", "--allow-create-bucket")
    assert key["accessKeyId"] and key["secretAccessKey"] and key["permissions"]["createBucket"]
    made = cluster.ctl("bucket", "create", "by-command")
    cluster.ctl("bucket", "allow", "by-command", "--read", "--write", "--key", key["accessKeyId"])
    info = cluster.ctl("bucket", "info", "by-command")
    assert info["id"] == made["id"]
    assert info["keys"][0]["permissions"] == {"read": True, "write": True, "owner": False}
    cluster.ctl("bucket", "deny", "by-command", "--write", "--key", key["accessKeyId"])
    assert cluster.ctl("bucket", "info", "by-command")["keys"][0]["permissions"]["write"] is False
    cluster.ctl("bucket", "delete", "by-command", "--yes")
    cluster.ctl("key", "delete", key["accessKeyId"], "--yes")
    assert cluster.ctl("bucket", "info", "by-command", check=False).returncode != 0
    for command in (["status"], ["layout", "assign"], ["key", "create"], ["bucket", "allow"], ["dev"]):
        from conftest import BIN

        shown = subprocess.run([BIN / "hayloft", *command, "--help"], capture_output=True, text=True)
        assert shown.returncode == 0 and "Usage" in shown.stdout
