"""GFLOP/s of every convolution tactic, one thread, on the layers of real networks.

python bench/kernels/conv_shapes.py [--net resnet50] [--isa avx512] [--match REGEX] [--tactic NAME]
[--first]: per layer one line per tactic with its time, GFLOP/s (the direct algorithm's count) and
per cent of the FMA peak measured on this core.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "kernels"))

from conv_cases import conv
from harness import CACHE, Loaded, prepare, seconds

from enginesmith.ir.expr import Arg, call, relu
from enginesmith.kernels.base import KernelSource, Phase, value_of
from enginesmith.kernels.conv import cpu
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.plan.target import Target

# name, in channels, height, width, out channels, kernel, stride, groups; pads are (kernel - 1) / 2
LAYERS = {
    "resnet50": [
        ("stem", 3, 224, 224, 64, 7, 2, 1),
        ("c2 1x1", 64, 56, 56, 64, 1, 1, 1),
        ("c2 3x3", 64, 56, 56, 64, 3, 1, 1),
        ("c2 up", 64, 56, 56, 256, 1, 1, 1),
        ("c2 down", 256, 56, 56, 64, 1, 1, 1),
        ("c3 down", 256, 56, 56, 128, 1, 1, 1),
        ("c3 3x3 s2", 128, 56, 56, 128, 3, 2, 1),
        ("c3 short", 256, 56, 56, 512, 1, 2, 1),
        ("c3 up", 128, 28, 28, 512, 1, 1, 1),
        ("c3 down2", 512, 28, 28, 128, 1, 1, 1),
        ("c3 3x3", 128, 28, 28, 128, 3, 1, 1),
        ("c4 3x3 s2", 256, 28, 28, 256, 3, 2, 1),
        ("c4 short", 512, 28, 28, 1024, 1, 2, 1),
        ("c4 up", 256, 14, 14, 1024, 1, 1, 1),
        ("c4 down", 1024, 14, 14, 256, 1, 1, 1),
        ("c4 3x3", 256, 14, 14, 256, 3, 1, 1),
        ("c5 3x3 s2", 512, 14, 14, 512, 3, 2, 1),
        ("c5 short", 1024, 14, 14, 2048, 1, 2, 1),
        ("c5 up", 512, 7, 7, 2048, 1, 1, 1),
        ("c5 down", 2048, 7, 7, 512, 1, 1, 1),
        ("c5 3x3", 512, 7, 7, 512, 3, 1, 1),
        ("fc", 2048, 1, 1, 1000, 1, 1, 1),
    ],
    "mobilenet_v3": [
        ("stem", 3, 224, 224, 16, 3, 2, 1),
        ("dw 112", 16, 112, 112, 16, 3, 1, 16),
        ("expand", 16, 112, 112, 64, 1, 1, 1),
        ("dw s2", 64, 112, 112, 64, 3, 2, 64),
        ("project", 64, 56, 56, 24, 1, 1, 1),
        ("dw 56", 72, 56, 56, 72, 3, 1, 72),
        ("dw5 s2", 72, 56, 56, 72, 5, 2, 72),
        ("dw5 28", 120, 28, 28, 120, 5, 1, 120),
        ("project 40", 120, 28, 28, 40, 1, 1, 1),
        ("expand 80", 80, 14, 14, 480, 1, 1, 1),
        ("dw 14", 480, 14, 14, 480, 3, 1, 480),
        ("project 112", 672, 14, 14, 112, 1, 1, 1),
        ("dw5 7", 960, 7, 7, 960, 5, 1, 960),
        ("project 160", 960, 7, 7, 160, 1, 1, 1),
        ("se down", 672, 1, 1, 168, 1, 1, 1),
        ("se up", 168, 1, 1, 672, 1, 1, 1),
    ],
    "efficientnet_b0": [
        ("expand 96", 16, 112, 112, 96, 1, 1, 1),
        ("dw3 s2", 96, 112, 112, 96, 3, 2, 96),
        ("project 24", 96, 56, 56, 24, 1, 1, 1),
        ("dw3 56", 144, 56, 56, 144, 3, 1, 144),
        ("dw5 28", 240, 28, 28, 240, 5, 1, 240),
        ("project 80", 480, 14, 14, 80, 1, 1, 1),
        ("dw5 14", 672, 14, 14, 672, 5, 1, 672),
        ("expand 1152", 192, 7, 7, 1152, 1, 1, 1),
        ("head", 320, 7, 7, 1280, 1, 1, 1),
    ],
    "unet": [
        ("3x3 3", 3, 256, 256, 64, 3, 1, 1),
        ("3x3 64", 64, 256, 256, 64, 3, 1, 1),
        ("3x3 128", 128, 128, 128, 128, 3, 1, 1),
        ("3x3 256", 256, 64, 64, 256, 3, 1, 1),
        ("3x3 512", 512, 32, 32, 512, 3, 1, 1),
        ("3x3 1024", 1024, 16, 16, 1024, 3, 1, 1),
        ("up 1024", 1024, 16, 16, 512, 2, -2, 1),
        ("up 128", 128, 128, 128, 64, 2, -2, 1),
    ],
    "regnet": [
        ("g8 56", 48, 56, 56, 48, 3, 1, 6),
        ("g8 28", 104, 28, 28, 104, 3, 1, 13),
        ("g8 14", 208, 14, 14, 208, 3, 1, 26),
        ("g8 7", 440, 7, 7, 440, 3, 1, 55),
        ("g16 28", 128, 28, 28, 128, 3, 1, 8),
    ],
    "ppocr": [
        ("stem", 3, 480, 480, 16, 3, 2, 1),
        ("dw 240", 16, 240, 240, 16, 3, 1, 16),
        ("pw 240", 16, 240, 240, 24, 1, 1, 1),
        ("pw 120", 48, 120, 120, 48, 1, 1, 1),
        ("dw5 30", 192, 30, 30, 192, 5, 1, 192),
        ("pw 30", 192, 30, 30, 192, 1, 1, 1),
        ("fpn 3x3", 96, 120, 120, 24, 3, 1, 1),
        ("head 3x3", 96, 120, 120, 24, 3, 1, 1),
        ("up", 24, 120, 120, 24, 2, -2, 1),
        ("up last", 24, 240, 240, 1, 2, -2, 1),
    ],
}


def peak(target: Target) -> float:
    """Measured flop/s of one core running independent multiply-adds."""
    n = 12
    text = (
        "void NAME(char *const *p, const int64_t *d, int64_t b, int64_t e, char *s) {\n"
        "  float *x = (float *)p[0]; vf w = load(x), v = load(x + LANES);\n  "
        + " ".join(f"vf a{i} = splat({i}.f);" for i in range(n))
        + "\n  for (int64_t i = b; i < e; i++) { "
        + " ".join(f"a{i} += w * v;" for i in range(n))
        + ' __asm__ volatile("" : '
        + ", ".join(f'"+v"(a{i})' for i in range(n))
        + "); }\n  store(x, "
        + " + ".join(f"a{i}" for i in range(n))
        + ");\n}"
    )
    kernel = Loaded(KernelSource(text, (Phase(1),)), target)
    data = np.full(64, 1e-6, np.float32)
    pointers = np.array([data.ctypes.data], np.int64)
    function, loops = kernel.phase(""), 1_000_000

    def run(shuffle: bool) -> None:
        function(pointers.ctypes.data, None, 0, loops, None)

    return 2 * n * target.lanes * loops / seconds(run, 8)


def problem_of(layer: tuple, lanes: int) -> ConvProblem:
    """The layer with bias and ReLU, input with the halo it needs (stride < 0: transposed; one
    output channel: plain output)."""
    _, ic, h, w, oc, k, stride, groups = layer
    epilogue = relu(call("add", Arg(0), Arg(1)))
    if stride < 0:
        return conv(lanes, 1, ic, h, w, oc, k, -stride, transposed=True, extras=["bias"],
                    epilogue=epilogue, plain_y=oc == 1)  # fmt: skip
    return conv(lanes, 1, ic, h, w, oc, k, stride, (k - 1) // 2, 1, groups, extras=["bias"],
                epilogue=epilogue, plain_x=ic == 3)  # fmt: skip


def inputs_of(problem: ConvProblem, slots: tuple[int, ...] = ()) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [[value_of(s, slots) for s in o.shape] for o in problem.operands[:-1]]
    return [rng.standard_normal(s, dtype=np.float32) for s in shapes]


def cold_seconds(run: Callable[..., None], repeats: int) -> float:
    """Best time of a run that finds its operands in memory, not in a cache."""
    other = np.ones(1 << 24, np.float32)
    best = 1e9
    for _ in range(repeats):
        other += 1
        start = time.perf_counter()
        run(shuffle=False)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=sorted(LAYERS), action="append")
    parser.add_argument("--isa", default="avx512", choices=("avx2", "avx512"))
    parser.add_argument("--match", default="", help="layers whose name matches this")
    parser.add_argument("--tactic", default="", help="tactics whose text contains this")
    parser.add_argument("--first", action="store_true", help="only each layer's first tactic")
    parser.add_argument("--cold", action="store_true", help="caches emptied before each run")
    parser.add_argument("--best", action="store_true", help="print each layer's best tactic alone")
    args = parser.parse_args()
    target = Target("cpu", args.isa)
    top = peak(target)
    print(f"{args.isa}: measured peak {top / 1e9:.1f} GFLOP/s, cache {CACHE.folder}")
    for net in args.net or LAYERS:
        total = 0.0
        for layer in LAYERS[net]:
            if not re.search(args.match, layer[0]):
                continue
            problem = problem_of(layer, target.lanes)
            flops = value_of(cpu.cost(problem).flops, ())
            tactics = [t for t in cpu.tactics(problem, target) if args.tactic in str(t)]
            rows = []
            for tactic in tactics[: 1 if args.first else None]:
                _, _, run = prepare(cpu, problem, tactic, target, inputs_of(problem))
                times = max(3, min(30, int(3e9 / max(flops, 1))))
                took = cold_seconds(run, times) if args.cold else seconds(run, times)
                rows.append((took, tactic))
            total += min((r[0] for r in rows), default=0.0)
            for took, tactic in sorted(rows)[:1] if args.best else rows:
                rate = flops / took
                print(f"{net:>13} {layer[0]:11} {took * 1e6:9.1f} us {rate / 1e9:7.1f} GFLOP/s "
                      f"{100 * rate / top:5.1f} %  {tactic}", flush=True)  # fmt: skip
        print(f"{net:>13} sum of best {total * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
