"""Who holds how many examples of which class."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from roundelay.data.split import Split
from roundelay.errors import ConfigError
from roundelay.report.plots.canvas import INK, canvas, save, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's "muted" scheme: nine colours and a grey that stay apart for colour-blind readers, unlike ones side by side.
CLASS_COLOURS = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#882255", "#999933", "#AA4499", "#BBBBBB",
)  # fmt: skip

MAX_BARS = 60
"""Up to so many clients get a bar each, set apart; more get one silhouette of steps."""

MAX_NAMED_CLIENTS = 200
"""Up to so many clients keep their order, and some of them their names."""

MAX_NAMED_CLASSES = 20
"""Up to so many classes are named in a legend; more get a colour scale."""


def plot_partition(
    counts: Tensor,
    clients: Sequence[str],
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    by: str = "class",
) -> None:
    """Draw how many examples of each class each client holds: ``counts`` (C, K), a bar a client in the given order.
    Where the columns are something else than classes, ``by`` is the word for it.

    More than ``MAX_NAMED_CLIENTS`` clients are drawn by size, largest first, and not named.

    Raises:
        ConfigError: ``clients`` or ``class_names`` do not fit ``counts``, or the suffix is not .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    if counts.ndim != 2 or counts.shape[0] != len(clients) or not len(clients) or not counts.shape[1]:
        raise ConfigError(
            f"counts: expected ({len(clients)} clients, classes), none of them 0, got {tuple(counts.shape)}"
        )
    num_classes = counts.shape[1]
    if class_names is not None and len(class_names) != num_classes:
        raise ConfigError(f"class_names: expected {num_classes}, one a class, got {len(class_names)}")
    names = [str(number) for number in range(num_classes)] if class_names is None else list(class_names)
    figure, axes = canvas(path, width=min(11.0, 6.0 + 0.08 * len(clients)))
    colours = _class_colours(num_classes)
    heights = counts.cpu().to(torch.float64)
    if len(clients) > MAX_NAMED_CLIENTS:
        heights = heights[heights.sum(1).argsort(descending=True, stable=True)]
        axes.set_xlabel("clients, largest first")
    else:
        _name_clients(axes, clients)
    _stack(axes, heights, colours)
    axes.set_ylabel("examples")
    axes.set_ylim(0, 1.05 * max(1.0, float(heights.sum(1).max())))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    plural = "" if len(clients) == 1 else "s"
    title(axes, f"Examples by {by}: {len(clients):,} client{plural}, {int(counts.sum()):,} examples")
    if num_classes <= MAX_NAMED_CLASSES:
        _legend(axes, by, names, colours)
    else:
        _colour_scale(figure, axes, num_classes, by)
    save(figure, path)


def plot_split(split: Split, labels: Tensor, path: str | os.PathLike[str]) -> None:
    """Draw who holds which labels; ``labels`` (N,) are those of all examples, as ``data.train.labels()`` gives them."""
    plot_partition(split.label_counts(labels), split.clients, path)


def _stack(axes: "Axes", counts: Tensor, colours: Sequence[str]) -> None:
    num_clients = len(counts)
    tops = counts.cumsum(1)
    if num_clients <= MAX_BARS:
        # Thin white edges keep neighbouring classes apart where two colours are alike in grey.
        for number, colour in enumerate(colours):
            bottoms = (tops[:, number] - counts[:, number]).tolist()
            heights = counts[:, number].tolist()
            axes.bar(
                range(num_clients), heights, bottom=bottoms, width=0.82, color=colour, edgecolor="white", linewidth=0.4
            )
    else:
        edges = [number - 0.5 for number in range(num_clients + 1)]
        for number, colour in enumerate(colours):
            top = tops[:, number]
            axes.stairs(
                top.numpy(), edges, baseline=(top - counts[:, number]).numpy(), fill=True, color=colour, linewidth=0
            )
    middle, reach = (num_clients - 1) / 2, max(1.5, 0.52 * num_clients)
    axes.set_xlim(middle - reach, middle + reach)


def _name_clients(axes: "Axes", clients: Sequence[str]) -> None:
    """Name as many clients, evenly spaced, as there is room for."""
    longest = max(map(len, clients))
    most = 30 if longest <= 3 else 20
    step = next(step for step in (1, 2, 5, 10, 20, 50) if math.ceil(len(clients) / step) <= most)
    ticks = range(0, len(clients), step)
    tilted = longest * len(ticks) > 70
    axes.set_xticks(ticks, [_short(clients[tick]) for tick in ticks])
    if tilted:
        axes.tick_params(axis="x", rotation=45 if longest <= 12 else 60)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_xlabel("client" if step == 1 else f"client (one in {step} is named)")


def _short(client: str) -> str:
    # Names that have a start in common differ at the end.
    return client if len(client) <= 24 else f"{client[:8]}…{client[-15:]}"


def _class_colours(num_classes: int) -> list[str]:
    if num_classes <= len(CLASS_COLOURS):
        return list(CLASS_COLOURS[:num_classes])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](number / (num_classes - 1))) for number in range(num_classes)]


def _legend(axes: "Axes", title: str, names: Sequence[str], colours: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    # From the top down in the order of the stack, so that an eye can go across.
    handles = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)][::-1]
    legend = axes.legend(
        handles=handles,
        title=title,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        handlelength=1.0,
        handleheight=1.0,
    )
    legend.get_title().set_color(INK)


def _colour_scale(figure: "Figure", axes: "Axes", num_classes: int, by: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    classes = ScalarMappable(Normalize(0, num_classes - 1), "viridis")
    scale = figure.colorbar(classes, ax=axes, label=by, pad=0.02, ticks=MaxNLocator(integer=True))
    scale.outline.set_visible(False)
