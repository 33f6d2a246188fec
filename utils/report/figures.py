"""What figures have in common: colours, and a small file."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's palette: told apart by the colour-blind too. A group keeps its place in it over all panels.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # of as many groups as there are colours, each


def line_styles(names: Sequence[str]) -> dict[str, dict]:
    """{name: what its line looks like}: told apart by colour, then by dashes."""
    return {name: {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}
            for place, name in enumerate(names)}


def save_small(figure: Figure, path: Path) -> None:
    """The figure as a PNG with a palette, a third of the bytes."""
    image = io.BytesIO()
    figure.savefig(image)
    colours = Image.open(image).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)
