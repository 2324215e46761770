"""Bad Parquet files and tar shards: cut, of other columns and types, with paths that climb out of their folder."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.fuzz.attempt import Attempt, mutated
from benchmarks.fuzz.pictures import encoded
from ldm.data import ParquetImages, WebDatasetImages

UP = "../../../../../../etc/hostname"


def _picture() -> bytes:
    return encoded(Image.new("RGB", (8, 8), "red"), "PNG")


def _cells(**other: Any) -> dict[str, Any]:
    """Returns the columns of two pictures, with some of them replaced."""
    image = {"bytes": _picture(), "path": None}
    return {"image": [image, image], "name": ["a", "b"], "category": ["x", "y"], "split": ["train", "val"], **other}


def _tables() -> dict[str, dict[str, Any]]:
    nested: Any = [[[["a"]]], [[["b"]]]]
    return {
        "no column image": {"picture": [1, 2]},
        "no columns": {},
        "no rows": {"image": pa.array([], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))},
        "pictures that are numbers": _cells(image=[1, 2]),
        "pictures that are texts": _cells(image=["a", "b"]),
        "pictures that are lists": _cells(image=[[1], [2]]),
        "pictures that are nothing": _cells(image=pa.nulls(2)),
        "pictures that are other structs": _cells(image=[{"a": 1}, {"a": 2}]),
        "bytes that are numbers": _cells(image=[{"bytes": 1, "path": None}] * 2),
        "bytes that are lists": _cells(image=[{"bytes": [1, 2], "path": None}] * 2),
        "empty bytes": _cells(image=[{"bytes": b"", "path": None}] * 2),
        "no picture": _cells(image=[{"bytes": b"none", "path": None}] * 2),
        "a path that climbs out": _cells(image=[{"bytes": None, "path": UP}] * 2),
        "an absolute path": _cells(image=[{"bytes": None, "path": "/etc/hostname"}] * 2),
        "a path with NUL": _cells(image=[{"bytes": None, "path": "a\0b"}] * 2),
        "a path that is a folder": _cells(image=[{"bytes": None, "path": "."}] * 2),
        "a path that is a number": _cells(image=[{"bytes": None, "path": 7}] * 2),
        "a long path": _cells(image=[{"bytes": None, "path": "a" * 5000}] * 2),
        "names that are numbers": _cells(name=[1, 2]),
        "names that are nothing": _cells(name=pa.nulls(2)),
        "classes that are lists": _cells(category=[["a"], ["b", "c"]]),
        "classes that are structs": _cells(category=[{"a": 1}, {"a": 2}]),
        "classes that are nested": _cells(category=nested),
        "classes below 0": _cells(category=[-1, -2]),
        "classes beyond all numbers": _cells(category=[2**62, 1]),
        "classes that are floats": _cells(category=[0.5, float("nan")]),
        "classes that are bytes": _cells(category=[b"\xff", b"\xfe"]),
        "classes that are dates": _cells(category=pa.array([0, 10**9], pa.timestamp("s"))),
        "a split of numbers": _cells(split=[1, 2]),
        "a split of structs": _cells(split=[{"a": 1}, {"a": 2}]),
    }


def parquet(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to read a bad Parquet file."""
    known = _tables()
    options: dict[str, Any] = rng.choice(
        ({}, {}, {"split": "train"}, {"where": {"category": "x"}}, {"where": {"no": 1}})
    )
    file = Path("bad.parquet")
    if number < len(known):
        what, cells = list(known.items())[number]
        pq.write_table(pa.table(cells), file)
    else:
        table = pa.table(_cells())
        names = {"info": {"features": {"category": {"_type": "ClassLabel", "names": rng.choice((7, ["a"], None))}}}}
        if rng.random() < 0.3:
            table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        pq.write_table(table, file)
        data, what = mutated(file.read_bytes(), rng)
        for _ in range(rng.randrange(3)):
            data, further = mutated(data, rng)
            what += f", {further}"
        file.write_bytes(data)

    def read() -> None:
        images = ParquetImages(str(file), 8, max_broken=0, **options)
        for index in range(len(images)):
            images[index]

    return Attempt(f"{what} {options or ''}", read, ("bad.parquet", "hostname"))


