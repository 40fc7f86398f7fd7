"""The S3 interface through boto3: what the SDK's users do, and the corners they run into."""

import base64
import concurrent.futures
import hashlib
import io
import os
import urllib.error
import urllib.request
import zlib

import pytest
from botocore.exceptions import ClientError

MIB = 1 << 20


def code(error):
    return error.value.response["Error"]["Code"]


def get(s3, bucket, key, **kwargs):
    return s3.get_object(Bucket=bucket, Key=key, **kwargs)["Body"].read()


def keys(s3, bucket, **kwargs):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, **kwargs)
    found, prefixes = [], []
    for page in pages:
        found += [o["Key"] for o in page.get("Contents", [])]
        prefixes += [p["Prefix"] for p in page.get("CommonPrefixes", [])]
    return found, prefixes


@pytest.mark.parametrize("size", [0, 1, 16 << 10, (16 << 10) + 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 17])
def test_objects_of_every_size_come_back(s3, bucket, size):
    data = os.urandom(size)
    put = s3.put_object(Bucket=bucket, Key="o", Body=data)
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    head = s3.head_object(Bucket=bucket, Key="o")
    assert head["ContentLength"] == size and head["ETag"] == put["ETag"]
    assert get(s3, bucket, "o") == data


def test_headers_and_metadata_round_trip(s3, bucket):
    headers = {
        "ContentType": "text/x-test; charset=utf-8",
        "ContentDisposition": 'attachment; filename="a.txt"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de-DE",
        "CacheControl": "max-age=60",
    }
    s3.put_object(
        Bucket=bucket, Key="h", Body=b"x", Metadata={"one": "1", "two-words": "a b"}, **headers,
        Expires="Wed, 21 Oct 2037 07:28:00 GMT",
    )
    for answer in (s3.head_object(Bucket=bucket, Key="h"), s3.get_object(Bucket=bucket, Key="h")):
        assert {k: answer[k] for k in headers} == headers
        assert answer["Metadata"] == {"one": "1", "two-words": "a b"}
        assert answer["ExpiresString"] == "Wed, 21 Oct 2037 07:28:00 GMT"
    shown = s3.get_object(Bucket=bucket, Key="h", ResponseContentType="image/png", ResponseCacheControl="no-store")
    assert shown["ContentType"] == "image/png" and shown["CacheControl"] == "no-store"
    s3.copy_object(Bucket=bucket, Key="h2", CopySource={"Bucket": bucket, "Key": "h"})
    assert s3.head_object(Bucket=bucket, Key="h2")["Metadata"]["one"] == "1"
    s3.copy_object(
        Bucket=bucket, Key="h", CopySource={"Bucket": bucket, "Key": "h"}, MetadataDirective="REPLACE",
        Metadata={"new": "yes"}, ContentType="a/b",
    )
    head = s3.head_object(Bucket=bucket, Key="h")
    assert head["Metadata"] == {"new": "yes"} and head["ContentType"] == "a/b"


NAMES = [
    "a", "a/", "a/b", "../up", "/lead", "//", "x//y", "%", "%2F", "a+b", "a b", " lead", "trail ", "🦀", "é", "e\u0301",
    ".", "..", "./x", "?q=1&r", "#h", "a\\b", "tab\tkey", "new\nline", "\x01ctl", "\x7f", "<&>\"'", "~", "!*'()", "k" * 1024,
]


def test_unusual_names_live_side_by_side(s3, bucket):
    for i, name in enumerate(NAMES):
        s3.put_object(Bucket=bucket, Key=name, Body=str(i).encode())
    for i, name in enumerate(NAMES):
        assert get(s3, bucket, name) == str(i).encode(), repr(name)
    found, _ = keys(s3, bucket, EncodingType="url")
    import urllib.parse

    assert sorted(urllib.parse.unquote_plus(k) for k in found) == sorted(NAMES)
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": n} for n in NAMES if n.isprintable()], "Quiet": True})
    for name in NAMES:
        s3.delete_object(Bucket=bucket, Key=name)
    assert keys(s3, bucket) == ([], [])
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="k" * 1025, Body=b"")
    assert code(error) == "KeyTooLongError"


