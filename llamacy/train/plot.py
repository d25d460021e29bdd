"""The loss curve as a picture: SVG written here, PNG through matplotlib."""

import math
import os
from xml.sax.saxutils import escape

from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.atomic import atomic_write

WIDTH, HEIGHT = 800, 450
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
# A curve of more points than this says nothing more at 800 pixels.
MAX_POINTS = 2000
STYLE = {"step": "#b8c4d6", "mean": "#1f5fbf", "validation": "#d1495b"}


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


def write_plot(path, title, losses, validation=()):
    """Draw `losses` (one per step, from step 1) and `validation` ((step, loss), ...) into an SVG or PNG file."""
    curves = {"step": thinned(list(enumerate(losses, 1))), "mean": thinned(list(enumerate(smoothed(losses), 1)))}
    if validation:
        curves["validation"] = list(validation)
    write = _write_png if path.lower().endswith(".png") else _write_svg
    write(path, title, curves)


def smoothed(losses):
    """Return the running mean of `losses` over about a twentieth of the run, without a lag at its beginning."""
    keep = 1 - 1 / max(1.0, len(losses) / 20)
    total = weight = 0.0
    means = []
    for loss in losses:
        total, weight = keep * total + loss, keep * weight + 1
        means.append(total / weight)
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


def _write_svg(path, title, curves):
    points = [point for curve in curves.values() for point in curve]
    x_end = max(2, max(x for x, _ in points))
    y_high = max(y for _, y in points)
    y_low = min(0.0, min(y for _, y in points))
    # A run without any loss still has an axis.
    y_high = max(y_high * 1.05, y_low + 1e-6)

    def place(x, y):
        across = LEFT + (x - 1) / (x_end - 1) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
        f'<text x="{WIDTH // 2}" y="{HEIGHT - 10}" text-anchor="middle">step</text>',
        f'<text x="16" y="{HEIGHT // 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT // 2})">loss</text>',
    ]
    for value in ticks(y_low, y_high):
        x, y = place(1, value)
        rows.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        rows.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{value:.4g}</text>')
    for value in sorted({max(1, round(value)) for value in ticks(1, x_end)}):
        x, y = place(value, y_low)
        rows.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{value}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        rows += _svg_curve(name, [place(*point) for point in curve], WIDTH - RIGHT - 90, TOP + 6 + 18 * number)
    with atomic_write(path) as file:
        file.write("\n".join([*rows, "</svg>", ""]).encode())


def _svg_curve(name, places, x, y):
    """Return a line through `places` (a dot for a single one) and its entry in the legend."""
    colour = STYLE[name]
    if len(places) == 1:
        places = [places[0], (places[0][0] + 0.1, places[0][1])]
    line = " ".join(f"{x},{y}" for x, y in places)
    stroke = f'fill="none" stroke="{colour}" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"'
    return [
        f'<polyline points="{line}" {stroke}/>',
        f'<path d="M{x} {y}h20" {stroke}/>',
        f'<text x="{x + 26}" y="{y + 4}">{name}</text>',
    ]


def _write_png(path, title, curves):
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(WIDTH / 100, HEIGHT / 100), dpi=150)
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), color=STYLE[name], label=name, marker="." if len(curve) == 1 else "")
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    pyplot.close(figure)
