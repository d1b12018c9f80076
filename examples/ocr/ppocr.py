"""PP-OCRv4 around its three models: find the text, turn it upright, read it.

The models come from the pip package rapidocr-onnxruntime, whose code is not used. What surrounds
them is OpenCV (geometry), pyclipper (growing a box) and shapely (its area). Whoever runs the models
is called through one shape: `engine({"x": array}) -> {name: array}`.

Pictures are uint8 [height, width, 3] in BGR, as OpenCV reads them; boxes are float32 [4, 2], the
corners (x, y) in pixels, clockwise from the top left.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pyclipper
from shapely.geometry import Polygon

Picture = npt.NDArray[np.uint8]
Tensor = npt.NDArray[np.float32]
Engine = Callable[[dict[str, Any]], Mapping[str, Any]]

MODELS = {
    "detection": "ch_PP-OCRv4_det_infer.onnx",
    "classification": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "recognition": "ch_PP-OCRv4_rec_infer.onnx",
}

DETECTION_SIDE = 960  # the longer side of the picture that detection sees, in pixels
MASK_THRESHOLD = 0.3  # a pixel above this belongs to text
BOX_THRESHOLD = 0.5  # the mean probability inside a box worth keeping
UNCLIP_RATIO = 1.6  # detection is trained on shrunken boxes; this grows them back
MIN_BOX_SIDE = 3.0  # pixels of detection's output
FLIP_THRESHOLD = 0.9  # how sure classification must be to turn a line by 180 degrees
LINE_HEIGHT = 48  # both line models read lines of this height
LINE_WIDTHS = (16, 2048)  # the narrowest and the widest line that recognition is given
CLASSIFIER_WIDTH = 192


@dataclass(frozen=True)
class Line:
    """One recognised line: its text, the mean probability of its characters, and its box."""

    text: str
    score: float
    box: Tensor


def find_models() -> dict[str, Path]:
    """Where pip put the three models: part of the pipeline -> path of its ONNX file."""
    try:
        files = importlib.metadata.files("rapidocr-onnxruntime") or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            "The OCR models are missing. Install them with\n"
            "  pip install --no-deps -r requirements-models.txt"
        ) from None
    by_name = {file.name: Path(str(file.locate())) for file in files if file.suffix == ".onnx"}
    return {part: by_name[name] for part, name in MODELS.items()}


def read_alphabet(model: Path) -> list[str]:
    """The character of every class of the recognition model; class 0 is CTC's blank."""
    properties = onnx.load(model).metadata_props
    characters = next(entry.value for entry in properties if entry.key == "character")
    return ["", *characters.split("\n"), " "]


def read_lines(picture: Picture, engines: Mapping[str, Engine], alphabet: list[str]) -> list[Line]:
    """Every line of text on the picture, from top to bottom."""
    lines = []
    for box in find_boxes(picture, engines["detection"]):
        crop = upright(cut_out(picture, box), engines["classification"])
        (scores,) = engines["recognition"]({"x": line_tensor(crop)}).values()
        text, score = decode_ctc(scores[0], alphabet)
        if text.strip():
            lines.append(Line(text.strip(), score, box))
    return lines


def find_boxes(picture: Picture, detection: Engine) -> list[Tensor]:
    """The boxes of the lines of text, from top to bottom."""
    tensor = detection_tensor(picture)
    (probability,) = detection({"x": tensor}).values()
    height, width = picture.shape[:2]
    scale = np.array([width / tensor.shape[3], height / tensor.shape[2]], np.float32)
    return reading_order([box * scale for box in decode_boxes(probability[0, 0])])


def reading_order(boxes: list[Tensor]) -> list[Tensor]:
    """The boxes from top to bottom, and those of one row from left to right."""
    rows: list[list[Tensor]] = []
    for box in sorted(boxes, key=_middle):
        below = _middle(box) - _middle(rows[-1][-1]) if rows else np.inf
        if below > 0.5 * (box[3, 1] - box[0, 1]):
            rows.append([])
        rows[-1].append(box)
    return [box for row in rows for box in sorted(row, key=lambda box: float(box[0, 0]))]


