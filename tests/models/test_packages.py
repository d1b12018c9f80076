"""Trained models out of pip packages, fed with a photo, one plan for every size, against ONNX
Runtime."""

from __future__ import annotations

import pytest
from bench import zoo
from tests.models.agreement import assert_agrees

BAR = 2e-5
SIZES = {
    "ppocr_cls": [(3, 48, 192)],
    "ppocr_rec": [(3, 48, 160), (3, 48, 320), (3, 48, 481)],
    "ppocr_det": [(3, 640, 640), (3, 480, 736)],
    "nudenet_320n": [(3, 320, 320), (3, 256, 416)],
}
"""Without the batch."""


@pytest.mark.parametrize(
    "name",
    ["ppocr_cls", *(pytest.param(n, marks=pytest.mark.slow) for n in SIZES if n != "ppocr_cls")],
)
def test_package_models(name: str) -> None:
    try:
        zoo.find(name)
    except LookupError as error:
        pytest.skip(str(error))
    model = zoo.load(name)
    source = model.graph.input[0].name
    feeds = [
        zoo.feeds(name, model, batch, {source: (batch, *shape)})
        for shape in SIZES[name]
        for batch in (1, 3)
    ]
    assert_agrees(model, feeds, BAR)
