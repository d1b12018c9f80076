"""Plan files: what is written is read back; whatever is wrong with a file is an error that says
so.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginesmith.errors import PlanError
from enginesmith.plan import file
from enginesmith.plan.plan import Buffer, Constraint, Plan, Step, SymbolRange, TensorSpec

PLAN = Plan(
    name="model ü",
    target="cpu:avx2",
    precision="fp32",
    symbols=(SymbolRange("batch", 0, 1, None), SymbolRange("h", 32, 640, 1280)),
    inputs=(TensorSpec("x", "float32", ("batch", 3, "h", 640)),),
    outputs=(TensorSpec("y", "int64", ("batch", "(h + 1)//2")), TensorSpec("s", "float32", ())),
    exprs=("batch*3", 7, "max(h, 64)"),
    buffers=(
        Buffer("input", "batch*h*7680"),
        Buffer("weights", 1000),
        Buffer("arena", "batch*64 + 4", first=0, last=3, slack=4096),
        Buffer("output", "batch*8", 0),
        Buffer("output", 4, 1),
    ),
    steps=(
        Step("conv", "3x3", "direct(a=1)", "k_1", ("Conv_0", "Relu_1"), "batch*h", 12,
             (("direct(a=1)", 1.5e-3), ("winograd()", 2e-3))),
    ),
    scratch="h*4",
    constraints=(Constraint("h//2*2", "h", ("Reshape_3",)),),
    notes=("nothing fell back",),
    producer="tests",
    metadata=(("author", "me"),),
    sources={"k_1": "void k_1(void) {}\n"},
    code=b"\x7fELF and so on",
    ptx=b"compressed",
    graph=b"a graph",
    weights=np.random.default_rng(0).bytes(1000),
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved PLAN."""
    path = tmp_path / "a.plan"
    file.save(PLAN, path)
    return path


def refused(path: Path, *words: str) -> None:
    """AssertionError unless loading fails with a PlanError of these words, the file and a
    remedy.
    """
    with pytest.raises(PlanError) as caught:
        file.load(path)
    text = str(caught.value)
    assert str(path) in text
    for word in words:
        assert re.search(word, text), text
    assert re.search("build the model again|upgrade", text), text


def test_round_trip(path: Path) -> None:
    """All fields are as before; the weights are the mapped file, aligned."""
    loaded = file.load(path)
    assert replace(loaded, weights=bytes(loaded.weights)) == PLAN
    assert isinstance(loaded.weights, memoryview)
    assert loaded.weights.readonly
    assert np.frombuffer(loaded.weights, np.uint8).ctypes.data % 64 == 0


@pytest.mark.parametrize("size", [0, 1, 63, 64, 16 << 20, (32 << 20) + 5])
def test_sizes_of_weights(tmp_path: Path, size: int) -> None:
    """None, little, and several pieces of the tree hash."""
    plan = replace(PLAN, weights=np.random.default_rng(size).bytes(size))
    file.save(plan, tmp_path / "a.plan")
    assert bytes(file.load(tmp_path / "a.plan").weights) == plan.weights


def test_same_plan_same_bytes(path: Path, tmp_path: Path) -> None:
    """Also when it was loaded, and whatever the order of its sources."""
    again = tmp_path / "b.plan"
    file.save(file.load(path), again)
    assert again.read_bytes() == path.read_bytes()
    first = replace(PLAN, sources={"a": "1", "b": "2"})
    second = replace(PLAN, sources={"b": "2", "a": "1"})
    file.save(first, path)
    file.save(second, again)
    assert again.read_bytes() == path.read_bytes()


def test_is_a_safetensors_file(path: Path) -> None:
    """Another reader of the format finds the tensors (format:
    github.com/huggingface/safetensors).
    """
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 64 == 0
    assert data[8:9] == b"{"
    metadata = header.pop("__metadata__")
    assert all(isinstance(value, str) for value in metadata.values())
    at = 0
    for info in header.values():
        begin, end = info["data_offsets"]
        assert info["dtype"] == "U8"
        assert info["shape"] == [end - begin]
        assert begin == at
        at = end
    assert at == len(data) - 8 - length


def test_save_replaces(path: Path) -> None:
    """A loaded plan goes on with the old file's weights."""
    loaded = file.load(path)
    file.save(replace(PLAN, weights=b"other" * 99), path)
    assert bytes(loaded.weights) == PLAN.weights
    assert bytes(file.load(path).weights) == b"other" * 99
    assert os.listdir(path.parent) == ["a.plan"]


def test_is_as_readable_as_other_files(path: Path) -> None:
    """No private temporary file's mode."""
    other = path.with_name("other")
    other.write_text("x")
    assert path.stat().st_mode == other.stat().st_mode


# --- files that are no plans -----------------------------------------------------------------


