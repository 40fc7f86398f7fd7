"""What homes do to servers: killed processes, damaged, full and read-only disks, wrong configuration."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from conftest import BIN, Cluster

MIB = 1 << 20


def wait_for(condition, timeout=60):
    end = time.time() + timeout
    while not condition():
        assert time.time() < end, "condition not reached in time"
        time.sleep(0.2)


def block_files(process):
    return [p for p in pathlib.Path(process["dir"]).rglob("*") if p.is_file() and "data" in p.parts and p.stat().st_size > 1000]


def test_a_killed_storage_node_fails_no_request_and_serves_again(own_cluster):
    cluster = own_cluster.start()
    clients = [cluster.client(i % 2, max_pool_connections=64) for i in range(2)]
    bucket = cluster.s3["bucket"]
    stop, failed, written = threading.Event(), [], {}

    def work(n):
        s3, i = clients[n % 2], 0
        while not stop.is_set():
            key, body = f"{n}/{i % 5}", os.urandom([100, 30_000, 1_200_000][i % 3])
            try:
                s3.put_object(Bucket=bucket, Key=key, Body=body)
                written[key] = body
                assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
            except Exception as error:  # noqa: BLE001
                failed.append(repr(error))
            i += 1

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for n in range(16):
            pool.submit(work, n)
        time.sleep(3)
        victim = cluster.processes("storage")[1]
        cluster.kill(victim)
        time.sleep(5)
        cluster.restart(victim)
        time.sleep(5)
        stop.set()
    assert not failed, failed[:3]
    wait_for(lambda: all(n["isUp"] for n in cluster.ctl("status")["nodes"]))
    # The restarted node serves: it makes a quorum with one of the others.
    cluster.kill(cluster.processes("storage")[0])
    for key, body in written.items():
        assert clients[0].get_object(Bucket=bucket, Key=key)["Body"].read() == body, key


def test_everything_killed_at_once_loses_nothing(own_cluster):
    cluster = own_cluster.start()
    bucket = cluster.s3["bucket"]
    acknowledged = {}
    for round_number in range(3):
        s3 = cluster.client(0, max_pool_connections=32)
        stop = threading.Event()

        def work(n, s3=s3, stop=stop, r=round_number):
            i = 0
            while not stop.is_set():
                key, body = f"{r}/{n}/{i}", os.urandom([0, 900, 20_000, 300_000, 2 * MIB][i % 5])
                try:
                    s3.put_object(Bucket=bucket, Key=key, Body=body)
                    acknowledged[key] = body
                except Exception:  # noqa: BLE001
                    return
                i += 1

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for n in range(16):
                pool.submit(work, n)
            time.sleep(2)
            for process in cluster.info["processes"]:
                cluster.kill(process)
            stop.set()
        for process in cluster.info["processes"]:
            cluster.restart(process)
        s3 = cluster.client()

        def ready(s3=s3):
            try:
                return s3.list_objects_v2(Bucket=bucket, MaxKeys=1) is not None
            except Exception:  # noqa: BLE001
                return False

        wait_for(ready)
        for key, body in acknowledged.items():
            assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body, key
    assert len(acknowledged) > 100


def test_damaged_blocks_are_never_served(own_cluster):
    cluster = own_cluster.start()
    s3, bucket = cluster.client(), cluster.s3["bucket"]
    objects = {f"o{i}": os.urandom([40_000, 200_000, MIB, 3 * MIB + 5][i % 4]) for i in range(24)}
    for key, body in objects.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    files = block_files(cluster.processes("storage")[0])
    assert files
    for i, path in enumerate(files):
        if i % 3 == 0:
            path.unlink()
        elif i % 3 == 1:
            os.truncate(path, path.stat().st_size // 2)
        else:
            with open(path, "r+b") as file:
                for offset in range(500, path.stat().st_size, 5000):
                    file.seek(offset)
                    byte = file.read(1)
                    file.seek(offset)
                    file.write(bytes([byte[0] ^ 0x10]))
    for _ in range(2):
        for gateway in range(2):
            reader = cluster.client(gateway)
            for key, body in objects.items():
                assert reader.get_object(Bucket=bucket, Key=key)["Body"].read() == body, key


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 48 MiB."""
    top = tmp_path / "small"
    top.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", top], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield top
    subprocess.run(["umount", "-l", top], check=False)