def detection_tensor(picture: Picture, longer_side: int = DETECTION_SIDE) -> Tensor:
    """What detection reads: [1, 3, h, w] in -1..1, both sides multiples of 32."""
    height, width = picture.shape[:2]
    scale = longer_side / max(height, width)
    size = [max(32, round(side * scale / 32) * 32) for side in (width, height)]
    return _normalized(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def decode_boxes(probability: Tensor) -> list[Tensor]:
    """Boxes from detection's map [h, w] of the probability that a pixel belongs to text.

    The second half of "Real-time Scene Text Detection with Differentiable Binarization"
    (https://arxiv.org/abs/1911.08947): threshold, outline, keep the sure ones, grow.
    """
    mask = (probability > MASK_THRESHOLD).astype(np.uint8)
    mask = cv2.dilate(mask, np.ones((2, 2), np.uint8))
    outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for outline in outlines:
        shrunken = cv2.minAreaRect(outline)
        if min(shrunken[1]) < MIN_BOX_SIDE:
            continue
        if _mean_inside(probability, cv2.boxPoints(shrunken)) < BOX_THRESHOLD:
            continue
        grown = cv2.minAreaRect(_unclip(cv2.boxPoints(shrunken)))
        boxes.append(_clockwise(cv2.boxPoints(grown)))
    return boxes


def cut_out(picture: Picture, box: Tensor) -> Picture:
    """The picture inside a box, straightened; a line written downwards is laid on its side."""
    top, right, bottom, left = (np.linalg.norm(box - np.roll(box, -1, 0), axis=1)).tolist()
    width, height = max(1, round(max(top, bottom))), max(1, round(max(left, right)))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(box.astype(np.float32), target)
    crop = cv2.warpPerspective(
        picture, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(np.rot90(crop) if height >= 1.5 * width else crop, np.uint8)


def upright(crop: Picture, classification: Engine) -> Picture:
    """The line, turned by 180 degrees if classification is sure it stands on its head."""
    (scores,) = classification({"x": classifier_tensor(crop)}).values()
    return np.asarray(np.rot90(crop, 2) if scores[0, 1] > FLIP_THRESHOLD else crop, np.uint8)


def line_tensor(crop: Picture) -> Tensor:
    """What recognition reads: [1, 3, 48, w] in -1..1, as wide as the line needs."""
    height, width = crop.shape[:2]
    line_width = int(np.clip(round(width * LINE_HEIGHT / height), *LINE_WIDTHS))
    return _normalized(cv2.resize(crop, (line_width, LINE_HEIGHT)))


def classifier_tensor(crop: Picture) -> Tensor:
    """What classification reads: [1, 3, 48, 192], the line's beginning, padded with zeros."""
    line = line_tensor(crop)[..., :CLASSIFIER_WIDTH]
    return np.pad(line, [(0, 0)] * 3 + [(0, CLASSIFIER_WIDTH - line.shape[3])])


def decode_ctc(scores: Tensor, alphabet: list[str]) -> tuple[str, float]:
    """The text of one line and its mean probability, from [steps, classes].

    Greedy CTC: the best class of every step, without repetitions and blanks.
    """
    best = scores.argmax(axis=1)
    starts = np.diff(best, prepend=-1) != 0
    kept = starts & (best != 0)
    text = "".join(alphabet[index] for index in best[kept])
    return text, float(scores.max(axis=1)[kept].mean()) if text else 0.0


def draw_lines(picture: Picture, lines: list[Line]) -> Picture:
    """The picture with a box around every line and what it says beside, on a strip at the right."""
    drawn = picture.copy()
    height = picture.shape[0]
    strip = np.full((height, round(0.62 * height), 3), 250, np.uint8)
    for row, line in enumerate(lines):
        y = round((row + 0.8) * height / len(lines))
        cv2.polylines(drawn, [line.box.astype(np.int32)], True, (60, 200, 60), 3, cv2.LINE_AA)
        label = f"{row + 1}  {line.text}"
        cv2.putText(strip, label, (16, y), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (40, 40, 40), 2)
        corner = line.box[0].astype(int) - (26, 4)
        cv2.putText(
            drawn, str(row + 1), corner.tolist(), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (60, 200, 60), 2
        )
    return np.hstack([drawn, strip])


def _middle(box: Tensor) -> float:
    """The height on the picture of a box's middle."""
    return float(box[:, 1].mean())


def _normalized(picture: Picture) -> Tensor:
    """uint8 [h, w, 3] in 0..255 to float32 [1, 3, h, w] in -1..1."""
    return np.ascontiguousarray((picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])


def _mean_inside(probability: Tensor, box: Tensor) -> float:
    """The mean of the map inside a box."""
    inside = np.zeros(probability.shape, np.uint8)
    cv2.fillPoly(inside, [box.astype(np.int32)], 1)
    return float(cv2.mean(probability, inside)[0])


def _unclip(box: Tensor) -> Tensor:
    """The outline of a box grown by area * ratio / perimeter on all sides."""
    polygon = Polygon(box)
    offset = pyclipper.PyclipperOffset()
    offset.AddPath(box.tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    return np.array(offset.Execute(polygon.area * UNCLIP_RATIO / polygon.length)[0], np.float32)


def _clockwise(box: Tensor) -> Tensor:
    """The corners from the top left on, clockwise as seen on the screen."""
    left, right = np.split(box[np.argsort(box[:, 0])], 2)
    top_left, bottom_left = left[np.argsort(left[:, 1])]
    top_right, bottom_right = right[np.argsort(right[:, 1])]
    return np.array([top_left, top_right, bottom_right, bottom_left], np.float32)