def test_absent(tmp_path: Path) -> None:
    """The system's reason, and the path."""
    with pytest.raises(PlanError, match=r"can't read the plan .*nowhere.plan: No such file"):
        file.load(tmp_path / "nowhere.plan")
    with pytest.raises(PlanError, match=r"can't read the plan .*: Is a directory"):
        file.load(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"1234567", bytes(8), b"\x08\x08\x12\x07pytorch" * 50, b"\xff" * 100,
        struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 20) + b'{"__metadata__": {}}', struct.pack("<Q", 6) + b'["\xff"]',
        struct.pack("<Q", 200_000) + b"[" * 200_000, b"PK\x03\x04" * 1000,
    ],
)  # fmt: skip
def test_no_plan_at_all(tmp_path: Path, data: bytes) -> None:
    """Other files, short ones, and JSON that isn't ours."""
    path = tmp_path / "a.plan"
    path.write_bytes(data)
    refused(path, "not a plan|truncated|damaged")


@pytest.mark.parametrize("length", [100 << 20, 1 << 40, 2**63, 2**64 - 1])
def test_absurd_header(path: Path, length: int) -> None:
    """A header length beyond the file, the limit, or any memory."""
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(path, "truncated|its header claims")


def test_truncated_anywhere(path: Path) -> None:
    """Cut after any byte."""
    data = path.read_bytes()
    for size in sorted({*range(0, 200, 7), *range(0, len(data), 61), len(data) - 1}):
        path.write_bytes(data[:size])
        refused(path, "truncated|not a plan")


def test_longer_than_it_should_be(path: Path) -> None:
    """Something appended."""
    path.write_bytes(path.read_bytes() + b"\0")
    refused(path, "longer than its header says")


def test_bit_flips_anywhere(path: Path) -> None:
    """One bit (which one differs) of every third byte: nothing goes unseen."""
    data = path.read_bytes()
    for at in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at * 5 % 8)
        path.write_bytes(flipped)
        refused(path)