def test_ten_thousand_keys_list_exactly(cluster, bucket):
    s3 = cluster.client(max_pool_connections=32)
    expected = sorted(f"{i % 10}/{i % 100:02}/{i:05}" for i in range(10_000))
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda k: s3.put_object(Bucket=bucket, Key=k, Body=b"x"), expected))
    assert keys(s3, bucket) == (expected, [])
    assert keys(s3, bucket, Delimiter="/") == ([], [f"{i}/" for i in range(10)])
    assert keys(s3, bucket, Prefix="3/", Delimiter="/") == ([], [f"3/{i}3/" for i in range(10)])
    some = keys(s3, bucket, Prefix="3/13/", Delimiter="/", PaginationConfig={"PageSize": 7})
    assert some == ([k for k in expected if k.startswith("3/13/")], [])
    after = s3.list_objects_v2(Bucket=bucket, StartAfter="9/99/09989")
    assert [o["Key"] for o in after["Contents"]] == [k for k in expected if k > "9/99/09989"]
    first = s3.list_objects(Bucket=bucket, MaxKeys=3, Delimiter="/", Prefix="0/0")
    assert [p["Prefix"] for p in first["CommonPrefixes"]] == ["0/00/"]
    page = s3.list_objects(Bucket=bucket, MaxKeys=3)
    assert page["IsTruncated"] and [o["Key"] for o in page["Contents"]] == expected[:3]
    page = s3.list_objects(Bucket=bucket, MaxKeys=3, Marker=expected[2])
    assert [o["Key"] for o in page["Contents"]] == expected[3:6]


def test_ranges(s3, bucket):
    data = os.urandom(3 * MIB + 5)
    s3.put_object(Bucket=bucket, Key="r", Body=data)
    for spec, expected in [
        ("bytes=0-0", data[:1]), ("bytes=5-", data[5:]), ("bytes=-7", data[-7:]),
        (f"bytes={MIB - 1}-{MIB}", data[MIB - 1 : MIB + 1]), ("bytes=0-99999999", data), (f"bytes=-{9 * MIB}", data),
    ]:
        answer = s3.get_object(Bucket=bucket, Key="r", Range=spec)
        assert answer["Body"].read() == expected, spec
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert answer["ContentRange"].endswith(f"/{len(data)}")
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="r", Range=f"bytes={len(data)}-")
    assert code(error) == "InvalidRange"
    assert get(s3, bucket, "r", Range="lines=1-2") == data


def test_read_conditions(s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="c", Body=b"x")["ETag"]
    assert get(s3, bucket, "c", IfMatch=etag) == b"x"
    for condition, status in [({"IfNoneMatch": etag}, 304), ({"IfMatch": '"no"'}, 412)]:
        with pytest.raises(ClientError) as error:
            s3.get_object(Bucket=bucket, Key="c", **condition)
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    modified = s3.head_object(Bucket=bucket, Key="c")["LastModified"]
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="c", IfModifiedSince=modified)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 304


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_verified_kept_and_returned(s3, bucket, algorithm):
    pytest.importorskip("awscrt") if algorithm in ("CRC32C", "CRC64NVME") else None
    data = os.urandom(MIB + 3)
    field = f"Checksum{algorithm}"
    put = s3.put_object(Bucket=bucket, Key="c", Body=io.BytesIO(data), ChecksumAlgorithm=algorithm)
    head = s3.head_object(Bucket=bucket, Key="c", ChecksumMode="ENABLED")
    assert put[field] == head[field]
    if algorithm == "SHA256":
        assert head[field] == base64.b64encode(hashlib.sha256(data).digest()).decode()
    if algorithm == "CRC32":
        assert head[field] == base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="c", Body=b"other", **{field: put[field]})
    assert code(error) == "BadDigest"
    assert get(s3, bucket, "c", ChecksumMode="ENABLED") == data


def test_a_wrong_md5_stores_nothing(s3, bucket):
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="m", Body=b"data", ContentMD5=wrong)
    assert code(error) == "BadDigest"
    with pytest.raises(ClientError) as error:
        s3.head_object(Bucket=bucket, Key="m")
    assert code(error) == "404"


