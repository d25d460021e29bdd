"""A run's course as a picture, losses, learning rate and gradient norm: SVG written here, PNG through matplotlib."""

import math
import os
import warnings
from dataclasses import dataclass
from xml.sax.saxutils import escape

from llamacy.errors import LlamacyError, UsageError, printable
from llamacy.formats.atomic import atomic_write

WIDTH, HEIGHT = 800, 450
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
# Below the losses, one below the other, each with its own numbers.
SMALL = 170
# A curve of more points than this says nothing more at 800 pixels.
MAX_POINTS = 2000
STYLE = {"step": "#b8c4d6", "mean": "#1f5fbf", "validation": "#d1495b", "learning rate": "#2a8c6a",
         "gradient norm": "#8a5fbf"}  # fmt: skip


def check_plot(path):
    """Refuse before training what could not be drawn after it: UsageError for an ending, LlamacyError for no PNG."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".svg", ".png"):
        raise UsageError(f"--plot: wanted a name ending in .svg or .png, got {path!r}")
    if ending == ".png":
        _pyplot()


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise LlamacyError(
            "--plot: a PNG needs matplotlib: pip install 'llamacy[plot]', or choose a name ending in .svg"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@dataclass(frozen=True)
class Panel:
    """Curves over the steps that share an axis: {name: [(step, value), ...]}, each of finite numbers."""

    label: str
    curves: dict
    height: int
    top: int = 20

    def low_high(self):
        """Return the ends of the axis, which has an extent even where nothing was measured."""
        values = [y for curve in self.curves.values() for _, y in curve]
        low = min(0.0, min(values, default=0.0))
        return low, max(max(values, default=0.0) * 1.05, low + 1e-6)


def panels(losses, validation=(), rates=(), grad_norms=()):
    """Return the Panels of a run: numbers for each step, from step 1, NaN for none; validation ((step, loss), ...)."""
    curves = {"step": thinned(_points(losses)), "mean": thinned(_points(smoothed(losses)))}
    if validation:
        curves["validation"] = [(step, loss) for step, loss in validation if math.isfinite(loss)]
    found = [Panel("loss", curves, HEIGHT, TOP)]
    for name, numbers in (("learning rate", rates), ("gradient norm", grad_norms)):
        if points := _points(numbers):
            found.append(Panel(name, {name: thinned(points)}, SMALL))
    return found


def write_plot(path, title, losses, validation=(), rates=(), grad_norms=()):
    """Draw a run into an SVG or PNG file; see panels."""
    parts = panels(losses, validation, rates, grad_norms)
    with atomic_write(path) as file:
        if path.lower().endswith(".png"):
            _write_png(file, title, parts)
        else:
            file.write(svg(title, parts).encode())


def _points(numbers):
    return [(step, float(value)) for step, value in enumerate(numbers, 1) if math.isfinite(value)]


def smoothed(losses):
    """Return the running mean of `losses` over about a twentieth of the run, without a lag at its beginning.

    Steps without a loss, NaN, have no mean and change none.
    """
    keep = 1 - 1 / max(1.0, len(losses) / 20)
    total = weight = 0.0
    means = []
    for loss in losses:
        if math.isfinite(loss):
            total, weight = keep * total + loss, keep * weight + 1
        means.append(total / weight if math.isfinite(loss) else math.nan)
    return means


def thinned(points):
    """Return at most MAX_POINTS of `points`, the first and the last among them."""
    stride = math.ceil(len(points) / MAX_POINTS)
    return points[: -1 : stride or 1] + points[-1:]


def ticks(low, high, n_wanted=5):
    """Return round numbers (1, 2 or 5 times a power of ten apart) that lie from `low` to `high`."""
    step = 10.0 ** math.floor(math.log10((high - low) / n_wanted))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= n_wanted)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def svg(title, parts):
    """Return Panels as the text of an SVG picture, the title above them."""
    end = max([2, *(x for panel in parts for curve in panel.curves.values() for x, _ in curve)])
    height = sum(panel.height for panel in parts)
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(printable(title))}</text>',
    ]
    at = 0
    for panel in parts:
        rows += _svg_panel(panel, at, end)
        at += panel.height
    return "\n".join([*rows, "</svg>", ""])


def _svg_panel(panel, at, end):
    """Return the lines of one Panel that begins at height `at`; end: the last step of the axis."""
    low, high = panel.low_high()
    top, bottom = at + panel.top, at + panel.height - BOTTOM

    def place(x, y):
        across = LEFT + (x - 1) / (end - 1) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(top + (high - y) / (high - low) * (bottom - top), 1)

    middle = (top + bottom) // 2
    rows = [
        f'<text x="{WIDTH // 2}" y="{at + panel.height - 10}" text-anchor="middle">step</text>',
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{panel.label}</text>',
    ]
    for value in ticks(low, high, 5 if panel.height > SMALL else 4):
        x, y = place(1, value)
        rows.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        rows.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{value:.4g}</text>')
    for value in sorted({max(1, round(value)) for value in ticks(1, end)}):
        x, y = place(value, low)
        rows.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{value}</text>')
    for number, (name, curve) in enumerate(panel.curves.items()):
        places = [place(*point) for point in curve]
        rows += _svg_curve(name, places, WIDTH - RIGHT - 90, top + 6 + 18 * number, len(panel.curves) > 1)
    return rows


def _svg_curve(name, places, x, y, named):
    """Return a line through `places` (a dot for a single one) and, where it is named, its entry in the legend."""
    stroke = f'fill="none" stroke="{STYLE[name]}" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"'
    if len(places) == 1:
        places = [places[0], (places[0][0] + 0.1, places[0][1])]
    line = " ".join(f"{across},{down}" for across, down in places)
    entry = [f'<path d="M{x} {y}h20" {stroke}/>', f'<text x="{x + 26}" y="{y + 4}">{name}</text>']
    return [f'<polyline points="{line}" {stroke}/>', *(entry if named else [])]


def _write_png(file, title, parts):
    pyplot = _pyplot()
    height = sum(panel.height for panel in parts)
    figure, rows = pyplot.subplots(len(parts), figsize=(WIDTH / 100, height / 100), dpi=150, squeeze=False, sharex=True,
                                   height_ratios=[panel.height for panel in parts], layout="constrained")  # fmt: skip
    for panel, axes in zip(parts, rows[:, 0], strict=True):
        for name, curve in panel.curves.items():
            steps, values = [x for x, _ in curve], [y for _, y in curve]
            axes.plot(steps, values, color=STYLE[name], label=name, marker="." if len(curve) == 1 else "")
        axes.set(ylabel=panel.label, ylim=panel.low_high())
        axes.grid(alpha=0.3)
    rows[0, 0].set_title(title.replace("$", r"\$"))
    rows[0, 0].legend(loc="upper right")
    rows[-1, 0].set_xlabel("step")
    with warnings.catch_warnings():  # of a font without the title's characters
        warnings.simplefilter("ignore")
        figure.savefig(file, format="png")
    pyplot.close(figure)
