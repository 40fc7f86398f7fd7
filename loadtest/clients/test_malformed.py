"""Requests that no client should send: the right S3 error, and nothing stored.

They are made by hand over a socket, since the SDKs refuse to send most of them.
"""

import datetime
import hashlib
import hmac
import os
import re
import socket
import urllib.parse

import pytest


def sign(cluster, method, path, query="", headers=None, payload=b"", when=None, region=None, secret=None, digest=None):
    """The headers of a SigV4 request (AWS General Reference, signature version 4)."""
    s3 = cluster.s3
    when = when or datetime.datetime.now(datetime.UTC)
    region = region or s3["region"]
    stamp, day = when.strftime("%Y%m%dT%H%M%SZ"), when.strftime("%Y%m%d")
    host = urllib.parse.urlparse(s3["endpoints"][0]).netloc
    digest = digest or hashlib.sha256(payload).hexdigest()
    signed = {"host": host, "x-amz-date": stamp, "x-amz-content-sha256": digest, **(headers or {})}
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        [method, path, query, "".join(f"{k}:{signed[k]}\n" for k in sorted(signed)), names, digest]
    )
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = ("AWS4" + (secret or s3["secret_key"])).encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={s3['access_key']}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return signed


def send(cluster, method, target, headers, body=b"", close_early=False):
    """Sends raw bytes; returns the status and the answer's text."""
    url = urllib.parse.urlparse(cluster.s3["endpoints"][0])
    with socket.create_connection((url.hostname, url.port), timeout=30) as sock:
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        sock.sendall(head.encode("latin-1") + b"connection: close\r\n\r\n" + body)
        if close_early:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    match = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return (int(match[1]) if match else 0), answer.decode("utf-8", "replace")


def stored(s3, bucket):
    return s3.list_objects_v2(Bucket=bucket)["KeyCount"]


def put(cluster, bucket, body=b"data", length=None, close_early=False, headers=None, **signing):
    path = f"/{bucket}/k"
    signed = sign(cluster, "PUT", path, payload=body, headers=headers, **signing)
    signed["content-length"] = str(len(body) if length is None else length)
    return send(cluster, "PUT", path, signed, body, close_early)


def test_a_good_request_made_by_hand_works(cluster, s3, bucket):
    assert put(cluster, bucket)[0] == 200
    assert stored(s3, bucket) == 1