def test_multipart_of_100_mib_with_a_part_sent_twice(s3, bucket):
    upload = s3.create_multipart_upload(
        Bucket=bucket, Key="mp", ContentType="x/y", Metadata={"m": "1"}
    )["UploadId"]
    parts = [os.urandom(10 * MIB) for _ in range(10)]

    def send(number, body):
        answer = s3.upload_part(Bucket=bucket, Key="mp", UploadId=upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    send(3, os.urandom(6 * MIB))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: send(n + 1, parts[n]), range(10)))
    listed = s3.list_parts(Bucket=bucket, Key="mp", UploadId=upload, MaxParts=4)
    assert [p["PartNumber"] for p in listed["Parts"]] == [1, 2, 3, 4] and listed["IsTruncated"]
    assert [u["Key"] for u in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["mp"]
    assert keys(s3, bucket) == ([], [])
    with pytest.raises(ClientError) as error:
        s3.complete_multipart_upload(
            Bucket=bucket, Key="mp", UploadId=upload, MultipartUpload={"Parts": done[::-1]}
        )
    assert code(error) == "InvalidPartOrder"
    s3.complete_multipart_upload(Bucket=bucket, Key="mp", UploadId=upload, MultipartUpload={"Parts": done})
    whole = b"".join(parts)
    etag = hashlib.md5(b"".join(hashlib.md5(p).digest() for p in parts)).hexdigest()
    head = s3.head_object(Bucket=bucket, Key="mp")
    assert head["ETag"] == f'"{etag}-10"' and head["ContentType"] == "x/y" and head["Metadata"] == {"m": "1"}
    assert get(s3, bucket, "mp") == whole
    assert get(s3, bucket, "mp", Range=f"bytes={10 * MIB - 3}-{10 * MIB + 3}") == whole[10 * MIB - 3 : 10 * MIB + 4]
    third = s3.get_object(Bucket=bucket, Key="mp", PartNumber=3)
    assert third["Body"].read() == parts[2] and third["PartsCount"] == 10
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_multipart_refuses_small_parts_unknown_parts_and_aborts(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="mp")["UploadId"]
    etags = [
        s3.upload_part(Bucket=bucket, Key="mp", UploadId=upload, PartNumber=n, Body=b"small")["ETag"] for n in (1, 2)
    ]

    def complete(parts):
        return s3.complete_multipart_upload(
            Bucket=bucket, Key="mp", UploadId=upload,
            MultipartUpload={"Parts": [{"PartNumber": n, "ETag": e} for n, e in parts]},
        )

    for parts, expected in [
        ([(1, etags[0]), (2, etags[1])], "EntityTooSmall"), ([(1, '"bad"')], "InvalidPart"), ([(7, etags[0])], "InvalidPart"),
    ]:
        with pytest.raises(ClientError) as error:
            complete(parts)
        assert code(error) == expected
    for number in (0, 10_001):
        with pytest.raises(ClientError) as error:
            s3.upload_part(Bucket=bucket, Key="mp", UploadId=upload, PartNumber=number, Body=b"x")
        assert code(error) == "InvalidArgument"
    s3.abort_multipart_upload(Bucket=bucket, Key="mp", UploadId=upload)
    with pytest.raises(ClientError) as error:
        s3.upload_part(Bucket=bucket, Key="mp", UploadId=upload, PartNumber=1, Body=b"x")
    assert code(error) == "NoSuchUpload"


def test_copies_whole_and_in_parts(s3, bucket):
    data = os.urandom(12 * MIB + 7)
    s3.put_object(Bucket=bucket, Key="src +%é", Body=data)
    source = {"Bucket": bucket, "Key": "src +%é"}
    s3.copy_object(Bucket=bucket, Key="dst", CopySource=source)
    assert get(s3, bucket, "dst") == data
    with pytest.raises(ClientError) as error:
        s3.copy_object(Bucket=bucket, Key="dst", CopySource={"Bucket": bucket, "Key": "dst"})
    assert code(error) == "InvalidRequest"
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    ranges = [(0, 6 * MIB - 1), (6 * MIB + 3, len(data) - 1)]
    done = []
    for number, (first, last) in enumerate(ranges, 1):
        answer = s3.upload_part_copy(
            Bucket=bucket, Key="parts", UploadId=upload, PartNumber=number, CopySource=source,
            CopySourceRange=f"bytes={first}-{last}",
        )
        done.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
    s3.complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload={"Parts": done})
    assert get(s3, bucket, "parts") == b"".join(data[f : l + 1] for f, l in ranges)
    s3.delete_object(Bucket=bucket, Key="src +%é")
    assert get(s3, bucket, "dst") == data


