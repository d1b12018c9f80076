"""The zoo's architectures, one plan for every batch, against ONNX Runtime."""

from __future__ import annotations

import pytest
from bench import zoo
from tests.models.agreement import assert_agrees

BAR = 2e-5
TRANSFORMER_BAR = 5e-5
"""Deeper sums of attention and normalization."""

CONVOLUTIONAL = [
    "mobilenet_v3_large",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "resnet50", "efficientnet_b0", "regnet_y_400mf", "densenet121", "unet",
            "deeplabv3_resnet50",
        )
    ),
]  # fmt: skip
OTHERS = (
    "vit_b_16", "swin_t", "convnext_tiny", "bert_base", "gpt2", "whisper_tiny_encoder", "dlrm",
)  # fmt: skip


def assert_zoo_model_agrees(name: str, bar: float) -> None:
    model = zoo.filled(name)
    assert_agrees(model, [zoo.feeds(name, model, batch) for batch in (1, 3)], bar)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks(name: str) -> None:
    assert_zoo_model_agrees(name, BAR)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_transformers_and_recommendation(name: str) -> None:
    assert_zoo_model_agrees(name, TRANSFORMER_BAR)
