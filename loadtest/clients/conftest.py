"""A local cluster for the client tests: `hayloft dev` as a person would start it, from the release build.

Set HAYLOFT_BIN to use other binaries, HAYLOFT_CLUSTER to a file written by `hayloft dev --json` to use a running
cluster (the tests that break a cluster start their own all the same).
"""

import json
import os
import pathlib
import secrets
import signal
import subprocess
import time

import boto3
import pytest
from botocore.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("HAYLOFT_BIN", ROOT / "target" / "release"))


class Cluster:
    """A running cluster and ways to hurt it."""

    def __init__(self, directory, **options):
        self.dir = pathlib.Path(directory)
        self.file = self.dir / "cluster.json"
        self.options = {"storage": 3, "zones": 3, "gateways": 2, "replication": 3, **options}
        self.process = None
        self.restarted = []

    def start(self, timeout=90):
        self.file.unlink(missing_ok=True)
        args = [str(BIN / "hayloft"), "dev", "--dir", str(self.dir / "data"), "--json", str(self.file)]
        for name, value in self.options.items():
            args += [f"--{name}", str(value)]
        self.log = open(self.dir / "dev.log", "ab")
        self.process = subprocess.Popen(args, stdout=self.log, stderr=self.log)
        end = time.time() + timeout
        while not self.file.exists():
            if self.process.poll() is not None or time.time() > end:
                raise AssertionError("hayloft dev did not start:\n" + (self.dir / "dev.log").read_text()[-4000:])
            time.sleep(0.1)
        self.info = json.loads(self.file.read_text())
        return self

    def stop(self, timeout=30):
        for process in self.restarted:
            process.kill()
            process.wait()
        self.restarted = []
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(timeout)
            self.process = None
            self.log.close()
            return code

    @property
    def s3(self):
        return self.info["s3"]

    def processes(self, role):
        return [p for p in self.info["processes"] if p["role"] == role]

    def client(self, gateway=0, **config):
        options = {"retries": {"max_attempts": 1}, "s3": {"addressing_style": "path"}, **config}
        return boto3.client(
            "s3",
            endpoint_url=self.s3["endpoints"][gateway],
            region_name=self.s3["region"],
            aws_access_key_id=self.s3["access_key"],
            aws_secret_access_key=self.s3["secret_key"],
            config=Config(**options),
        )

    def env(self):
        """Environment for command line clients."""
        # A custom CA bundle is nothing for a plain HTTP endpoint, and some clients refuse to start with one.
        inherited = {k: v for k, v in os.environ.items() if k != "AWS_CA_BUNDLE"}
        return {
            **inherited,
            "AWS_ACCESS_KEY_ID": self.s3["access_key"],
            "AWS_SECRET_ACCESS_KEY": self.s3["secret_key"],
            "AWS_DEFAULT_REGION": self.s3["region"],
            "AWS_ENDPOINT_URL": self.s3["endpoints"][0],
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def kill(self, process):
        os.kill(process["pid"], signal.SIGKILL)

    def restart(self, process):
        """Starts a killed daemon again, from its configuration file."""
        binary = BIN / f"hayloft-{process['role']}"
        log = open(self.dir / f"{process['name']}.restarted.log", "ab")
        child = subprocess.Popen(
            [str(binary), "--config", self.info["config"][process["name"]]], stdout=log, stderr=log
        )
        self.restarted.append(child)
        process["pid"] = child.pid

    def ctl(self, *args, check=True):
        """Runs the `hayloft` command line with --json and returns what it printed."""
        result = subprocess.run(
            [str(BIN / "hayloft"), "--cluster", str(self.file), "--json", *args], capture_output=True, text=True
        )
        if check:
            assert result.returncode == 0, result.stderr
            return json.loads(result.stdout) if result.stdout.strip() else None
        return result


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The cluster that most tests share; they leave it healthy."""
    given = os.environ.get("HAYLOFT_CLUSTER")
    if given:
        shared = Cluster(pathlib.Path(given).parent)
        shared.file = pathlib.Path(given)
        shared.info = json.loads(shared.file.read_text())
        yield shared
        return
    shared = Cluster(tmp_path_factory.mktemp("cluster")).start()
    yield shared
    assert shared.stop() == 0, "hayloft dev did not stop cleanly on SIGTERM"


@pytest.fixture
def own_cluster(tmp_path):
    """A cluster of its own for a test that breaks it."""
    own = Cluster(tmp_path)
    yield own
    own.stop()


@pytest.fixture
def s3(cluster):
    return cluster.client()


@pytest.fixture
def bucket(cluster, s3):
    """A fresh bucket."""
    name = f"test-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def tree(tmp_path):
    """A directory of files with awkward names and sizes."""
    top = tmp_path / "tree"
    sizes = [0, 1, 4095, 65536, 1 << 20, (1 << 20) + 1, 3_333_333]
    names = ["empty", "plain.txt", "with space", "per%cent", "plus+plus", "déjà vu 🦀.bin", "deep/er/and/deeper/file"]
    for name, size in zip(names, sizes, strict=True):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    for i in range(60):
        path = top / f"many/{i % 7}/{i:03}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(i * 997))
    return top


def contents(top):
    """Every file below `top` with its bytes."""
    top = pathlib.Path(top)
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def run(args, env, **kwargs):
    """Runs a client; its output is shown if it fails."""
    result = subprocess.run([str(a) for a in args], env=env, capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, f"{args}\n{result.stdout}\n{result.stderr}"
    return result.stdout
