"""Every model can be built for GPUs, in every precision: each step has a kernel."""

from __future__ import annotations

import pytest
from bench import zoo

import enginesmith as es

CASES = [
    *((name, "fp16") for name in zoo.names()),
    *((name, precision) for name in zoo.PACKAGE_MODELS for precision in ("fp32", "fp16", "bf16")),
]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_every_step_has_a_kernel(name: str, precision: str) -> None:
    """With symbolic sizes."""
    proto = zoo.load(name)
    assert es.check_model(proto, target="cuda:sm_90", precision=precision, host_steps=False) == ()
