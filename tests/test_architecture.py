"""docs/architecture.md shows what the pipeline does today."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_architecture", DOCS / "make_architecture.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_worked_example_is_up_to_date(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    fresh = script.page(text, script.blocks())
    assert fresh == text, "run: python docs/make_architecture.py"


def test_links_and_pictures_exist(script: ModuleType) -> None:
    """Every relative link of the page leads somewhere."""
    text = script.PAGE.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DOCS / target).exists(), target
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
