"""Pictures for the trained models: the example's photo, prepared as each model expects.

Random noise won't do for accuracy: a detector answers it with probabilities that are all but zero,
where engines clamp differently and a relative error means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from bench.zoo import fill
from bench.zoo.packages import PACKAGE_MODELS, PackageModel

PHOTO = Path(__file__).parents[2] / "examples" / "ocr" / "photo.jpg"
WHOLE = (0.0, 0.0, 1.0, 1.0)
LINES = ((0.29, 0.51, 0.83, 0.59), (0.36, 0.28, 0.79, 0.37), (0.3, 0.69, 0.82, 0.77))
"""Some lines of text: left, top, right, bottom as shares of the photo."""
LINE_HEIGHT = 64
"""Models of pictures up to this high read single lines."""


def feeds(
    name: str,
    model: onnx.ModelProto,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Feeds that mean something to the model `name`: the photo for trained ones, else random."""
    known = PACKAGE_MODELS.get(name)
    inputs = {value.name for value in model.graph.input}
    given = {key: shape for key, shape in (shapes or {}).items() if key in inputs}
    full = {**typical_shapes(name, batch), **given}
    if known is None:
        return fill.example_inputs(model, batch, seed=batch, shapes=full)
    return {key: pictures(known, shape) for key, shape in full.items()}


def typical_shapes(name: str, batch: int) -> dict[str, tuple[int, ...]]:
    """The input shapes of a package's model at this batch; none for the zoo's own models."""
    if name not in PACKAGE_MODELS:
        return {}
    return {key: (batch, *shape[1:]) for key, shape in PACKAGE_MODELS[name].shapes}


def pictures(model: PackageModel, shape: Sequence[int]) -> np.ndarray:
    """float32 (batch, 3, height, width): lines of the photo, or all of it and it turned over."""
    from PIL import Image

    batch, channels, height, width = shape
    boxes = LINES if height <= LINE_HEIGHT else (WHOLE,)
    result = np.empty((batch, channels, height, width), np.float32)
    with Image.open(PHOTO) as photo:
        for number in range(batch):
            left, top, right, bottom = boxes[number % len(boxes)]
            area = (left * photo.width, top * photo.height, right * photo.width,
                    bottom * photo.height)  # fmt: skip
            part = photo.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, area)
            pixels = np.asarray(part, np.float32) / 255
            turned = pixels[::-1] if number % 2 and boxes != LINES else pixels
            result[number] = ((turned - model.mean) / model.deviation).transpose(2, 0, 1)
    return result
