"""The house style of all figures: sizes, colours, names of the body axes, and saving without a display."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito 2008, told apart with any kind of colour vision; black and yellow last: text is black, paper is white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
POSITION_COLOURS = "viridis"
DPI = 150
_STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of the house style on the Agg canvas, without pyplot's global state, so that threads may draw too.

    Args:
        width: inches, at 150 dots each; text is sized to be read where 10 inches are shown on 1,000 pixels.
        height: inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install anatomy-ssl[figures].") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure in the format of the path's suffix and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def axis_names(dimensions: int) -> list[str]:
    """Names of the axes of a position in mm, from low to high; radiographs have no body axes of their own."""
    if dimensions == 3:
        return ["left – right", "posterior – anterior", "inferior – superior"]
    return ["first image axis", "second image axis"]
