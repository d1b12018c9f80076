"""Winograd's minimal filtering F(m, r) by Toom-Cook: its three matrices, and C that applies them.

Y = A^T [(G g) * (B^T d)] gives m outputs of an r-tap correlation over n = m + r - 1 inputs d with n
multiplications. Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016);
points after Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution"
(2020): small numbers with small reciprocals keep the float32 error low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Matrix = tuple[tuple[Fraction, ...], ...]

POINTS: dict[int, tuple[Fraction, ...]] = {
    2: tuple(map(Fraction, ("0", "1", "-1"))),
    4: tuple(map(Fraction, ("0", "5/8", "-5/8", "3/2", "-3/2"))),
    6: tuple(map(Fraction, ("0", "1", "-1", "2", "-2", "1/2", "-1/2"))),
}
"""Interpolation points by m for r = 3; the last one, infinity, is implied. Those of 4 and 6 have
the least float32 error of all sets {0, +-a, +-b, ...} of eighths: half that of {0, +-1, +-2}.
Norm-relative error with 64 (512) channels: m = 2: 2e-7 (6e-7), 4: 6e-7 (1.7e-6), 6: 2.7e-6 (7e-6);
the direct algorithm has 3e-7 (8e-7)."""


@dataclass(frozen=True, slots=True)
class Transform:
    """bt: (n, n) for inputs, g: (n, r) for weights, at: (m, n) for outputs."""

    bt: Matrix
    g: Matrix
    at: Matrix


def transform(m: int, r: int = 3, points: Sequence[Fraction] | None = None) -> Transform:
    """The matrices of F(m, r)."""
    a = tuple(points or POINTS[m])
    n = m + r - 1
    bt, g = [], []
    for j in range(n - 1):
        others = [p for i, p in enumerate(a) if i != j]
        norm = Fraction(1)
        for p in others:
            norm *= a[j] - p
        bt.append((*_polynomial(others), Fraction(0)))
        g.append(tuple(a[j] ** k / norm for k in range(r)))
    bt.append(tuple(_polynomial(a)))
    g.append(tuple(Fraction(int(k == r - 1)) for k in range(r)))
    at = tuple(
        tuple(a[j] ** i if j < n - 1 else Fraction(int(i == m - 1)) for j in range(n))
        for i in range(m)
    )
    return Transform(tuple(bt), tuple(g), at)


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest power first, of the product of (x - root)."""
    c = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *c]
        c = [s - root * x for s, x in zip(shifted, [*c, Fraction(0)], strict=True)]
    return c


def transform_weights(w: np.ndarray, m: int) -> np.ndarray:
    """(OC, IC, 3, 3) -> (n, n, OC, IC) in float64."""
    g = np.array(transform(m).g, dtype=np.float64)
    return np.asarray(np.einsum("ua,ocab,vb->uvoc", g, w.astype(np.float64), g, optimize=True))


def apply(matrix: Matrix, sources: Sequence[str], targets: Sequence[str], prefix: str) -> str:
    """C statements that set targets[i] = sum_j matrix[i][j] * sources[j] over vectors. Rows that
    are mirror images (points a and -a) share their even and odd parts, named from `prefix`."""
    lines, done = [], set[int]()
    for i, row in enumerate(matrix):
        if i in done:
            continue
        mirror = next((k for k in range(i + 1, len(matrix)) if _mirrors(row, matrix[k])), None)
        if mirror is None:
            lines.append(f"{targets[i]} = {_combination(row, sources)};")
            continue
        done.add(mirror)
        pair = matrix[mirror]
        even = [(x + y) / 2 for x, y in zip(row, pair, strict=True)]
        odd = [(x - y) / 2 for x, y in zip(row, pair, strict=True)]
        lines.append(
            f"{{ const vf {prefix}e = {_combination(even, sources)}, "
            f"{prefix}o = {_combination(odd, sources)}; "
            f"{targets[i]} = {prefix}e + {prefix}o; {targets[mirror]} = {prefix}e - {prefix}o; }}"
        )
    return " ".join(lines)


def _mirrors(a: Sequence[Fraction], b: Sequence[Fraction]) -> bool:
    """b has a's magnitudes and both share at least two terms to save on."""
    same = all(abs(x) == abs(y) for x, y in zip(a, b, strict=True))
    return same and a != b and sum(x != 0 for x in a) > 2


def _combination(row: Sequence[Fraction], sources: Sequence[str]) -> str:
    text = ""
    for c, s in sorted(zip(row, sources, strict=True), key=lambda p: p[0] != 1):
        if c == 0:
            continue
        term = s if abs(c) == 1 else f"{float(abs(c))!r}f*{s}"
        text += f" {'-' if c < 0 else '+'} {term}" if text else ("-" if c < 0 else "") + term
    return text or "(vf){0}"
