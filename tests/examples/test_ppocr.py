"""The decoding around the OCR example's models, on inputs made by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import ppocr


def test_ctc_drops_repetitions_and_blanks() -> None:
    """Steps a a blank a b b read as "aab"."""
    alphabet = ["", "a", "b", " "]
    steps = [1, 1, 0, 1, 2, 2]
    scores = np.full((6, 4), 0.1, np.float32)
    scores[range(6), steps] = [0.7, 0.9, 0.8, 0.5, 0.6, 0.9]
    text, score = ppocr.decode_ctc(scores, alphabet)
    assert text == "aab"
    assert score == pytest.approx((0.7 + 0.5 + 0.6) / 3)


def test_ctc_of_blanks_is_empty() -> None:
    """Nothing read is no text and no score."""
    assert ppocr.decode_ctc(np.eye(3, dtype=np.float32)[[0, 0]], ["", "a", " "]) == ("", 0.0)


def test_boxes_are_grown_around_what_is_bright() -> None:
    """A bar of probability becomes one box that reaches beyond it on all sides."""
    probability = np.zeros((64, 160), np.float32)
    probability[20:32, 30:110] = 0.9
    probability[50:52, 10:12] = 0.9  # too small for text
    (box,) = ppocr.decode_boxes(probability)
    left, top = box.min(axis=0)
    right, bottom = box.max(axis=0)
    assert left < 30 < 110 < right
    assert top < 20 < 32 < bottom
    # Both sides grow by twice area * ratio / perimeter.
    grown = 2 * (80 * 12) * ppocr.UNCLIP_RATIO / (2 * (80 + 12))
    assert right - left == pytest.approx(80 + grown, abs=3)


def test_unsure_boxes_are_dropped() -> None:
    """Above the mask's threshold, below the box's."""
    probability = np.zeros((64, 160), np.float32)
    probability[20:32, 30:110] = 0.4
    assert ppocr.decode_boxes(probability) == []


def test_cut_out_straightens_a_tilted_box() -> None:
    """A tilted rectangle comes out as an upright one of its own colour."""
    picture = np.zeros((200, 300, 3), np.uint8)
    corners = cv2.boxPoints(((150, 100), (120, 30), 20.0))
    cv2.fillPoly(picture, [corners.astype(np.int32)], (255, 255, 255))
    box = ppocr._clockwise(corners)
    crop = ppocr.cut_out(picture, box)
    assert crop.shape == (30, 120, 3)
    assert crop[3:-3, 3:-3].min() > 250


def test_lines_written_downwards_are_laid_on_their_side() -> None:
    """A box much taller than wide is turned."""
    box = np.array([[10, 10], [40, 10], [40, 110], [10, 110]], np.float32)
    assert ppocr.cut_out(np.zeros((200, 200, 3), np.uint8), box).shape == (30, 100, 3)


def test_reading_order_is_by_row_then_by_column() -> None:
    """Two boxes side by side, the left one a little lower, and one below."""

    def box(x: float, y: float) -> ppocr.Tensor:
        return np.array([[x, y], [x + 50, y], [x + 50, y + 20], [x, y + 20]], np.float32)

    boxes = [box(0, 60), box(100, 10), box(0, 15)]
    ordered = [tuple(b[0].tolist()) for b in ppocr.reading_order(boxes)]
    assert ordered == [(0, 15), (100, 10), (0, 60)]


@pytest.mark.parametrize(("width", "expected"), [(96, 192), (4, 16), (9000, 2048)])
def test_line_tensor_keeps_the_aspect_within_limits(width: int, expected: int) -> None:
    """A line of height 24 doubles; extremes are clipped to what the plan serves."""
    tensor = ppocr.line_tensor(np.full((24, width, 3), 255, np.uint8))
    assert tensor.shape == (1, 3, 48, expected)
    assert tensor.dtype == np.float32
    assert tensor.max() == 1


def test_classifier_tensor_has_one_size() -> None:
    """Short lines are padded with zeros, long ones cut."""
    short = ppocr.classifier_tensor(np.full((48, 100, 3), 255, np.uint8))
    long = ppocr.classifier_tensor(np.full((48, 500, 3), 255, np.uint8))
    assert short.shape == long.shape == (1, 3, 48, 192)
    assert short[..., 100:].max() == 0


def test_detection_tensor_sides_are_multiples_of_32() -> None:
    """The longer side becomes DETECTION_SIDE."""
    shape = ppocr.detection_tensor(np.zeros((500, 1000, 3), np.uint8)).shape
    assert shape == (1, 3, 480, 960)


def test_a_line_on_its_head_is_turned() -> None:
    """Only when classification is sure."""
    crop = np.arange(48 * 96 * 3, dtype=np.uint8).reshape(48, 96, 3)

    def turned(score: float) -> bool:
        return not np.array_equal(
            ppocr.upright(crop, lambda feeds: {"y": np.array([[1 - score, score]])}), crop
        )

    assert turned(0.95)
    assert not turned(0.8)