def test_presigned_urls_upload_and_download(cluster, s3, bucket):
    put = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "p/ü x"}, ExpiresIn=60)
    urllib.request.urlopen(urllib.request.Request(put, data=b"hello", method="PUT"))
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "p/ü x"}, ExpiresIn=60)
    assert urllib.request.urlopen(url).read() == b"hello"
    for bad in (url[:-1] + ("0" if url[-1] != "0" else "1"), url.replace("Expires=60", "Expires=61")):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(bad)
        assert error.value.code == 403
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{cluster.s3['endpoints'][0]}/{bucket}/p")
    assert error.value.code == 403


def test_buckets(cluster, s3):
    s3.create_bucket(Bucket="bucket-one")
    with pytest.raises(ClientError) as error:
        s3.create_bucket(Bucket="bucket-one", CreateBucketConfiguration={"LocationConstraint": cluster.s3["region"]})
    assert code(error) == "BucketAlreadyOwnedByYou"
    assert "bucket-one" in [b["Name"] for b in s3.list_buckets()["Buckets"]]
    assert s3.get_bucket_location(Bucket="bucket-one")["LocationConstraint"] == cluster.s3["region"]
    s3.head_bucket(Bucket="bucket-one")
    s3.put_object(Bucket="bucket-one", Key="k", Body=b"")
    with pytest.raises(ClientError) as error:
        s3.delete_bucket(Bucket="bucket-one")
    assert code(error) == "BucketNotEmpty"
    s3.delete_object(Bucket="bucket-one", Key="k")
    s3.delete_bucket(Bucket="bucket-one")
    with pytest.raises(ClientError) as error:
        s3.head_bucket(Bucket="bucket-one")
    assert code(error) == "404"
    for bad in ("ab", "Upper", "a_b", "-a-", "192.168.0.1"):
        with pytest.raises(ClientError) as error:
            s3.meta.events.unregister("before-parameter-build.s3", None)
            s3._make_api_call("CreateBucket", {"Bucket": bad})
        assert code(error) == "InvalidBucketName", bad


def test_every_gateway_sees_an_acknowledged_write(cluster, bucket):
    one, two = cluster.client(0), cluster.client(1)
    for i in range(30):
        one.put_object(Bucket=bucket, Key="k", Body=str(i).encode())
        assert get(two, bucket, "k") == str(i).encode()
        two.delete_object(Bucket=bucket, Key="k")
        with pytest.raises(ClientError) as error:
            one.get_object(Bucket=bucket, Key="k")
        assert code(error) == "NoSuchKey"


def test_delete_objects_reports_each_key(s3, bucket):
    for i in range(20):
        s3.put_object(Bucket=bucket, Key=f"d{i}", Body=b"x")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"d{i}"} for i in range(25)]})
    assert {d["Key"] for d in answer["Deleted"]} == {f"d{i}" for i in range(25)}
    assert keys(s3, bucket) == ([], [])


@pytest.mark.parametrize(
    "call",
    [
        lambda s3, b: s3.put_bucket_versioning(Bucket=b, VersioningConfiguration={"Status": "Enabled"}),
        lambda s3, b: s3.put_object(Bucket=b, Key="k", Body=b"", Tagging="a=b"),
        lambda s3, b: s3.put_object(Bucket=b, Key="k", Body=b"", ACL="public-read"),
        lambda s3, b: s3.put_object(Bucket=b, Key="k", Body=b"", ServerSideEncryption="AES256"),
        lambda s3, b: s3.put_object(Bucket=b, Key="k", Body=b"", IfNoneMatch="*"),
        lambda s3, b: s3.put_object(Bucket=b, Key="k", Body=b"", StorageClass="GLACIER"),
        lambda s3, b: s3.get_bucket_policy(Bucket=b),
        lambda s3, b: s3.put_bucket_website(
            Bucket=b, WebsiteConfiguration={"IndexDocument": {"Suffix": "i"}}
        ),
        lambda s3, b: s3.get_object_torrent(Bucket=b, Key="k"),
    ],
)
def test_what_is_not_there_is_refused_not_ignored(s3, bucket, call):
    with pytest.raises(ClientError) as error:
        call(s3, bucket)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501, code(error)
    assert keys(s3, bucket) == ([], [])
