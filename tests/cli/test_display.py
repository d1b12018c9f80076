"""Quantities as text, and progress where there is no terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from enginesmith.cli import display
from enginesmith.cli.options import Duration, parse_dims, parse_symbolic_dims


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.5, "2.5 s"), (0.00123, "1.23 ms"), (4.5e-7, "450 ns"), (123.4, "123 s"), (0, "0 ns"),
     (0.9996, "1000 ms"), (1.5e-5, "15 us")],
)  # fmt: skip
def test_seconds(value: float, text: str) -> None:
    assert display.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (5 << 40, "5120 GiB")],
)
def test_size(value: int, text: str) -> None:
    assert display.size(value) == text


def test_shapes() -> None:
    assert display.shape_text((1, 3, "h", "(w + 1)//2")) == "1x3xhx((w + 1)//2)"
    assert display.shape_text(()) == "scalar"
    assert parse_dims("1x3,4") == (1, 3, 4)
    assert parse_dims("scalar") == ()
    assert parse_symbolic_dims("batch,3") == ("batch", 3)
    with pytest.raises(ValueError, match="no shape"):
        parse_symbolic_dims("batch")


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("2m", 120), ("500ms", 0.5), ("1.5", 1.5), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


def feed(listener: Any) -> None:
    for stage, done, total in (("import", 0, 0), ("tune", 0, 2), ("tune", 2, 2), ("save", 1, 1)):
        listener(SimpleNamespace(stage=stage, done=done, total=total, detail="a [b]"))


def test_progress_without_a_terminal_is_a_line_per_stage(capsys: pytest.CaptureFixture) -> None:
    with display.progress_bars() as listener:
        feed(listener)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" done")[0] for line in lines] == ["import: 0", "tune: 2", "save: 1"]


def test_progress_on_a_terminal_draws_bars(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with display.progress_bars() as listener:
        feed(listener)
    assert "tune" in capsys.readouterr().err
