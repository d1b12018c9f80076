"""Models to measure: the zoo's graphs with made-up weights, and trained ones from pip packages."""

from bench.zoo.fill import example_inputs, filled, names
from bench.zoo.packages import PACKAGE_MODELS, find, load
from bench.zoo.photo import feeds, typical_shapes

__all__ = [
    "PACKAGE_MODELS", "example_inputs", "feeds", "filled", "find", "load", "names",
    "typical_shapes",
]  # fmt: skip
