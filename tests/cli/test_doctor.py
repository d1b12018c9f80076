"""What the doctor finds on sick machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from enginesmith.cli import doctor
from enginesmith.cli.app import app
from enginesmith.errors import BuildError
from enginesmith.kernels import sources


def test_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: None)
    found = {f.what: f for f in doctor.versions()}
    assert found["ziglang"].level == "error"
    assert "pip install" in found["ziglang"].remedy
    assert found["openvino"].level == "ok"


def test_old_processor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "host_isas", lambda: ())
    first = next(doctor.processor())
    assert first.level == "error"
    assert "AVX2" in first.remedy


def test_tight_quota_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cpu_quota", lambda root: 0.5)
    found = {f.what: f for f in doctor.processor()}
    assert found["threads"].level == "warning"
    assert "--cpus" in found["threads"].remedy


def test_unwritable_cache_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is where the folder should be: nobody can write there, not even root."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENGINESMITH_CACHE", str(tmp_path / "file" / "cache"))
    (found,) = doctor.cache()
    assert found.level == "error"
    assert "ENGINESMITH_CACHE" in found.remedy


def test_full_disk_is_a_warning(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    (found,) = doctor.cache()
    assert found.level == "warning"
    assert str(fresh_cache) in found.text


def test_findings_become_table_json_and_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def sick() -> Iterator[doctor.Finding]:
        yield doctor.Finding("thing", "warning", "is [odd]", "oil it")

    def broken() -> Iterator[doctor.Finding]:
        raise BuildError("no compiler")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (sick,))
    found = CliRunner().invoke(app, ["doctor"])
    assert found.exit_code == 0
    assert "is [odd]" in found.stdout
    assert "-> oil it" in found.stdout
    monkeypatch.setattr(doctor, "CHECKS", (sick, broken))
    found = CliRunner().invoke(app, ["doctor", "--json"])
    assert found.exit_code == 1
    assert json.loads(found.stdout)[1] == {
        "what": "broken", "level": "error", "text": "no compiler", "remedy": "",
    }  # fmt: skip


def test_compiler_and_speed_are_seen(artifact_cache: Path) -> None:
    found = {f.what: f for f in doctor.toolchain()}
    assert "zig" in found["compiler"].text
    assert "GFLOP/s" in found["speed"].text


def test_sources_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't there is no fault, and says how to get it."""
    monkeypatch.setitem(sources._MISSING, "triton", lambda: "triton is not installed")
    monkeypatch.setitem(sources._MISSING, "cublaslt", lambda: None)
    found = {f.what: f for f in doctor.sources()}
    assert set(found) == {"triton", "cublaslt", "cudnn"}
    assert all(f.level == "ok" for f in found.values())
    assert "pip install 'enginesmith[triton]'" in found["triton"].text
    assert found["cublaslt"].text == "offers GPU kernels"
