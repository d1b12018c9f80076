"""Trained models that come inside pip packages, found without importing the packages.

Install them without their dependencies: pip install --no-deps -r requirements-models.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import onnx

from bench.zoo import fill


@dataclass(frozen=True, slots=True)
class PackageModel:
    """`file`, somewhere in the pip package `package`; `shapes`: typical ones, by input name. Pixels
    go in as (value - mean) / deviation, with values from 0 to 1."""

    package: str
    file: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    mean: float = 0.5
    deviation: float = 0.5


PACKAGE_MODELS = {
    "ppocr_det": PackageModel(
        "rapidocr-onnxruntime",
        "ch_PP-OCRv4_det_infer.onnx",
        (("x", (1, 3, 640, 640)),),
        mean=0.45,
        deviation=0.225,
    ),
    "ppocr_rec": PackageModel(
        "rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx", (("x", (1, 3, 48, 320)),)
    ),
    "ppocr_cls": PackageModel(
        "rapidocr-onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx", (("x", (1, 3, 48, 192)),)
    ),
    "nudenet_320n": PackageModel(
        "nudenet", "320n.onnx", (("images", (1, 3, 320, 320)),), mean=0, deviation=1
    ),
}


def find(name: str) -> Path:
    """The file of a package's model. LookupError says what to install."""
    model = PACKAGE_MODELS[name]
    try:
        listed = files(model.package) or []
    except PackageNotFoundError:
        listed = []
    for entry in listed:
        if entry.name == model.file:
            return Path(str(entry.locate()))
    raise LookupError(
        f"{name} is {model.file} of the pip package {model.package}, which is not installed: "
        "pip install --no-deps -r requirements-models.txt"
    )


def load(name: str) -> onnx.ModelProto:
    """A model by the zoo's or a package's name, or by path. LookupError lists the names."""
    if name in PACKAGE_MODELS:
        return onnx.load(str(find(name)))
    if name in fill.names():
        return fill.filled(name)
    if Path(name).is_file():
        return onnx.load(name)
    known = ", ".join([*fill.names(), *PACKAGE_MODELS])
    raise LookupError(f"no model {name!r}: give the path of an ONNX file or one of {known}")
