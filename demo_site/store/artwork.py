"""The prints themselves: drawn from an article number, the same every time, with Pillow."""

import math
import random
from collections.abc import Callable

from PIL import Image, ImageColor, ImageDraw

from demo_site.store.catalogue import PALETTES

RGB = tuple[int, int, int]
Painter = Callable[[ImageDraw.ImageDraw, random.Random, list[RGB], int, int], None]


def draw_print(sku: str, category: str, width: int = 1200) -> Image.Image:
    """The print of an article, 4:5, `width` pixels wide."""
    height = width * 5 // 4
    colours = [_rgb(code) for code in PALETTES[category]]
    sheet = Image.new("RGB", (width, height), (250, 248, 244))
    frame = width // 12
    inner = Image.new("RGB", (width - 2 * frame, height - 2 * frame), colours[0])
    PAINTERS[category](ImageDraw.Draw(inner), random.Random(sku), colours, *inner.size)
    sheet.paste(inner, (frame, frame))
    return sheet


def _rgb(code: str) -> RGB:
    red, green, blue = ImageColor.getrgb(code)[:3]
    return red, green, blue


def _landscape(draw: ImageDraw.ImageDraw, rng: random.Random, colours: list[RGB], width: int, height: int) -> None:
    sun = rng.uniform(0.08, 0.16) * width
    x, y = rng.uniform(0.25, 0.75) * width, rng.uniform(0.18, 0.34) * height
    draw.ellipse((x - sun, y - sun, x + sun, y + sun), fill=colours[1])
    for layer, colour in enumerate(colours[1:], start=1):
        base = height * (0.28 + 0.14 * layer)
        waves = [(rng.uniform(1, 4), rng.uniform(0, math.tau), rng.uniform(0.01, 0.05)) for _ in range(3)]
        ridge = [
            (
                x,
                base
                - height * sum(size * math.sin(turns * math.pi * x / width + begin) for turns, begin, size in waves),
            )
            for x in range(0, width + 8, 8)
        ]
        draw.polygon([(0, height), *ridge, (width, height)], fill=colour)


def _botanical(draw: ImageDraw.ImageDraw, rng: random.Random, colours: list[RGB], width: int, height: int) -> None:
    bend = rng.uniform(-0.25, 0.25) * width
    leaves = rng.randrange(9, 16)
    stem = [(width / 2 + bend * (step / 40) ** 2, height * (0.94 - 0.84 * step / 40)) for step in range(41)]
    draw.line(stem, fill=colours[4], width=max(width // 140, 2), joint="curve")
    for leaf in range(leaves):
        x, y = stem[4 + leaf * 36 // leaves]
        length = width * (0.34 - 0.22 * leaf / leaves) * rng.uniform(0.85, 1.1)
        for side in (-1, 1):
            angle = math.radians(rng.uniform(28, 46))
            _leaf(draw, (x, y), length, (side * math.cos(angle), -math.sin(angle)), rng.choice(colours[1:5]))


def _leaf(
    draw: ImageDraw.ImageDraw, root: tuple[float, float], length: float, along: tuple[float, float], colour: RGB
) -> None:
    edge: list[tuple[float, float]] = []
    for step in [*range(21), *range(20, -1, -1)]:
        part = step / 20
        wide = math.sin(math.pi * part) * length * 0.16 * (1 if len(edge) <= 20 else -1)
        edge.append(
            (root[0] + along[0] * length * part - along[1] * wide, root[1] + along[1] * length * part + along[0] * wide)
        )
    draw.polygon(edge, fill=colour)


def _geometry(draw: ImageDraw.ImageDraw, rng: random.Random, colours: list[RGB], width: int, height: int) -> None:
    columns, rows = rng.choice(((2, 3), (3, 4), (4, 5)))
    wide, high = width / columns, height / rows
    for column in range(columns):
        for row in range(rows):
            box = (column * wide, row * high, (column + 1) * wide, (row + 1) * high)
            back, front = rng.sample(colours, 2)
            draw.rectangle(box, fill=back)
            match rng.randrange(4):
                case 0:
                    draw.ellipse(box, fill=front)
                case 1:
                    start = 90 * rng.randrange(4)
                    draw.pieslice((box[0] - wide, box[1] - high, box[2], box[3]), start, start + 90, fill=front)
                case 2:
                    draw.polygon([box[:2], (box[2], box[1]), (box[0], box[3])], fill=front)
                case _:
                    draw.rectangle(
                        (box[0] + wide / 4, box[1] + high / 4, box[2] - wide / 4, box[3] - high / 4), fill=front
                    )


def _night_sky(draw: ImageDraw.ImageDraw, rng: random.Random, colours: list[RGB], width: int, height: int) -> None:
    for line in range(height):
        part = line / height
        shade = tuple(round(a + (b - a) * part) for a, b in zip(colours[5], colours[3], strict=True))
        draw.line([(0, line), (width, line)], fill=(shade[0], shade[1], shade[2]))
    for _ in range(260):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height * 0.8), rng.uniform(0.4, 1.9) * width / 800
        draw.ellipse((x - size, y - size, x + size, y + size), fill=rng.choice(colours[:2]))
    moon = rng.uniform(0.07, 0.2) * width
    x, y = rng.uniform(0.25, 0.75) * width, rng.uniform(0.18, 0.42) * height
    draw.ellipse((x - moon, y - moon, x + moon, y + moon), fill=colours[0])
    roof = 0.0
    while roof < width:
        wide = rng.uniform(0.06, 0.16) * width
        high = rng.uniform(0.06, 0.2) * height
        draw.rectangle((roof, height - high, roof + wide, height), fill=colours[4])
        roof += wide


PAINTERS: dict[str, Painter] = {
    "landscapes": _landscape,
    "botanicals": _botanical,
    "geometry": _geometry,
    "night-sky": _night_sky,
}
