"""The table of importers: ONNX operator -> (since which operator set version, function), oldest
first.

An operator whose form changed in a version has one entry per form. Versions before the first
entry's are imported by it too: opset 7 is the oldest meant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from enginesmith.frontend import (
    activation_ops,
    conv_ops,
    elementwise_ops,
    index_ops,
    matmul_ops,
    quantize_ops,
    reduce_ops,
    resize_ops,
    shape_ops,
)
from enginesmith.frontend.activation_ops import activation, unary
from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.elementwise_ops import chained, operator, swapped
from enginesmith.frontend.index_ops import scatter
from enginesmith.frontend.node import OnnxNode
from enginesmith.frontend.reduce_ops import arg_reduce, reduce, softmax, softmax_flattening

Importer: TypeAlias = Callable[[GraphBuilder, OnnxNode], Any]
"""Adds nodes; returns the output's Value, or a sequence with one per output."""

Versions: TypeAlias = tuple[tuple[int, Importer], ...]


def always(importer: Importer) -> Versions:
    return ((1, importer),)


IMPORTERS: dict[str, Versions] = {
    # arithmetic, comparisons, logic
    "Abs": always(unary("abs")),
    "Add": always(operator("add")),
    "And": always(operator("and")),
    "Cast": always(elementwise_ops.cast),
    "CastLike": always(elementwise_ops.cast_like),
    "Ceil": always(unary("ceil")),
    "Clip": ((6, elementwise_ops.clip_attributes), (11, elementwise_ops.clip)),
    "Cos": always(unary("cos")),
    "DequantizeLinear": always(quantize_ops.dequantize),
    "Div": always(operator("div")),
    "Dropout": always(elementwise_ops.dropout),
    "Equal": always(operator("eq")),
    "Erf": always(unary("erf")),
    "Exp": always(unary("exp")),
    "Floor": always(unary("floor")),
    "Greater": always(swapped("lt")),
    "GreaterOrEqual": always(swapped("le")),
    "Identity": always(elementwise_ops.identity),
    "IsInf": always(elementwise_ops.is_infinite),
    "IsNaN": always(unary("isnan")),
    "Less": always(operator("lt")),
    "LessOrEqual": always(operator("le")),
    "Log": always(unary("log")),
    "Max": always(chained("max")),
    "Mean": always(elementwise_ops.mean),
    "Min": always(chained("min")),
    "Mod": always(elementwise_ops.modulo),
    "Mul": always(operator("mul")),
    "Neg": always(unary("neg")),
    "Not": always(unary("not")),
    "Or": always(operator("or")),
    "Pow": always(elementwise_ops.power),
    "QuantizeLinear": always(quantize_ops.quantize),
    "Reciprocal": always(elementwise_ops.reciprocal),
    "Round": always(unary("round")),
    "Sign": always(unary("sign")),
    "Sin": always(unary("sin")),
    "Sqrt": always(unary("sqrt")),
    "Sub": always(operator("sub")),
    "Sum": always(chained("add")),
    "Where": always(elementwise_ops.where),
    "Xor": always(operator("xor")),
    # activations
    "Acosh": always(activation(activation_ops.inverse_hyperbolic_cosine)),
    "Asinh": always(activation(activation_ops.inverse_hyperbolic_sine)),
    "Atanh": always(activation(activation_ops.inverse_hyperbolic_tangent)),
    "Celu": always(activation(activation_ops.celu)),
    "Cosh": always(activation(activation_ops.hyperbolic_cosine)),
    "Elu": always(activation(activation_ops.elu)),
    "Gelu": always(activation(activation_ops.gelu)),
    "HardSigmoid": always(activation(activation_ops.hard_sigmoid)),
    "HardSwish": always(activation(activation_ops.hard_swish)),
    "LeakyRelu": always(activation(activation_ops.leaky_relu)),
    "Mish": always(activation(activation_ops.mish)),
    "PRelu": always(activation_ops.prelu),
    "Relu": always(activation(activation_ops.relu)),
    "Selu": always(activation(activation_ops.selu)),
    "Shrink": always(activation(activation_ops.shrink)),
    "Sigmoid": always(unary("sigmoid")),
    "Sinh": always(activation(activation_ops.hyperbolic_sine)),
    "Softplus": always(activation(activation_ops.softplus_tree)),
    "Softsign": always(activation(activation_ops.softsign)),
    "Swish": always(activation(activation_ops.swish)),
    "Tan": always(activation(activation_ops.tangent)),
    "Tanh": always(unary("tanh")),
    "ThresholdedRelu": always(activation(activation_ops.thresholded_relu)),
    # convolutions, pools, matrix products
    "AveragePool": always(conv_ops.average_pool),
    "Conv": always(conv_ops.conv),
    "ConvTranspose": always(conv_ops.conv_transpose),
    "Einsum": always(matmul_ops.einsum),
    "Gemm": always(matmul_ops.gemm),
    "GlobalAveragePool": always(conv_ops.global_average_pool),
    "GlobalMaxPool": always(conv_ops.global_max_pool),
    "MatMul": always(matmul_ops.matmul),
    "MaxPool": always(conv_ops.max_pool),
    # reductions, softmax, normalizations
    "ArgMax": always(arg_reduce("argmax")),
    "ArgMin": always(arg_reduce("argmin")),
    "BatchNormalization": always(reduce_ops.batch_normalization),
    "CumSum": always(index_ops.cumulative_sum),
    "GroupNormalization": always(reduce_ops.group_normalization),
    "InstanceNormalization": always(reduce_ops.instance_normalization),
    "LRN": always(reduce_ops.local_response_normalization),
    "LayerNormalization": always(reduce_ops.layer_normalization),
    "LogSoftmax": ((1, softmax_flattening(True)), (13, softmax(True))),
    "LpNormalization": always(reduce_ops.lp_normalization),
    "MeanVarianceNormalization": always(reduce_ops.mean_variance_normalization),
    "RMSNormalization": always(reduce_ops.rms_normalization),
    "ReduceL1": always(reduce("l1")),
    "ReduceL2": always(reduce("l2")),
    "ReduceLogSum": always(reduce_ops.reduce_log_sum),
    "ReduceLogSumExp": always(reduce_ops.reduce_log_sum_exp),
    "ReduceMax": always(reduce("max")),
    "ReduceMean": always(reduce("mean")),
    "ReduceMin": always(reduce("min")),
    "ReduceProd": always(reduce("prod")),
    "ReduceSum": always(reduce("sum")),
    "ReduceSumSquare": always(reduce("sumsq")),
    "Softmax": ((1, softmax_flattening(False)), (13, softmax(False))),
    # moving elements
    "Concat": always(shape_ops.concat),
    "ConstantOfShape": always(shape_ops.constant_of_shape),
    "DepthToSpace": always(shape_ops.depth_to_space),
    "Expand": always(shape_ops.expand),
    "EyeLike": always(index_ops.eye_like),
    "Flatten": always(shape_ops.flatten),
    "Gather": always(index_ops.gather),
    "GatherElements": always(index_ops.gather_elements),
    "GatherND": always(index_ops.gather_nd),
    "OneHot": always(index_ops.one_hot),
    "Pad": ((2, shape_ops.pad_attributes), (11, shape_ops.pad_operands)),
    "Range": always(index_ops.range_),
    "Reshape": always(shape_ops.reshape),
    "Resize": ((10, resize_ops.upsample_operands), (11, resize_ops.resize)),
    "Scatter": always(scatter("elements")),
    "ScatterElements": always(scatter("elements")),
    "ScatterND": always(scatter("nd")),
    "Shape": always(shape_ops.shape),
    "Size": always(shape_ops.size),
    "Slice": ((1, shape_ops.slice_attributes), (10, shape_ops.slice_operands)),
    "SpaceToDepth": always(shape_ops.space_to_depth),
    "Split": always(shape_ops.split),
    "Squeeze": always(shape_ops.squeeze),
    "Tile": always(shape_ops.tile),
    "Transpose": always(shape_ops.transpose),
    "Trilu": always(index_ops.trilu),
    "Unsqueeze": always(shape_ops.unsqueeze),
    "Upsample": ((7, resize_ops.upsample_attributes), (9, resize_ops.upsample_operands)),
}


def importer_for(op_type: str, opset: int) -> Importer | None:
    """The importer of the newest form not newer than `opset`; None for unknown operators."""
    versions = IMPORTERS.get(op_type)
    if versions is None:
        return None
    fitting = [function for since, function in versions if since <= opset]
    return fitting[-1] if fitting else versions[0][1]