def test_signatures_that_are_wrong_in_every_way(cluster, s3, bucket):
    now = datetime.datetime.now(datetime.UTC)
    for expected, status, kwargs in [
        ("SignatureDoesNotMatch", 403, {"secret": "wrong"}),
        ("RequestTimeTooSkewed", 403, {"when": now - datetime.timedelta(hours=1)}),
        ("RequestTimeTooSkewed", 403, {"when": now + datetime.timedelta(hours=1)}),
        ("AuthorizationHeaderMalformed", 400, {"region": "nowhere"}),
        ("XAmzContentSHA256Mismatch", 400, {"digest": hashlib.sha256(b"other").hexdigest()}),
    ]:
        got, text = put(cluster, bucket, **kwargs)
        assert (got, f"<Code>{expected}</Code>" in text) == (status, True), (expected, text)
    assert cluster.s3["region"] in put(cluster, bucket, region="nowhere")[1]
    path = f"/{bucket}/k"
    for authorization in ("", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=x, SignedHeaders=, Signature=", "Basic eDp5"):
        headers = {**sign(cluster, "GET", path), "authorization": authorization}
        status, text = send(cluster, "GET", path, headers)
        assert status in (400, 403) and "<Code>" in text, text
    headers = sign(cluster, "GET", path)
    headers["authorization"] = headers["authorization"].replace(cluster.s3["access_key"], "HK" + "0" * 24)
    assert "<Code>InvalidAccessKeyId</Code>" in send(cluster, "GET", path, headers)[1]
    assert put(cluster, bucket, region="us-east-1")[0] == 200
    s3.delete_object(Bucket=bucket, Key="k")
    assert stored(s3, bucket) == 0


def test_bodies_that_end_early_or_do_not_match(cluster, s3, bucket):
    status, text = put(cluster, bucket, body=b"short", length=100, close_early=True)
    assert status in (0, 400), text
    big = os.urandom(3 << 20)
    put(cluster, bucket, body=big, length=len(big) + 10, close_early=True)
    status, text = put(cluster, bucket, headers={"content-md5": "AAAA"})
    assert (status, "InvalidDigest" in text) == (400, True), text
    status, text = put(cluster, bucket, headers={"x-amz-checksum-crc32": "AAAAAA=="})
    assert (status, "BadDigest" in text) == (400, True), text
    path = f"/{bucket}/k"
    headers = sign(cluster, "PUT", path, payload=b"")
    status, text = send(cluster, "PUT", path, headers)
    assert status in (200, 411), text
    if status == 200:
        s3.delete_object(Bucket=bucket, Key="k")
    headers = {**sign(cluster, "PUT", path, digest="UNSIGNED-PAYLOAD"), "content-length": str(6 << 30)}
    status, text = send(cluster, "PUT", path, headers, b"x", close_early=True)
    assert "EntityTooLarge" in text, text
    assert stored(s3, bucket) == 0


def chunked(cluster, bucket, chunks, tamper=None, declared=None):
    """A STREAMING-AWS4-HMAC-SHA256-PAYLOAD upload; `tamper` edits the encoded body."""
    size = sum(map(len, chunks))
    headers = {"x-amz-decoded-content-length": str(size if declared is None else declared), "content-encoding": "aws-chunked"}
    path = f"/{bucket}/k"
    signed = sign(cluster, "PUT", path, headers=headers, digest="STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
    stamp = signed["x-amz-date"]
    scope = f"{stamp[:8]}/{cluster.s3['region']}/s3/aws4_request"
    key = ("AWS4" + cluster.s3["secret_key"]).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    previous = signed["authorization"].rsplit("=", 1)[1]
    empty, body = hashlib.sha256(b"").hexdigest(), b""
    for chunk in [*chunks, b""]:
        text = "\n".join(
            ["AWS4-HMAC-SHA256-PAYLOAD", stamp, scope, previous, empty, hashlib.sha256(chunk).hexdigest()]
        )
        previous = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        body += f"{len(chunk):x};chunk-signature={previous}\r\n".encode() + chunk + b"\r\n"
    body = tamper(body) if tamper else body
    signed["content-length"] = str(len(body))
    return send(cluster, "PUT", path, signed, body)


def test_signed_chunks(cluster, s3, bucket):
    chunks = [os.urandom(65536), os.urandom(65536), os.urandom(100)]
    status, text = chunked(cluster, bucket, chunks)
    assert status == 200, text
    answer = s3.get_object(Bucket=bucket, Key="k")
    assert answer["Body"].read() == b"".join(chunks)
    assert "ContentEncoding" not in answer
    s3.delete_object(Bucket=bucket, Key="k")

    def flip(body):
        return body[:70000] + bytes([body[70000] ^ 1]) + body[70001:]

    for tamper in (flip, lambda b: b[:-20], lambda b: b.replace(b"chunk-signature", b"chunk-signaturf", 1), lambda b: b"zz" + b):
        status, text = chunked(cluster, bucket, chunks, tamper)
        assert status in (400, 403) and "<Code>" in text, text
    status, text = chunked(cluster, bucket, chunks, declared=5)
    assert status == 400, text
    assert stored(s3, bucket) == 0


def test_headers_and_targets_beyond_reason(cluster, bucket):
    path = f"/{bucket}/k"
    status, _ = send(cluster, "GET", path, {**sign(cluster, "GET", path), "x-huge": "x" * 200_000})
    assert status in (400, 431)
    long = f"/{bucket}/{'k' * 2000}"
    assert "KeyTooLongError" in send(cluster, "PUT", long, {**sign(cluster, "PUT", long), "content-length": "0"})[1]
    headers = {f"x-amz-meta-{i}": "v" * 100 for i in range(30)}
    status, text = put(cluster, bucket, headers=headers)
    assert (status, "MetadataTooLarge" in text) == (400, True), text
    for target in ("/%zz", f"/{bucket}/%c3%28"):
        status, text = send(cluster, "GET", target, sign(cluster, "GET", target))
        assert 400 <= status < 500, text
    assert send(cluster, "BREW", path, sign(cluster, "BREW", path))[0] in (400, 405, 501)


@pytest.mark.parametrize(
    "xml", [b"", b"<", b"<Delete>", b"<Delete/>", b"not xml", b"<CompleteMultipartUpload/>", b"<Delete><Object/></Delete>",
            b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><Delete><Object><Key>&a;</Key></Object></Delete>'],
)
def test_bad_xml(cluster, bucket, xml):
    import base64

    path = f"/{bucket}"
    headers = {"content-md5": base64.b64encode(hashlib.md5(xml).digest()).decode()}
    signed = sign(cluster, "POST", path, query="delete=", headers=headers, payload=xml)
    signed["content-length"] = str(len(xml))
    status, text = send(cluster, "POST", f"{path}?delete", signed, xml)
    assert (status, "MalformedXML" in text) == (400, True), text


def test_unknown_sub_resources_are_not_implemented(cluster, bucket):
    for method, query in [
        ("GET", "accelerate"), ("PUT", "acl"), ("GET", "analytics"), ("GET", "inventory"), ("PUT", "logging"), ("GET", "metrics"),
        ("PUT", "notification"), ("GET", "object-lock"), ("PUT", "policy"), ("PUT", "replication"), ("PUT", "requestPayment"),
        ("PUT", "tagging"), ("PUT", "versioning"), ("GET", "versions"), ("POST", "select"),
    ]:
        path = f"/{bucket}"
        signed = sign(cluster, method, path, query=f"{query}=")
        status, text = send(cluster, method, f"{path}?{query}", {**signed, "content-length": "0"})
        assert (status, "<Code>NotImplemented</Code>" in text) == (501, True), (method, query, text)


def test_a_refusal_comes_before_the_body(cluster):
    """`Expect: 100-continue`: a request that can't succeed never asks for its body."""
    path = "/no-such-bucket-here/k"
    headers = sign(cluster, "PUT", path, digest="UNSIGNED-PAYLOAD")
    status, text = send(cluster, "PUT", path, {**headers, "content-length": str(1 << 30), "expect": "100-continue"})
    assert status == 404 and "NoSuchBucket" in text and "100 Continue" not in text
