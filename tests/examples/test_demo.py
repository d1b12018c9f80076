"""The demo's photo is read right, by ONNX Runtime and by engines of our own."""

from __future__ import annotations

import io
from collections.abc import Mapping

import cv2
import pytest
from rich.console import Console

import demo
import ppocr

EXPECTED = [
    "Harbour & Vine",
    "COFFEE ROASTERS",
    "OPEN EVERY DAY",
    "Monday to Friday",
    "7:30-18:00",
    "Saturday, Sunday 9:00-16:30",
    "fresh bread, soup & cake",
    "24 Quay Street",
    "Tel.555-0142",
    "Please ring the bell for deliveries",
]


def read(engines: Mapping[str, ppocr.Engine]) -> list[str]:
    """The lines on the photo."""
    alphabet = ppocr.read_alphabet(ppocr.find_models()["recognition"])
    photo = cv2.imread(str(demo.PHOTO))
    assert photo is not None
    lines = ppocr.read_lines(photo, engines, alphabet)
    assert ppocr.draw_lines(photo, lines).shape[0] == photo.shape[0]
    assert min(line.score for line in lines) > 0.8
    return [line.text for line in lines]


def test_the_photo_is_read_by_onnx_runtime() -> None:
    """So a wrong line below is an engine's fault, not the decoding's."""
    models = ppocr.find_models()
    assert read({part: demo.onnx_runtime(path, 1) for part, path in models.items()}) == EXPECTED


@pytest.mark.slow
def test_the_photo_is_read_by_our_engines() -> None:
    """What `make demo` does, without its timing."""
    console = Console(file=io.StringIO())
    engines, seconds = demo.build_engines(ppocr.find_models(), console)
    assert read(engines) == EXPECTED
    assert seconds.keys() == engines.keys()
