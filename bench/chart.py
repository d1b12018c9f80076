"""The bar chart of a comparison: speed relative to the best peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "Enginesmith": "#d9480f", "ONNX Runtime": "#868e96", "OpenVINO": "#ced4da",
    "torch.compile": "#495057", "torch.compile + CUDA graph": "#343a40",
    "torch.compile max-autotune": "#212529", "PyTorch + CUDA graph": "#adb5bd",
}  # fmt: skip
INK, GREY, FAINT = "#212529", "#495057", "#adb5bd"


LETTER = 0.0105
"""The width of a letter of a label, as a share of the axis."""


def draw(results: Sequence[Mapping[str, Any]], caption: str, path: Path) -> None:
    """Write a PNG. `results`: per model `name`, `latency` (runner -> {"median": seconds}) and
    `ratio` ({"median", "low", "high"}), as in the JSON of bench.compare."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runners = [name for name in COLOURS if any(name in r["latency"] for r in results)]
    ordered = sorted(results, key=lambda r: r["ratio"]["median"])
    height = 0.8 / len(runners)
    right = max(r["ratio"]["high"] for r in ordered) * 1.18 + 0.1
    figure, axes = plt.subplots(figsize=(8.5, 1.9 + 0.55 * len(ordered)), layout="constrained")
    for slot, runner in enumerate(runners):
        places = [i + 0.4 - (slot + 0.5) * height for i in range(len(ordered))]
        speeds = [_speed(result, runner) for result in ordered]
        axes.barh(places, speeds, height * 0.92, color=COLOURS[runner], label=runner)
        if runner == "Enginesmith":
            _whiskers(axes, ordered, places)
        for place, speed, result in zip(places, speeds, ordered, strict=True):
            _label(axes, runner, place, speed, result, right)
    axes.axvline(1, color=INK, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(ordered)), [r["name"] for r in ordered], color=INK)
    axes.set_xlabel("speed relative to the fastest other engine (longer is faster)", color=INK)
    axes.annotate(
        caption, (0, 0), (0, -44), "axes fraction", textcoords="offset points", va="top",
        fontsize=8, color=GREY, annotation_clip=False,
    )  # fmt: skip
    axes.set_xlim(0, right)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.tick_params(length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=len(runners), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


def _speed(result: Mapping[str, Any], runner: str) -> float:
    """A runner's speed over the fastest peer's; ours is the median of the rounds' ratios."""
    if runner not in result["latency"]:
        return 0.0
    if runner == "Enginesmith":
        return float(result["ratio"]["median"])
    peers = {n: v["median"] for n, v in result["latency"].items() if n != "Enginesmith"}
    return float(min(peers.values()) / peers[runner])


def milliseconds(seconds: float) -> str:
    """Three significant digits, never an exponent."""
    value = seconds * 1e3
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def _whiskers(axes: Any, results: Sequence[Mapping[str, Any]], places: Sequence[float]) -> None:
    for result, place in zip(results, places, strict=True):
        ratio = result["ratio"]
        axes.plot([ratio["low"], ratio["high"]], [place, place], color=INK, linewidth=1)


def _label(
    axes: Any, runner: str, place: float, speed: float, result: Mapping[str, Any], right: float
) -> None:
    """Milliseconds in every bar, or behind one too short for them, and the ratio after ours. right:
    the end of the axis."""
    if runner not in result["latency"]:
        return
    text = milliseconds(result["latency"][runner]["median"])
    fits = speed > len(text) * LETTER * right
    colour = "white" if fits and runner != "OpenVINO" else INK
    axes.text(0.02 if fits else speed + 0.02, place, text, va="center", fontsize=7.5, color=colour)
    if runner == "Enginesmith":
        end = max(speed, result["ratio"]["high"]) + 0.02
        axes.text(end, place, f"{speed:.2f}x", va="center", fontsize=9, weight="bold", color=INK)
