"""Draws the pictures of docs/architecture.md into docs/images: python docs/make_images.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

IMAGES = Path(__file__).parent / "images"
INK, GREY, PALE, PAPER = "#1f2933", "#7b8794", "#eef1f4", "#ffffff"
BLUE, GREEN, ORANGE, VIOLET = "#d6e6fa", "#d7f0dd", "#fde5cc", "#e7dcf7"

STAGES = (
    ("frontend/", "", "reads, checks all,\nsymbolic shapes", BLUE),
    ("passes/", "Graph", "fold, recognise,\nfuse", BLUE),
    ("passes/layout.py", "Graph", "channel blocks,\nconversions", BLUE),
    ("planner/storage.py", "Graph with\nlayouts", "places, views,\nlifetimes, halos", GREEN),
    ("planner/lower.py", "", "operands over\nruntime sizes", GREEN),
    ("tuner/", "Problems", "writes, compiles,\ntimes tactics", ORANGE),
    ("planner/assemble.py", "Choices", "packs weights,\nlinks the program", GREEN),
    ("runtime/", "Plan", "threads, arena,\none C call", VIOLET),
)
"""Where, what goes in, what happens there, colour."""
WIDTH, HEIGHT, GAP = 2.0, 1.0, 0.85
BLOCK = 16


def label(axes: Axes, x: float, y: float, text: str, size: float = 8.5, **style: Any) -> None:
    """Text centred at (x, y) unless `ha` says otherwise."""
    chosen = {"ha": "center", "va": "center", "color": INK, "fontsize": size} | style
    axes.text(x, y, text, **chosen)


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    """A rounded box with its lower left corner at (x, y)."""
    style = {"facecolor": colour, "edgecolor": INK, "linewidth": 1}
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, **style))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From `start` to `end`."""
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": INK, "linewidth": 1}
    axes.add_patch(FancyArrowPatch(start, end, **style))


def cell(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    """One element."""
    style = {"facecolor": colour, "edgecolor": GREY, "linewidth": 0.6}
    axes.add_patch(Rectangle((x, y), width, height, **style))


def canvas(height: float, right: float, bottom: float, top: float) -> tuple[Any, Axes]:
    """A figure 10 inches wide without axes."""
    figure, axes = plt.subplots(figsize=(10, height))
    axes.set(xlim=(-0.1, right), ylim=(bottom, top))
    axes.axis("off")
    return figure, axes


def pipeline() -> None:
    """The stages in two rows, with what flows between them."""
    figure, axes = canvas(4.1, 10.65, -0.35, 3.9)
    for i, (folder, flows, what, colour) in enumerate(STAGES):
        row, column = divmod(i, 4)
        x, y = column * (WIDTH + GAP), 2.75 - row * 2.0
        box(axes, x, y, WIDTH, HEIGHT, colour)
        label(axes, x + WIDTH / 2, y + 0.76, folder, 8.2, family="monospace", weight="bold")
        label(axes, x + WIDTH / 2, y + 0.34, what)
        if flows:
            arrow(axes, (x - GAP + 0.06, y + 0.5), (x - 0.06, y + 0.5))
            label(axes, x - GAP / 2, y + 0.6, flows, 7.5, va="bottom", style="italic")
    first, last = WIDTH / 2, 3 * (WIDTH + GAP) + WIDTH / 2
    axes.plot([last, last, first], [2.72, 2.28, 2.28], color=INK, linewidth=1)
    arrow(axes, (first, 2.29), (first, 1.78))
    text = "StoragePlan: every value's place, the steps that remain"
    label(axes, (first + last) / 2, 2.32, text, 7.5, va="bottom", style="italic")
    tuner = WIDTH + GAP + WIDTH / 2
    box(axes, tuner - 2.4, -0.25, 4.8, 0.55, ORANGE)
    label(axes, tuner, 0.02, "kernels/ + codegen/ + toolchain/: tactics, C text, objects")
    arrow(axes, (tuner, 0.32), (tuner, 0.73))
    end = 3 * (WIDTH + GAP)
    box(axes, end - 0.5, -0.25, 2.5, 0.55, PAPER)
    label(axes, end + 0.75, 0.02, "model.plan  (one file)")
    arrow(axes, (end - GAP - 0.35, 0.73), (end - 0.54, 0.1))
    arrow(axes, (end + 0.75, 0.33), (end + 0.75, 0.73))
    save(figure, "pipeline")


def blocked() -> None:
    """A blocked value of 24 channels with its halo, as it lies in memory."""
    figure, axes = canvas(3.6, 20.2, -2.1, 5.4)
    axes.set_aspect("equal")
    side, rows, columns = 0.62, 6, 7
    for left, text, colour in ((0, "block 0: channels 0-15", BLUE),
                               (5.3, "block 1: channels 16-23", GREEN)):  # fmt: skip
        for i in range(rows):
            for j in range(columns):
                x, y = left + j * side, 4.2 - i * side
                halo = i in (0, rows - 1) or j in (0, columns - 1)
                cell(axes, x, y, side, side, PALE if halo else colour)
                if halo:
                    label(axes, x + side / 2, y + side / 2, "0", 7, color=GREY)
        label(axes, left + columns * side / 2, 5.1, text, 9)
    text = "planes of 4 x 5 pixels with a halo of zeros, one on each side"
    label(axes, 4.8, 0.62, text, color=GREY)
    start, lane = 10.6, 0.56
    for block, (y, used, colour) in enumerate(((3.5, 16, BLUE), (1.9, 8, GREEN))):
        label(axes, start, y + 1.1, f"a pixel of block {block}: one vector, 64 bytes", ha="left")
        for k in range(BLOCK):
            live = k < used
            x = start + k * lane
            cell(axes, x, y, lane, 0.75, colour if live else PALE)
            number, ink = (str(BLOCK * block + k), INK) if live else ("0", GREY)
            label(axes, x + lane / 2, y + 0.37, number, 7, color=ink)
    label(axes, start, 1.45, "lanes past the last channel hold zeros", ha="left", color=GREY)
    text = "memory: [n][c / 16][top + h + bottom][left + w + right][16]"
    label(axes, 0, -0.05, text, ha="left", family="monospace")
    for k in range(4):
        cell(axes, 4.8 * k, -1.25, 4.8, 0.8, (BLUE, GREEN)[k % 2])
        label(axes, 4.8 * k + 2.4, -0.85, f"image {k // 2}, block {k % 2}")
    text = "a concat's inputs are whole blocks of its memory: written in place, never copied"
    label(axes, 0, -1.8, text, ha="left", color=GREY)
    save(figure, "blocked")


def save(figure: Any, name: str) -> None:
    """Write the SVG, the same bytes every time."""
    path = IMAGES / f"{name}.svg"
    figure.savefig(path, bbox_inches="tight", facecolor=PAPER, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "enginesmith"
    pipeline()
    blocked()