def _member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def _shard(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    for info, data in members:
        stream.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        stream.write(data + bytes(-len(data) % 512))
    return stream.getvalue() + bytes(1024)


def _shards() -> dict[str, bytes]:
    image = _member("0001.png", _picture())
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(image[0], io.BytesIO(image[1]))
    return {
        "empty": b"",
        "zeros": bytes(10240),
        "a text": b"hello",
        "no picture": _shard(_member("0001.txt", b"a")),
        "a member that climbs out": _shard(_member("../../../../../../tmp/x.png", _picture())),
        "an absolute member": _shard(_member("/etc/x.png", _picture())),
        "a link to a file": _shard(_member("0001.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), image),
        "a hard link": _shard(_member("0001.png", type=tarfile.LNKTYPE, linkname="/etc/passwd")),
        "a device": _shard(_member("0001.png", type=tarfile.CHRTYPE)),
        "a huge declared size": _shard(_member("0001.png", size=2**40)),
        "a huge class": _shard(image, _member("0001.cls", size=2**33)),
        "a negative size": _shard(image).replace(f"{len(image[1]):011o}".encode(), b"-0000000001", 1),
        "a class that is no text": _shard(image, _member("0001.cls", b"\xff\xfe")),
        "a class beyond all numbers": _shard(image, _member("0001.cls", b"9" * 30)),
        "a class of 100,000 digits": _shard(image, _member("0001.cls", b"9" * 100_000)),
        "a class below 0": _shard(image, _member("0001.cls", b"-5")),
        "a caption that is no text": _shard(image, _member("0001.txt", b"\xff\xfe")),
        "JSON that is cut": _shard(image, _member("0001.json", b'{"a": ')),
        "JSON that is a list": _shard(image, _member("0001.json", b"[1]")),
        "deep JSON": _shard(image, _member("0001.json", b"[" * 100_000)),
        "JSON of a huge number": _shard(image, _member("0001.json", b'{"class": ' + b"9" * 5000 + b"}")),
        "JSON of other types": _shard(image, _member("0001.json", b'{"caption": {"a": 1}, "class": [1], "url": 5}')),
        "gzip": stream.getvalue(),
        "an endless chain of names": _shard(_member("././@LongLink", b"x" * 100, type=b"L"), image),
        "a PAX header that lies": _shard(_member("x", b"99 path=a\n", type=b"x"), image),
        "a PAX size": _shard(_member("x", b"17 size=99999999\n", type=b"x"), image),
        "a sparse file": _shard(_member("0001.png", _picture(), type=tarfile.GNUTYPE_SPARSE)),
        "a name that is no text": _shard(_member("\udcff.png", _picture())),
        "no name": _shard(_member("", _picture())),
        "a name of dots": _shard(_member("...png", _picture()), _member(".png", _picture())),
    }


def tar(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to read a bad tar shard."""
    known = _shards()
    if number < len(known):
        what, data = list(known.items())[number]
    else:
        data = _shard(*(_member(f"{n}.{end}", content) for n in range(3) for end, content in _parts(n)))
        data, what = mutated(data, rng)
        for _ in range(rng.randrange(3)):
            data, further = mutated(data, rng)
            what += f", {further}"
    Path("bad.tar").write_bytes(data)
    pattern = rng.choice(("bad.tar", "bad.tar", ".", "b*.tar")) if number else "bad-{0..99999999999}.tar"

    def read() -> None:
        images = WebDatasetImages(pattern, 8, max_broken=0)
        for index in range(len(images)):
            images[index]

    return Attempt(what if number else "a range of 10^11 shards", read, ("bad.tar", "bad-"))


def _parts(number: int) -> list[tuple[str, bytes]]:
    known = {"caption": f"picture {number}", "license": "CC0", "class": number}
    return [("png", _picture()), ("json", json.dumps(known).encode()), ("cls", str(number).encode())]