def test_a_full_disk_refuses_writes_clearly_and_loses_nothing(tmp_path, small_disk):
    # The only copy, so that the full disk is the answer.
    cluster = Cluster(small_disk, storage=1, zones=1, gateways=1, replication=1).start()
    try:
        s3, bucket = cluster.client(), cluster.s3["bucket"]
        stored, refusal = {}, None
        for i in range(100):
            body = os.urandom(MIB)
            try:
                s3.put_object(Bucket=bucket, Key=str(i), Body=body)
                stored[str(i)] = body
            except ClientError as error:
                refusal = error
                break
        assert refusal is not None, "the disk never filled up"
        assert refusal.response["ResponseMetadata"]["HTTPStatusCode"] in (503, 507)
        assert stored
        for key, body in stored.items():
            assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
        assert {o["Key"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]} == set(stored)
    finally:
        cluster.stop()


def test_a_disk_that_turns_read_only_still_serves(tmp_path, small_disk):
    cluster = Cluster(small_disk, storage=1, zones=1, gateways=1, replication=1).start()
    try:
        s3, bucket = cluster.client(), cluster.s3["bucket"]
        body = os.urandom(2 * MIB)
        s3.put_object(Bucket=bucket, Key="before", Body=body)
        remounted = subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True)
        if remounted.returncode != 0:
            pytest.skip("can't remount a busy tmpfs read-only here")
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket=bucket, Key="after", Body=body)
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
        assert s3.get_object(Bucket=bucket, Key="before")["Body"].read() == body
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=False)
        cluster.stop()


def start_daemon(config, role="storage", timeout=10):
    """Runs a daemon that should refuse to start; returns its exit code and what it said."""
    try:
        result = subprocess.run(
            [BIN / f"hayloft-{role}", "--config", config], capture_output=True, text=True, timeout=timeout
        )
        return result.returncode, result.stdout + result.stderr
    except subprocess.TimeoutExpired as expired:
        return None, ((expired.stdout or b"") + (expired.stderr or b"")).decode()


def copy_config(cluster, process, tmp_path, edit):
    source = pathlib.Path(cluster.info["config"][process["name"]])
    copy = tmp_path / "edited.toml"
    copy.write_text(edit(source.read_text()))
    copy.chmod(0o600)
    return copy


def test_configuration_mistakes_are_named(own_cluster, tmp_path):
    cluster = own_cluster.start()
    storage, gateway = cluster.processes("storage")[0], cluster.processes("gateway")[0]
    port = cluster.info["config"]

    for process in (storage, gateway):
        role = process["role"]
        code, said = start_daemon(copy_config(cluster, process, tmp_path, lambda t: "no_such_key = 1\n" + t), role)
        assert code not in (0, None) and "no_such_key" in said, said
        code, said = start_daemon(copy_config(cluster, process, tmp_path, lambda t: t + "\n[[[broken"), role)
        assert code not in (0, None) and "edited.toml" in said, said
    assert port

    # The directory of a running node: in use, whatever stops it first says so.
    code, said = start_daemon(pathlib.Path(cluster.info["config"][storage["name"]]))
    assert code not in (0, None) and re.search("in use|locked|already", said), said

    # A port in use.
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        busy = sock.getsockname()[1]
        edit = lambda t: re.sub(r'(rpc_bind_addr = )"[^"]*"', rf'\1"127.0.0.1:{busy}"', re.sub(  # noqa: E731
            r'(metadata_dir = )"[^"]*"', rf'\1"{tmp_path}/meta"', re.sub(r'(?m)^data_dir = .*$', f'data_dir = "{tmp_path}/blocks"', t)))
        code, said = start_daemon(copy_config(cluster, storage, tmp_path, edit))
        assert code not in (0, None) and str(busy) in said, said

    # Another node's data directory.
    other = cluster.processes("storage")[1]
    cluster.kill(storage)
    time.sleep(0.5)
    theirs = pathlib.Path(cluster.info["config"][other["name"]]).read_text()
    data = re.search(r"(?m)^data_dir = .*$", theirs)[0]
    cluster.kill(other)
    time.sleep(0.5)
    code, said = start_daemon(
        copy_config(cluster, storage, tmp_path, lambda t: re.sub(r"(?m)^data_dir = .*$", data, t))
    )
    assert code not in (0, None) and "belongs to" in said, said


def test_a_wrong_secret_is_said_on_both_sides(own_cluster, tmp_path):
    cluster = own_cluster.start()
    gateway = cluster.processes("gateway")[0]
    secret = tmp_path / "secret"
    secret.write_text("00" * 32)
    secret.chmod(0o600)

    def edit(text):
        text = re.sub(r'rpc_secret(_file)? = "[^"]*"', f'rpc_secret_file = "{secret}"', text)
        return re.sub(r'(api_bind_addr = )"[^"]*"', r'\1"127.0.0.1:0"', text)

    code, said = start_daemon(copy_config(cluster, gateway, tmp_path, edit), "gateway", timeout=6)
    assert "secret" in said, said
    logs = "".join(p.read_text(errors="replace") for p in cluster.dir.rglob("*.log"))
    assert "secret" in logs.split("wrong", 1)[-1] or "wrong rpc_secret" in logs
    s3 = cluster.client()
    s3.put_object(Bucket=cluster.s3["bucket"], Key="still", Body=b"works")


