"""The one visual language of all figures.

Colours are Okabe and Ito's, which people with any common colour blindness can tell apart ("Color Universal Design", 2008). A figure has
its own light ground, so that it reads the same on a light page, on a dark page and on paper.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, NullFormatter

from ..storage import write_atomically
from .numbers import number

P = ParamSpec("P")

GROUND, INK, MUTED, LINES, PALE = "#fcfcfa", "#1d2127", "#5b626c", "#e4e6e9", "#c9cdd2"
FULL_PRECISION, UNIFORM, SEARCHED, TUNED, OTHER = "#3d434b", "#d55e00", "#0072b2", "#009e73", "#8a8f96"
WIDTH = 7.0  # inches
DPI = 160

# Colour by what a layer does; roles are more than a reader can tell apart by colour, their families are not.
FAMILIES: tuple[tuple[str, str, str], ...] = (
    (r"attention", "attention", "#0072b2"),
    (r"feed-forward", "feed-forward", "#e69f00"),
    (r"residual", "residual convolution", "#009e73"),
    (r"time|modulation|embed", "time and conditioning", "#cc79a7"),
    (r"^(input|output)", "input and output", "#d55e00"),
    (r"sampling|skip", "resampling and skip", "#56b4e9"),
)
SEQUENTIAL = LinearSegmentedColormap.from_list("sedaq", ["#f1f5f9", "#b9d5ea", "#6aaed6", "#2478b5", "#0b3c6b"])

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.facecolor": GROUND,
    "figure.facecolor": GROUND,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINES,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2.0,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function under the common settings and leave the caller's settings alone."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return drawn


@dataclass(frozen=True)
class Spot:
    """A rectangle of a figure, in its data coordinates, and what a reader is told who points at it."""

    axes: Axes
    x: tuple[float, float]
    y: tuple[float, float]
    text: str


class PageFigure(Figure):
    """A figure that says its values where one points at it."""

    spots: list[Spot]

    def tell(self, axes: Axes, x: tuple[float, float], y: tuple[float, float], text: str) -> None:
        self.spots.append(Spot(axes, x, y, text))

    def tell_point(self, axes: Axes, x: float, y: float, text: str) -> None:
        """A spot the size of a marker."""
        self.spots.append(Spot(axes, (x, x), (y, y), text))


MIN_SPOT = 0.012  # of the figure's width, so that a pointer finds it


def spot_boxes(figure: Figure) -> list[dict[str, Any]]:
    """Every spot as percentages of a drawn figure: {left, top, width, height, text}; those outside of their axes are left out."""
    boxes = []
    width, height = figure.get_size_inches() * figure.dpi
    for spot in getattr(figure, "spots", ()):
        corners = spot.axes.transData.transform(np.array([(spot.x[0], spot.y[0]), (spot.x[1], spot.y[1])]))
        frame = spot.axes.get_window_extent()
        if not np.isfinite(corners).all():
            continue
        (left, right), (bottom, top) = (sorted(corners[:, axis]) for axis in (0, 1))
        left, right = max(left, frame.x0), min(right, frame.x1)
        bottom, top = max(bottom, frame.y0), min(top, frame.y1)
        if right < left or top < bottom:
            continue
        min_width = MIN_SPOT * width
        grow_x, grow_y = max(0.0, min_width - (right - left)) / 2, max(0.0, min_width - (top - bottom)) / 2
        boxes.append(
            {
                "left": round(100 * (left - grow_x) / width, 2),
                "top": round(100 * (1 - (top + grow_y) / height), 2),
                "width": round(100 * (right - left + 2 * grow_x) / width, 2),
                "height": round(100 * (top - bottom + 2 * grow_y) / height, 2),
                "text": spot.text,
            }
        )
    return boxes


def new_figure(height: float, width: float = WIDTH) -> PageFigure:
    """An empty figure, in inches."""
    figure = PageFigure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08), facecolor=GROUND)
    figure.spots = []
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(buffer, format="png", dpi=DPI, facecolor=GROUND, metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG, letters as outlines. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({**_RC, "svg.hashsalt": "sedaq", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", facecolor=GROUND, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> str:
    """Write the figure to `path` and return the same bytes in base64, for embedding. Its layout, which takes half the time, stays as it is then."""
    data = png_bytes(figure)
    figure.set_layout_engine("none")
    write_atomically(path, data)
    return base64.b64encode(data).decode()


def family(role: str) -> tuple[str, str]:
    """Name and colour of the family that a role belongs to."""
    return next(((name, colour) for pattern, name, colour in FAMILIES if re.search(pattern, role)), ("other", OTHER))


def variant_colour(name: str) -> str:
    """Colour of a compared model: the same in every figure."""
    lowered = name.lower()
    for part, colour in (("full", FULL_PRECISION), ("uniform", UNIFORM), ("tuned", TUNED), ("search", SEARCHED)):
        if part in lowered:
            return colour
    return OTHER


def rate_colour(bits_per_weight: float) -> tuple[float, float, float]:
    """Colour of a rate, from pale at one bit to dark at sixteen, logarithmic; the same in every figure."""
    if not math.isfinite(bits_per_weight):
        return to_rgb(PALE)
    place = min(max(math.log2(max(bits_per_weight, 1.0)) / 4, 0.0), 1.0)
    return to_rgb(SEQUENTIAL(0.08 + 0.92 * place))


def ink_on(colour: tuple[float, float, float]) -> str:
    """Dark or white text, whichever stands out more from `colour`."""
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in colour]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return INK if luminance > 0.22 else "white"


def shorten(name: str, width: int = 36) -> str:
    """A path with its longest words cut to three letters until it fits; numbers and the last word stay, so that layers stay apart.

    >>> shorten("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1")
    'tra….0.norm1.emb.tim….linear_1'
    """
    words = name.split(".")
    while len(".".join(words)) > width:
        longest = max(range(len(words) - 1), key=lambda place: len(words[place]), default=0)
        if len(words[longest]) <= 4 or len(words) == 1:
            return f"{name[: width // 2]}…{name[-(width - 1 - width // 2) :]}"
        words[longest] = words[longest][:3] + "…"
    return ".".join(words)


def spread(values: Iterable[float]) -> float:
    """Greatest over least of the finite values; 1 where one of them is not positive."""
    finite = [value for value in values if math.isfinite(value)]
    return max(finite) / min(finite) if finite and min(finite) > 0 else 1.0


def interval_line(axes: Axes, low: float, high: float, place: float) -> None:
    """A horizontal interval at the height `place`."""
    axes.plot([low, high], [place, place], color=INK, linewidth=1.3, solid_capstyle="butt")


def log_if_wide(axes: Axes, axis: str, values: Iterable[float], ratio: float = 20) -> bool:
    """Make the "x" or "y" axis logarithmic, with plain numbers on it, where `values` span more than `ratio`."""
    if spread(values) <= ratio:
        return False
    axes.set(**{f"{axis}scale": "log"})
    plain_log(axes.xaxis if axis == "x" else axes.yaxis)
    return True


def widen_if_skewed(axes: Axes, values: Iterable[float], ratio: float = 20) -> str:
    """Make the x axis linear near zero and logarithmic beyond where the greatest of `values` dwarfs the middle one; say so for the label.

    Unlike a logarithmic axis it has room for zero, which many layers' costs are.
    """
    positive = [value for value in values if math.isfinite(value) and value > 0]
    if not positive or max(positive) <= ratio * float(np.median(positive)):
        return ""
    threshold = 10.0 ** math.floor(math.log10(max(float(np.median(positive)), max(positive) / 1e5)))
    axes.set_xscale("symlog", linthresh=threshold, linscale=0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))
    if axes.dataLim.x0 >= 0:
        axes.set_xlim(left=-0.1 * threshold)
    return f"\nlog scale above {number(threshold, 1)}"


def plain_log(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each decade, written as plain numbers."""
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if low > 0 else 9
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < (1.6 if isinstance(axis, XAxis) else 2.5) else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1) if value < 1000 else number(value, 3)))
    axis.set_minor_formatter(NullFormatter())


MAX_FACTORS = 5  # on an axis
# Of each decade, from dense to sparse.
STEPS: tuple[tuple[float, ...], ...] = (
    tuple(np.arange(10, 100) / 10),
    (*np.arange(10, 20, 2) / 10, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)


class _Factors(Locator):
    """Logarithms of round factors, 1 among them."""

    def __call__(self) -> list[float]:
        return self.tick_values(*sorted(self.axis.get_view_interval()))  # type: ignore[union-attr]

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        decades = 10.0 ** np.arange(math.floor(vmin / math.log(10)), math.ceil(vmax / math.log(10)) + 1)
        for steps in STEPS:
            logs = np.log(np.outer(decades, steps).ravel())
            ticks = logs[(logs >= vmin) & (logs <= vmax)]
            if len(ticks) <= MAX_FACTORS:
                break
        return [float(tick) for tick in ticks]


def as_factors(axis: Axis) -> None:
    """Logarithms on an axis are written as the factors that they stand for."""
    axis.set_major_locator(_Factors())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"×{float(f'{math.exp(value):.3g}'):g}"))
