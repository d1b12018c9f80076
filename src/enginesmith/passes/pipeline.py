"""The passes, in order: what turns an imported graph into the one kernels are chosen for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from enginesmith.ir.graph import Graph
from enginesmith.passes.attention import attention
from enginesmith.passes.batch_norm_into_conv import batch_norm_into_conv
from enginesmith.passes.common_subexpressions import common_subexpressions
from enginesmith.passes.constant_folding import constant_folding
from enginesmith.passes.dead_code import dead_code
from enginesmith.passes.epilogue_fusion import epilogue_fusion
from enginesmith.passes.expressions import expressions
from enginesmith.passes.gathers import lookups, picks
from enginesmith.passes.identities import identities
from enginesmith.passes.layer_normalization import layer_normalization
from enginesmith.passes.merge_matmuls import merge_matmuls
from enginesmith.passes.moves import moves
from enginesmith.passes.pad_into_conv import pad_into_conv
from enginesmith.passes.pointwise_fusion import pointwise_duplication, pointwise_fusion
from enginesmith.passes.prologue_fusion import prologue_fusion
from enginesmith.passes.reshapes import reshapes
from enginesmith.passes.row_order import row_order
from enginesmith.passes.scalar_operands import scalar_operands
from enginesmith.passes.sink_reshapes import sink_reshapes
from enginesmith.passes.sink_transposes import sink_transposes
from enginesmith.passes.slices import slices
from enginesmith.passes.softmax import softmax
from enginesmith.passes.uniform_shapes import uniform_shapes
from enginesmith.passes.unify_shapes import unify_shapes

Pass: TypeAlias = Callable[[Graph], bool]
"""Rewrites a graph in place; True if it changed anything."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Passes run one after the other; `repeat`: again and again until none changes anything."""

    name: str
    passes: tuple[Pass, ...]
    repeat: bool = False


_CLEANUP: tuple[Pass, ...] = (
    constant_folding, identities, reshapes, slices, common_subexpressions, dead_code,
)  # fmt: skip

PIPELINE: tuple[Stage, ...] = (
    Stage("shapes", (unify_shapes,)),
    Stage("clean up", (*_CLEANUP, scalar_operands, expressions), repeat=True),
    Stage("recognise", (layer_normalization, softmax, attention, picks, lookups, moves, dead_code)),
    Stage("clean up after", _CLEANUP, repeat=True),
    Stage("fold weights", (pad_into_conv, batch_norm_into_conv, expressions), repeat=True),
    Stage("fuse", (pointwise_fusion, sink_reshapes, reshapes, epilogue_fusion), repeat=True),
    Stage("duplicate", (pointwise_duplication, pointwise_fusion, epilogue_fusion), repeat=True),
    Stage("tidy", (*_CLEANUP, scalar_operands, expressions), repeat=True),
    Stage("prologues", (prologue_fusion, dead_code)),
)
"""The pipeline of every target, in order."""

STRIDED: tuple[Stage, ...] = (
    Stage("order rows", (row_order, uniform_shapes, *_CLEANUP, expressions), repeat=True),
    Stage("fuse around transposes",
          (sink_transposes, pointwise_fusion, epilogue_fusion, *_CLEANUP), repeat=True),
    Stage("merge", (merge_matmuls, *_CLEANUP)),
)  # fmt: skip
"""What follows for targets whose kernels take any strides (GPUs): what it adds are views there."""

_ROUNDS = 20
"""Rounds after which a repeated stage that still changes things is taken as a fault."""


def run_pipeline(
    graph: Graph,
    verify: Callable[[Graph], None] | None = None,
    after_pass: Callable[[str, Graph], None] | None = None,
    strided: bool = False,
) -> Graph:
    """Rewrite `graph` in place, and return it.

    strided: for a target whose kernels take any strides. verify: called after every pass that
    changed something; raises if the graph is broken. after_pass: called likewise with the pass's
    name, to dump the graph. RuntimeError if a stage doesn't settle.
    """
    for stage in (*PIPELINE, *(STRIDED if strided else ())):
        _run_stage(graph, stage, verify, after_pass)
    return graph


def _run_stage(
    graph: Graph,
    stage: Stage,
    verify: Callable[[Graph], None] | None,
    after_pass: Callable[[str, Graph], None] | None,
) -> None:
    for _ in range(_ROUNDS):
        changed = False
        for rewrite in stage.passes:
            if rewrite(graph):
                changed = True
                if verify is not None:
                    verify(graph)
                if after_pass is not None:
                    after_pass(rewrite.__name__, graph)
        if not changed or not stage.repeat:
            return
    raise RuntimeError(f"the passes of {stage.name!r} keep changing the graph {graph.name}")