def test_a_second_start_finds_everything_again(own_cluster):
    cluster = own_cluster.start()
    first, body = dict(cluster.s3), os.urandom(2 * MIB)
    cluster.client().put_object(Bucket=first["bucket"], Key="kept", Body=body)
    assert cluster.stop() == 0
    cluster.start()
    assert {k: cluster.s3[k] for k in ("access_key", "secret_key", "bucket")} == {
        k: first[k] for k in ("access_key", "secret_key", "bucket")
    }
    assert cluster.client().get_object(Bucket=first["bucket"], Key="kept")["Body"].read() == body
    shutil.rmtree(cluster.dir / "nothing", ignore_errors=True)


def test_a_gateway_killed_in_an_upload_leaves_the_old_object(own_cluster):
    cluster = own_cluster.start()
    bucket = cluster.s3["bucket"]
    old = os.urandom(MIB + 1)
    cluster.client(0).put_object(Bucket=bucket, Key="big", Body=old)

    class Slow:
        """1 GiB that never quite ends."""

        def __init__(self):
            self.left = 1 << 30

        def __len__(self):
            return 1 << 30

        def read(self, n=-1):
            n = min(self.left, n if n and n > 0 else MIB)
            self.left -= n
            return b"\x5a" * n

        def seek(self, *_):
            self.left = 1 << 30
            return 0

        def tell(self):
            return (1 << 30) - self.left

    def upload():
        try:
            cluster.client(0, request_checksum_calculation="when_required").put_object(
                Bucket=bucket, Key="big", Body=Slow(), ContentLength=1 << 30
            )
            return "acknowledged"
        except Exception as error:  # noqa: BLE001
            return repr(error)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(upload)
        time.sleep(1.0)
        cluster.kill(cluster.processes("gateway")[0])
        outcome = future.result()
    assert outcome != "acknowledged"
    assert cluster.client(1).get_object(Bucket=bucket, Key="big")["Body"].read() == old
    cluster.client(1).put_object(Bucket=bucket, Key="big", Body=b"new")
    assert cluster.client(1).get_object(Bucket=bucket, Key="big")["Body"].read() == b"new"


@pytest.mark.parametrize("offset_ms", [-3_600_000, 3_600_000, -315_360_000_000, 315_360_000_000])
def test_a_gateway_with_a_wrong_clock_loses_nothing(cluster, tmp_path, offset_ms):
    """Its stamps are wrong, yet a read after an acknowledgement sees the write, from any gateway. Its clients have the
    right time: signatures are judged by the cluster's clocks."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    gateway = cluster.processes("gateway")[0]

    def edit(text):
        text = re.sub(r'(\[s3_api\][^\[]*?api_bind_addr = )"[^"]*"', rf'\1"127.0.0.1:{port}"', text)
        return re.sub(r'(\[admin\][^\[]*?api_bind_addr = )"[^"]*"', r'\1"127.0.0.1:0"', text)

    config = copy_config(cluster, gateway, tmp_path, edit)
    log = open(tmp_path / "log", "wb")
    child = subprocess.Popen(
        [BIN / "hayloft-gateway", "--config", config, "--clock-offset-ms", str(offset_ms)], stdout=log, stderr=log
    )
    try:
        wrong = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name=cluster.s3["region"],
            aws_access_key_id=cluster.s3["access_key"], aws_secret_access_key=cluster.s3["secret_key"],
            config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )
        right = cluster.client(1)
        bucket, key = cluster.s3["bucket"], f"clock{offset_ms}"

        def ready():
            try:
                return wrong.list_objects_v2(Bucket=bucket, MaxKeys=1) is not None
            except Exception:  # noqa: BLE001
                return False

        wait_for(ready)
        for i in range(5):
            for writer in (wrong, right):
                for body in (f"{i}".encode(), os.urandom(MIB)):
                    writer.put_object(Bucket=bucket, Key=key, Body=body)
                    for reader in (wrong, right):
                        assert reader.get_object(Bucket=bucket, Key=key)["Body"].read() == body
                writer.delete_object(Bucket=bucket, Key=key)
                for reader in (wrong, right):
                    with pytest.raises(ClientError) as error:
                        reader.get_object(Bucket=bucket, Key=key)
                    assert error.value.response["Error"]["Code"] == "NoSuchKey"
    finally:
        child.kill()
        child.wait()