@given(st.data())
def test_random_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random bytes put in, cut out or overwritten: an error or the same plan, never anything
    else.
    """
    path = tmp_path_factory.mktemp("damage") / "a.plan"
    file.save(PLAN, path)
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(0, 40))
    damaged = good[:at] + data.draw(st.binary(max_size=40)) + good[at + cut :]
    path.write_bytes(damaged)
    if damaged == good:
        file.load(path)
    else:
        refused(path)


def test_names_what_is_damaged(path: Path) -> None:
    """The part whose hash differs."""
    data = path.read_bytes()
    for content, part in (
        (PLAN.code, "code"),
        (PLAN.weights[500:], "weights"),
        (b"k_1(", "sources"),
    ):
        at = data.rindex(bytes(content))
        path.write_bytes(data[:at] + b"?" + data[at + 1 :])
        refused(path, f"the hash of its {part} differs")


# --- headers with right hashes and wrong content ---------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the header (whole, plan's fields) and make its hash right again."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"]
    plan = json.loads(metadata["plan"])
    change(header, plan)
    metadata["plan"] = json.dumps(plan)
    metadata["header"] = "0" * 64
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    digest = hashlib.sha256(text).hexdigest().encode()
    text = text.replace(b"0" * 64, digest, 1)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_newer_version(path: Path) -> None:
    """Says to upgrade, whatever else the future changes."""

    def change(header: dict[str, Any], plan: dict[str, Any]) -> None:
        header["__metadata__"]["version"] = str(file.FORMAT_VERSION + 1)
        plan["novelty"] = 1

    rewrite(path, change)
    refused(path, r"made by a newer Enginesmith \(plan format 6, this one reads 5\); upgrade with")


def test_older_version(path: Path) -> None:
    """Says to build again."""
    rewrite(path, lambda header, _: header["__metadata__"].update(version="0"))
    refused(path, "made by an older Enginesmith .*; build the model again")


@pytest.mark.parametrize("version", [1, None, "", "-1", "1.5", "x", "²", [], "9" * 50_000])
def test_strange_version(path: Path, version: object) -> None:
    """Neither older nor newer."""
    rewrite(path, lambda header, _: header["__metadata__"].update(version=version))
    refused(path, "version|newer")


def test_rewrite_itself_makes_valid_files(path: Path) -> None:
    """The tests below fail for the reason they mean."""
    rewrite(path, lambda header, plan: None)
    assert file.load(path).name == PLAN.name


VALUES = [None, 1, -1, 1.5, True, "x", "", [], [1], [[]], ["a", "b"], {}, {"a": 1}, [{}], "h +"]


@pytest.mark.parametrize("field", sorted({*file.KINDS} - {"code", "weights", "sources"}))
def test_wrong_types(path: Path, field: str) -> None:
    """Any JSON value in any field: a PlanError that names it, or a valid plan."""
    original = path.read_bytes()
    refusals = []
    for value in VALUES:
        path.write_bytes(original)
        rewrite(path, lambda _, plan, new={field: value}: plan.update(new))  # type: ignore[misc]
        try:
            file.load(path)
        except PlanError as error:
            refusals.append(str(error))
    assert len(refusals) >= 5
    assert all("damaged" in text and "build the model again" in text for text in refusals)


def test_missing_and_unknown_fields(path: Path) -> None:
    """Fields of the plan and of its parts."""
    original = path.read_bytes()
    changes: list[Callable[[dict[str, Any], dict[str, Any]], object]] = [
        lambda _, plan: plan.pop("steps"),
        lambda _, plan: plan.update(weights="x"),
        lambda _, plan: plan["buffers"][0].pop("kind"),
        lambda _, plan: plan["steps"][0].update(more=1),
        lambda header, _: header.pop("code"),
        lambda header, _: header.update(more={}),
        lambda header, _: header["__metadata__"].pop("weights"),
        lambda header, _: header["__metadata__"].update(weights=1),
        lambda header, _: header["weights"].update(data_offsets=[1, 1000]),
        lambda header, _: header["weights"].update(data_offsets=[0, 10**30]),
        lambda header, _: header["weights"].update(data_offsets=[0, "1000"]),
        lambda header, _: header["weights"].update(data_offsets=[0, -5]),
        lambda header, _: header.update(weights=None),
    ]
    for change in changes:
        path.write_bytes(original)
        rewrite(path, change)  # type: ignore[arg-type]
        refused(path, "damaged|truncated")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["inputs"].append(p["inputs"][0]), "inputs .* have the same name"),
        (lambda p: p["inputs"][0].update(dtype="object"), "input 'x' has the unknown type"),
        (lambda p: p["inputs"][0].update(shape=["batch", "k"]), r"unknown symbols \['k'\]"),
        (lambda p: p["symbols"][0].update(min=5), "range of symbol 'batch' is empty"),
        (lambda p: p["symbols"][1].update(max=7), "range of symbol 'h' is empty"),
        (lambda p: p.update(exprs=["__import__('os').abort()"]), "damaged size expression"),
        (lambda p: p["constraints"][0].update(left="k"), r"a constraint uses unknown symbols"),
        (lambda p: p["buffers"][0].update(kind="gpu"), "buffer 0 is 'gpu' number 0"),
        (lambda p: p["buffers"][3].update(index=2), "buffer 3 is 'output' number 2"),
        (lambda p: p["buffers"][0].update(index=-1), "buffer 0 is 'input' number -1"),
        (lambda p: p["buffers"][2].update(first=4), "buffer 2 lives from 4 to 3"),
        (lambda p: p["buffers"][2].update(slack=-1), "buffer 2 has a slack of -1"),
        (lambda p: p["buffers"][1].update(slack=64), "buffer 1 has a slack of 64"),
    ],
)
def test_inconsistent(path: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    """Right types, wrong meaning."""
    rewrite(path, lambda _, plan: change(plan) and None)
    refused(path, words)


def test_nothing_is_executed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading never evaluates, unpickles or dlopens, even of a valid file."""
    import ctypes

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("executed something")

    monkeypatch.setattr(ctypes, "CDLL", forbidden)
    monkeypatch.setattr(builtins, "eval", forbidden)
    assert file.load(path).code == PLAN.code


# --- saving that fails -----------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    """Names the path, the reason and the remedy."""
    with pytest.raises(PlanError, match=r"can't save .*a.plan: No such file .*; nothing was ch"):
        file.save(PLAN, tmp_path / "nowhere" / "a.plan")


def test_no_permission(path: Path) -> None:
    """The old file stays. Run in a child that is not root, which may write anywhere."""
    before = path.read_bytes()
    path.parent.chmod(0o555)
    try:
        script = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from dataclasses import replace\n"
            "from enginesmith.errors import PlanError\n"
            "from enginesmith.plan import file\n"
            "plan = file.load(sys.argv[1])\n"
            "if os.getuid() == 0: os.setgid(65534), os.setuid(65534)\n"
            "try: file.save(replace(plan, name='new'), Path('a.plan'))\n"
            "except PlanError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], cwd=path.parent, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
    finally:
        path.parent.chmod(0o755)
    words = r"can't save the plan as a.plan: Permission denied; .*writable"
    assert re.match(words, done.stdout), done
    assert path.read_bytes() == before


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """At any moment: the old file is intact and nothing is left behind."""
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        monkeypatch.setattr(file, "_write", full)
    else:
        monkeypatch.setattr(file.os, call, full)
    with pytest.raises(PlanError, match=r"No space left on device; nothing was changed.*MB free"):
        file.save(replace(PLAN, name="new"), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["a.plan"]


def test_a_real_full_disk(tmp_path: Path) -> None:
    """/dev/full refuses every write, through the real code path."""
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("wb") as full:
        file._write(full, [b"x" * 100_000])
