from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors_folders import safetensors_bytes

from malmen_cli.checkpoint import digest_bytes, read_header, read_tensor
from malmen_cli.errors import UnsafeFile

TENSORS = {
    "a": ("F32", (2, 3), bytes(range(24))),
    "none": ("F16", (0, 5), b""),
    "b": ("BF16", (3,), b"abcdef"),
    "scalar": ("I64", (), b"12345678"),
}
SOUND = safetensors_bytes(TENSORS, {"format": "pt"})


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, shape: list[object] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    array = np.frombuffer(b"0123456789abcdef", dtype=np.float32).reshape(2, 2)
    path.write_bytes(safetensors.numpy.save({"x": array}, {"k": "v"}))
    slot = read_header(path).slots["x"]
    assert (slot.dtype, slot.shape, slot.length) == ("F32", (2, 2), 16)
    assert read_tensor(path, slot) == b"0123456789abcdef"


def test_slots_are_the_tensors_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SOUND)
    header = read_header(path)
    assert {name: (slot.dtype, slot.shape, read_tensor(path, slot)) for name, slot in header.slots.items()} == TENSORS
    assert header.digest == digest_bytes(SOUND[: header.header_size])
    assert header.file_size == len(SOUND)


DAMAGED = {
    "empty": b"",
    "shorter than its length": b"\x08\0\0",
    "header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "header over the limit": (1 << 63).to_bytes(8, "little") + b"{}",
    "not JSON": file_of(b"{nonsense"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "a list": file_of([]),
    "space before the object": file_of(b" {}"),
    "deeply nested": file_of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a very long number": file_of(b'{"a":' + b"1" * 10_000 + b"}"),
    "a key twice": file_of(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    "a field twice": file_of(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "an unknown field": file_of({"a": entry(0, 0) | {"more": 1}}),
    "an unknown dtype": file_of({"a": entry(0, 1, dtype="U7")}, b"x"),
    "a dtype that is a list": file_of({"a": entry(0, 1) | {"dtype": []}}, b"x"),
    "a negative size": file_of({"a": entry(0, 1, [-1, -1])}, b"x"),
    "a size that is true": file_of({"a": entry(0, 1, [True])}, b"x"),
    "a fractional size": file_of({"a": entry(0, 1, [1.0])}, b"x"),
    "a huge shape": file_of({"a": entry(0, 1, [10**30] * 1000)}, b"x"),
    "a shape of another length": file_of({"a": entry(0, 4, [3])}, b"abcd"),
    "offsets backwards": file_of({"a": entry(1, 0, [0])}, b"x"),
    "offsets past the end": file_of({"a": entry(0, 9)}, b"x"),
    "a hole": file_of({"a": entry(0, 1), "b": entry(2, 3)}, b"xyz"),
    "an overlap": file_of({"a": entry(0, 2), "b": entry(1, 3)}, b"xyz"),
    "bytes after the last tensor": file_of({"a": entry(0, 1)}, b"xy"),
    "a surrogate in a name": file_of(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "metadata that is not text": file_of({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(DAMAGED[damage])
    with pytest.raises(UnsafeFile):
        read_header(tmp_path / "model.safetensors")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(SOUND)
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "loop", "pipe", "absent", "."):
        with pytest.raises(UnsafeFile) as caught:
            read_header(tmp_path / name)
        assert caught.value.remedy


def test_a_file_cut_short_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SOUND)
    slot = read_header(path).slots["scalar"]
    path.write_bytes(SOUND[:-1])
    with pytest.raises(UnsafeFile):
        read_tensor(path, slot)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_whatever_the_bytes_only_unsafe_file_escapes(tmp_path: Path, data: st.DataObject) -> None:
    """And what is accepted, the library reads the same way."""
    blob = bytearray(SOUND)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(blob) - 1))
        blob[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path / "model.safetensors"
    path.write_bytes(blob)
    try:
        slots = read_header(path).slots
    except UnsafeFile:
        return
    found = {name: (slot.shape, read_tensor(path, slot)) for name, slot in slots.items()}
    assert found == {name: (tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(bytes(blob))}
