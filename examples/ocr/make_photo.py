"""Makes photo.jpg: a café's sign on a brick wall, as a phone would take it.

    python examples/ocr/make_photo.py        (needs pillow, opencv-python-headless, matplotlib)

The scene is built flat, with a height map for the relief of the bricks, lit from the upper left,
seen in perspective, and passed through a simple camera: vignette, lens blur, sensor noise, JPEG.
Everything is drawn from one seed; the picture holds nothing that belongs to anybody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Array = npt.NDArray[Any]  # float32 where size matters

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
WALL = (1500, 2000)  # height, width of the flat scene in pixels
BRICK = (78, 236)  # height, width of a brick with its mortar
MORTAR = 11
PHOTO = (1280, 960)  # width, height
SIGN = (430, 170, 1140, 1130)  # left, top, width, height on the wall
CREAM = (243, 232, 205)
GOLD = (222, 178, 92)

# Font file, size in pixels, colour, baseline's y on the sign, text.
LETTERING = [
    ("STIXGeneralBolIta.ttf", 142, CREAM, 226, "Harbour & Vine"),
    ("DejaVuSerif.ttf", 64, GOLD, 328, "COFFEE  ROASTERS"),
    ("DejaVuSans-Bold.ttf", 62, CREAM, 510, "OPEN EVERY DAY"),
    ("DejaVuSans.ttf", 53, CREAM, 614, "Monday  to  Friday   7:30 - 18:00"),
    ("DejaVuSans.ttf", 53, CREAM, 706, "Saturday,  Sunday   9:00 - 16:30"),
    ("STIXGeneralItalic.ttf", 82, GOLD, 852, "fresh bread, soup & cake"),
    ("DejaVuSansMono.ttf", 50, CREAM, 956, "24 Quay Street   Tel. 555-0142"),
    ("STIXGeneral.ttf", 58, CREAM, 1042, "Please ring the bell for deliveries"),
]


def main() -> None:
    """Write photo.jpg beside this file."""
    rng = np.random.default_rng(1987)
    colour, height = brick_wall(rng)
    light = relief_light(height)
    scene = colour * light[..., None]
    scene = hang_sign(scene, rng)
    scene *= window_light(rng)[..., None]
    photo = camera(perspective(scene), rng)
    path = Path(__file__).with_name("photo.jpg")
    cv2.imwrite(str(path), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 86])
    print(f"wrote {path}")


def cloud(
    rng: np.random.Generator, shape: tuple[int, int], grain: float, octaves: int = 4
) -> Array:
    """Smooth noise [h, w] with mean 0 and deviation 1; `grain` is its largest size in pixels."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        cells = [max(2, round(side / grain * 2**octave)) for side in shape]
        noise = rng.standard_normal(cells).astype(np.float32)
        total += cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC) / 2**octave
    return (total - total.mean()) / total.std()


def brick_wall(rng: np.random.Generator) -> tuple[Array, Array]:
    """Colour [h, w, 3] in 0..1 and height [h, w] in pixels of a wall in running bond."""
    y, x = np.mgrid[: WALL[0], : WALL[1]].astype(np.float32)
    y += 2.2 * cloud(rng, WALL, 160)  # nobody lays bricks with a ruler
    x += 2.2 * cloud(rng, WALL, 160)
    row = np.floor(y / BRICK[0])
    x += (row % 2) * BRICK[1] / 2
    column = np.floor(x / BRICK[1])
    edge = np.minimum.reduce(
        [y % BRICK[0], BRICK[0] - y % BRICK[0], x % BRICK[1], BRICK[1] - x % BRICK[1]]
    )
    face = np.clip((edge - MORTAR / 2 + 1.5 * cloud(rng, WALL, 14)) / 5, 0, 1)

    # One tone for every brick, from a table indexed by its row and column.
    index = (row * 31 + column * 17).astype(int) % 997
    tone = rng.normal(0, 1, (997, 1)).astype(np.float32)[index]
    brick = np.array([0.53, 0.27, 0.20]) + tone * np.array([0.055, 0.042, 0.034])
    brick *= 1 + 0.10 * cloud(rng, WALL, 60)[..., None] + 0.05 * cloud(rng, WALL, 6)[..., None]
    mortar = np.array([0.62, 0.59, 0.54]) * (1 + 0.07 * cloud(rng, WALL, 9)[..., None])
    colour = mortar + face[..., None] * (brick - mortar)
    height = 7 * face + 0.9 * cloud(rng, WALL, 30) + 0.45 * cloud(rng, WALL, 5)
    return colour.astype(np.float32), height.astype(np.float32)


def relief_light(height: Array) -> Array:
    """How much light each point of a height map [h, w] gets from the upper left."""
    smooth = cv2.GaussianBlur(height, (0, 0), 1.2)
    slope = cv2.Sobel(smooth, cv2.CV_32F, 1, 0) + cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    hollow = cv2.GaussianBlur(height, (0, 0), 12) - smooth
    return np.clip(1 + 0.028 * slope - 0.03 * hollow, 0.25, 1.7)


