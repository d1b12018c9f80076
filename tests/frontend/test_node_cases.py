"""ONNX's own node tests (onnx.backend.test), through the importers and the IR's reference.

Shape operands that the cases feed at run time (a Reshape's target, a reduction's axes) become
initializers here, as they are in real models. What is left out, and why, is listed below; anything
else that isn't imported, or that computes something else, fails.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from enginesmith.errors import ModelError, UnsupportedError
from enginesmith.frontend import import_model
from enginesmith.ir.graph import Graph
from enginesmith.ir.parser import parse_graph
from enginesmith.ir.printer import constant_hash, print_graph
from enginesmith.ir.reference import run_graph
from enginesmith.ir.verifier import verify

UNSUPPORTED_OPERATORS = {
    # no pointwise operator for them
    "Acos", "Asin", "Atan", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor",
    # control flow, sequences, strings, randomness, training
    "If", "Loop", "Scan", "OptionalGetElement", "OptionalHasElement", "SequenceEmpty",
    "SequenceInsert",
    "SequenceLength", "SplitToSequence", "RegexFullMatch", "StringConcat", "StringNormalizer",
    "StringSplit", "TfIdfVectorizer", "ImageDecoder", "RandomUniformLike",
    # recurrent layers, signals, geometry, sorting: no kernel family
    "GRU", "LSTM", "RNN", "DFT", "STFT", "MelWeightMatrix", "Col2Im", "CumProd", "DeformConv",
    "Det", "GridSample", "Hardmax", "LpPool", "MaxUnpool", "NonMaxSuppression", "NonZero",
    "ReverseSequence", "RoiAlign", "TensorScatter", "TopK", "Unique", "Compress",
    "NegativeLogLikelihoodLoss",
    # integer arithmetic
    "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    # forms whose definition as a function needs one of the above
    "Attention", "CausalConvWithState", "LinearAttention",
}  # fmt: skip

UNSUPPORTED_FORMS = [
    r"no importer for operator \w+ of domain [\w.]+",
    r"(it|the result) has element type (string|bfloat16|float[48]\w+|u?int(2|4|16|32|64))",
    r"it isn't a tensor",
    r"\w+ over 3 spatial axes",
    r"\w+ in training mode",
    r"the Indices output of MaxPool",
    r"Resize with antialias=1",
    r"coordinate_transformation_mode tf_crop_and_resize",
    r"padding mode wrap",
    r"an ellipsis in Einsum",
    r"a diagonal in Einsum.*",
    r"blocked quantization",
    r"quantization to .*",
    r"an output_shape larger than the whole transposed convolution",
    r"column-major storage_order of MaxPool",
]

DIFFERENT = {
    r"test_resize_downsample_scales_(cubic|linear)_align_corners":
        "onnx aligns to the size before rounding; ONNX Runtime and we to the rounded size",
    r"test_causal_conv_with_state_silu_fp16.*": "float16 rounding of intermediate results",
}  # fmt: skip


@cache
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))


def listed(name: str, table: dict[str, str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in table)


def is_known_gap(reason: str) -> bool:
    operator = re.fullmatch(r"no importer for operator (\w+)(, which it consists of)?", reason)
    if operator:
        return operator.group(1) in UNSUPPORTED_OPERATORS
    return any(re.fullmatch(pattern, reason) for pattern in UNSUPPORTED_FORMS)


def arrays_of(values: Any) -> list[Any]:
    return [numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for v in values]


def models(case: Any) -> Iterator[onnx.ModelProto]:
    """The case's model, then with all inputs but the first, then all, as initializers."""
    yield case.model
    for first in (1, 0):
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        values = arrays_of(case.data_sets[0][0])
        for info, array in list(zip(model.graph.input, values, strict=True))[first:]:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), info.name))
        yield model


def imported(case: Any) -> Graph:
    for model in models(case):
        try:
            return import_model(model)
        except UnsupportedError as error:
            failure = error
            if "computed from data" not in str(error):
                break
    raise failure


def round_trips(graph: Graph) -> bool:
    text = print_graph(graph)
    constants = {constant_hash(v.data): v.data for v in graph.values() if v.data is not None}
    return print_graph(parse_graph(text, constants)) == text


def check(case: Any) -> str:
    """What is wrong with the case; empty if nothing, or if it is a known gap."""
    try:
        graph = imported(case)
    except UnsupportedError as error:
        unknown = [str(p) for p in error.problems if not is_known_gap(p.reason)]
        return "; ".join(unknown)
    except ModelError as error:
        return str(error)
    verify(graph)
    if not round_trips(graph):
        return "its text doesn't parse back"
    for inputs, outputs in case.data_sets:
        names = [i.name for i in case.model.graph.input]
        results = run_graph(graph, dict(zip(names, arrays_of(inputs), strict=True)))
        for name, expected in zip(results, arrays_of(outputs), strict=True):
            actual = results[name]
            if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
                return f"{name}: {actual.dtype}{actual.shape}, not {expected.dtype}{expected.shape}"
            close = np.allclose(
                actual, expected, rtol=max(case.rtol, 1e-3), atol=1e-6, equal_nan=True
            )
            if not close and not listed(case.name, DIFFERENT):
                return f"{name}: {actual.ravel()[:8]}, not {expected.ravel()[:8]}"
    return ""


@pytest.mark.parametrize("part", range(4))
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
def test_every_case_is_right_or_a_known_gap(part: int) -> None:
    problems = {case.name: check(case) for case in cases()[part::4]}
    assert not {name: text for name, text in problems.items() if text}


def test_most_cases_are_imported() -> None:
    """The lists above don't hide a mistake that refuses everything."""

    def is_imported(case: Any) -> bool:
        try:
            return bool(imported(case).outputs)
        except ModelError:
            return False

    sample = cases()[::10]
    assert sum(map(is_imported, sample)) > 0.55 * len(sample)
