"""A convolution's input as patches in shared memory: each pixel is copied once, not once per tap.

A block's rows are a box of the result's pixels. All that its taps read of some channels is a larger
box of x, the *patch*: it is copied to shared memory as [pixel][channel], and k counts (channels of
a patch, kernel row, kernel column, channel), so that the k-tiles of all taps read one patch, each
shifted by its tap. Rows of a fragment are pixels of the patch wherever they lie (`ldmatrix` takes
any eight addresses). While one patch is multiplied the next channels' comes.

With `tile_loads` a tile of 128 pixels reads 9 x 128 pixels for a 3x3 kernel; a patch of 8 x 16 has
180.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from enginesmith.kernels.base import Size, ceildiv, mul
from enginesmith.kernels.cuda_nest import Values
from enginesmith.kernels.tile_loads import Tile


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels of the result (images, rows, columns) that a block computes, and the taps."""

    size: tuple[int, int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]

    @property
    def patch(self) -> tuple[int, int, int]:
        """Pixels of x that its taps reach: images, rows, columns."""
        h, w = (
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(
                self.size[1:], self.strides, self.kernel, self.dilations, strict=True
            )
        )
        return self.size[0], h, w

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    def counts(self, plane: tuple[Size, Size, Size]) -> tuple[Size, Size, Size]:
        """Boxes along images, rows and columns of the result's pixels."""
        n, h, w = (ceildiv(p, s) for p, s in zip(plane, self.size, strict=True))
        return n, h, w


@dataclass(frozen=True, slots=True)
class Patch:
    """Loads x, "a" of the product. slot 0 of the problem is x (n, c, h, w), its channels
    consecutive and a multiple of a k-tile. plane, outputs: pixels (n, h, w) of x and of the result;
    x_strides: of (n, h, w); warps: rows of a warp. at: byte of shared memory where patches begin;
    patches: 2, or 1 if one holds all channels."""

    tile: Tile
    box: Box
    plane: tuple[Size, Size, Size]
    outputs: tuple[Size, Size, Size]
    pads: tuple[int, int]
    x_strides: tuple[Size, Size, Size]
    warp_rows: int
    at: int
    patches: int
    early: ClassVar[bool] = False
    by_rows: ClassVar[bool] = True
    functions: ClassVar[str] = ""
    place: ClassVar[str] = ""
    mapped: ClassVar[str] = "pixel_of"

    @property
    def pixels(self) -> int:
        return prod(self.box.patch)

    @property
    def bytes(self) -> int:
        """Of a patch."""
        return self.pixels * self.tile.depth

    @property
    def tiles(self) -> Size:
        return mul(*self.box.counts(self.outputs))

    @property
    def row(self) -> str:
        """C++: the pixel of the patch that is row i of a warp's fragments at this tap."""
        return "a_pixel[i] + a_shift"

    def _buffer(self, slab: str) -> str:
        parity = f" + {slab} % 2 * {self.bytes}" if self.patches > 1 else ""
        return f"shared + {self.at}{parity}"

    @property
    def now(self) -> str:
        """C++: the patch of this k-tile."""
        return self._buffer("a_slab")

    def setup(self, values: Values) -> str:
        """This block's box, this lane's pixels, and counters of taps and slabs (the channels of a
        patch): of what is multiplied and, `a_next`, of what is copied."""
        b, (images, bh, bw), (_, ph, pw) = self.box, self.box.size, self.box.patch
        _, counts_h, counts_w = (values.value(c) for c in b.counts(self.outputs))
        out = [values.value(s) for s in self.outputs]
        return f"""\
const int a_n0 = m_tile / ({counts_w} * {counts_h}) * {images};
const int a_y0 = m_tile / {counts_w} % {counts_h} * {bh}, a_x0 = m_tile % {counts_w} * {bw};
const auto pixel_of = [&](int row) {{  /* of the result; -1: there is none */
  const int m = row - m0, image = m / {bh * bw};
  const int n = a_n0 + image, y = a_y0 + m / {bw} % {bh}, x = a_x0 + m % {bw};
  const bool inside = image < {images} && n < {out[0]} && y < {out[1]} && x < {out[2]};
  return inside ? (n * {out[1]} + y) * {out[2]} + x : -1;
}};
int a_pixel[{self.warp_rows // 16}];
UNROLL for (int i = 0; i < {self.warp_rows // 16}; i++) {{
  const int m = imin(warp_m * {self.warp_rows} + i * 16 + lane % 16, {prod(b.size) - 1});
  a_pixel[i] = (m / {bh * bw} * {ph} + m / {bw} % {bh} * {b.strides[0]}) * {pw}
      + m % {bw} * {b.strides[1]};
}}
int a_slab = first / {b.taps}, a_u = first % {b.taps} / {b.kernel[1]};
int a_v = first % {b.kernel[1]}, a_shift = a_u * {b.dilations[0] * pw} + a_v * {b.dilations[1]};
int a_next = first % {b.taps}, a_next_slab = a_slab;
bool a_fresh = true;
"""

    @property
    def advance(self) -> str:
        """C++: on to the next k-tile's tap."""
        b, pw = self.box, self.box.patch[2]
        return f"""\
if (++a_v == {b.kernel[1]}) {{
  a_v = 0;
  if (++a_u == {b.kernel[0]}) {{ a_u = 0; a_slab++; }}
}}
a_shift = a_u * {b.dilations[0] * pw} + a_v * {b.dilations[1]};
"""

    def load(self, values: Values) -> str:
        """The next patch when its first tap is due."""
        t, b, (_, ph, pw) = self.tile, self.box, self.box.patch
        chunks, vector = t.depth // 16, 16 // t.item
        count = self.pixels * chunks
        (n, h, w), (sn, sh, sw) = (
            [values.value(s) for s in sizes] for sizes in (self.plane, self.x_strides)
        )
        return f"""\
if (a_fresh || a_next == 0) {{
  a_fresh = false;
  char *const patch = {self._buffer("a_next_slab")};
  for (int i = tid; i < {count}; i += {t.threads}) {{
    const int pixel = i / {chunks}, piece = i % {chunks};
    const int image = a_n0 + pixel / {ph * pw};
    const int y = a_y0 * {b.strides[0]} - {self.pads[0]} + pixel / {pw} % {ph};
    const int x = a_x0 * {b.strides[1]} - {self.pads[1]} + pixel % {pw};
    const bool valid = image < {n} && (uint32_t)y < (uint32_t){h} && (uint32_t)x < (uint32_t){w};
    cp_async16(patch + swizzled<{t.depth}>(pixel, piece),
               p0 + image * {sn} + y * {sh} + x * {sw} + a_next_slab * {t.bk} + piece * {vector},
               valid);
  }}
}}
if (++a_next == {b.taps}) {{ a_next = 0; a_next_slab++; }}
"""