def hang_sign(wall: Array, rng: np.random.Generator) -> Array:
    """The wall with the sign on it and the sign's shadow."""
    left, top, width, height = SIGN
    sign = paint_sign(rng)
    shadow = np.zeros(WALL, np.float32)
    cv2.rectangle(shadow, (left + 18, top + 34), (left + width + 30, top + height + 52), 1.0, -1)
    wall = wall * (1 - 0.62 * cv2.GaussianBlur(shadow, (0, 0), 16))[..., None]
    wall[top : top + height, left : left + width] = sign
    return wall


def paint_sign(rng: np.random.Generator) -> Array:
    """The sign [h, w, 3]: lettering on green painted boards in a wooden frame."""
    width, height = SIGN[2:]
    canvas = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for file, size, colour, baseline, text in LETTERING:
        font = ImageFont.truetype(str(FONTS / file), size)
        draw.text((width / 2, baseline), text, colour, font, anchor="ms")
    for y in (386, 772):
        draw.line([(250, y), (width - 250, y)], GOLD, 4)
        draw.regular_polygon((width / 2, y, 13), 4, rotation=45, fill=GOLD)
    draw.rounded_rectangle((62, 62, width - 62, height - 62), 28, outline=GOLD, width=5)
    letters = np.asarray(canvas, np.float32) / 255

    shape = (height, width)
    streaks = cv2.resize(cloud(rng, (height, 40), 12), (width, height))  # brush marks run sideways
    board = (
        np.array([0.085, 0.215, 0.175])
        * (1 + 0.07 * streaks + 0.06 * cloud(rng, shape, 240))[..., None]
    )
    worn = np.clip(1.04 - 0.09 * np.abs(cloud(rng, shape, 5)) - 0.03 * cloud(rng, shape, 90), 0, 1)
    cover = letters[..., 3] * worn  # the paint of the letters has thin spots
    board += cover[..., None] * (letters[..., :3] - board)

    relief = 1.6 * cover + 0.3 * streaks
    rows = np.arange(height)
    for seam in range(height // 5, height, height // 5):  # the joints of the boards
        relief -= 7 * np.exp(-(((rows - seam) / 2.2) ** 2))[:, None]
    board *= relief_light(relief.astype(np.float32))[..., None]
    return frame(board.astype(np.float32), rng)


def frame(board: Array, rng: np.random.Generator, width: int = 34) -> Array:
    """The board with a wooden frame of `width` pixels around it and the frame's inner shadow."""
    height, length = board.shape[:2]
    inside = np.zeros((height, length), np.float32)
    inside[width : height - width, width : length - width] = 1
    shade = np.roll(1 - inside, (12, 9), axis=(0, 1))
    board = board * (1 - 0.5 * cv2.GaussianBlur(shade, (0, 0), 8))[..., None]
    grain = cv2.resize(cloud(rng, (height, 60), 7), (length, height))
    wood = np.array([0.42, 0.27, 0.15]) * (1 + 0.13 * grain)[..., None]
    rim = cv2.GaussianBlur(inside, (0, 0), 5)
    bevel = 4 * np.exp(-(((rim - 0.25) / 0.2) ** 2))
    bevel[:6], bevel[:, :6], bevel[-6:], bevel[:, -6:] = 2, 2, -3, -3
    wood = wood * relief_light(bevel.astype(np.float32))[..., None]
    return (inside[..., None] * board + (1 - inside[..., None]) * wood).astype(np.float32)


def window_light(rng: np.random.Generator) -> Array:
    """Late sun [h, w]: brighter at the upper left, with the soft shadow of a branch on it."""
    y, x = np.mgrid[: WALL[0], : WALL[1]].astype(np.float32)
    fall = 1.18 - 0.30 * x / WALL[1] - 0.22 * y / WALL[0]
    leaves = np.zeros(WALL, np.float32)
    for _ in range(150):
        along, off = rng.uniform(0, 1), rng.normal(0, 105)
        centre = (2010 - 900 * along + 0.5 * off, 40 + 520 * along**1.6 + off)
        axes = (rng.uniform(26, 46), rng.uniform(9, 17))
        angle = rng.uniform(0, 180)
        cv2.ellipse(leaves, (centre, (2 * axes[0], 2 * axes[1]), angle), 1.0, -1, cv2.LINE_AA)
    return fall * (1 - 0.45 * cv2.GaussianBlur(leaves, (0, 0), 11))


def perspective(scene: Array) -> Array:
    """The scene as seen from below and from the left, [h, w, 3] of the photo's size."""
    height, width = scene.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    seen = np.array([[-130, -150], [1430, 60], [1390, 1010], [-190, 1130]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, seen)
    return cv2.warpPerspective(
        scene, matrix, PHOTO, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT
    )


def camera(scene: Array, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """What a phone makes of the scene: uint8 [h, w, 3] in RGB."""
    height, width = scene.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    scene = scene * (1 - 0.17 * (x**2 + y**2))[..., None] * np.array([1.07, 1.0, 0.90])
    bloom = cv2.GaussianBlur(np.clip(scene - 0.6, 0, None), (0, 0), 18)
    scene = cv2.GaussianBlur(scene + 0.35 * bloom, (0, 0), 0.85)
    scene = scene + rng.normal(0, 1, scene.shape) * (0.008 + 0.014 * np.sqrt(np.clip(scene, 0, 1)))
    return (255 * np.clip(scene, 0, 1) ** 0.80).astype(np.uint8)


if __name__ == "__main__":
    main()
