"""Colours of the page and its charts, for light and dark screens.

Values of a parameter have the colours of Okabe and Ito (2008), which people with any colour vision can tell apart;
beyond six of them a part of Viridis, whose lightness rises evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from latentsync_ray.config.plain import Settings, settings


@dataclass(frozen=True)
class Palette:
    """Colours that depend on whether the screen is light or dark."""

    ink: str
    """Text, and stage one."""
    muted: str
    """Text of less weight, and axes."""
    lines: str
    """Grids and borders."""
    page: str
    """Behind the sections."""
    surface: str
    """Behind the charts."""
    accent: str
    """What is the best, and what has the focus."""


LIGHT = Palette("#1f2933", "#52606d", "#dfe4ea", "#f5f7fa", "#fefefe", "#0b6aa2")
DARK = Palette("#e4e9ef", "#a3afbc", "#38424d", "#11161c", "#1a2129", "#6cbdf2")
"""The page's script puts these in place of the light ones, in the charts too."""
_MAX_SHADES = 8
"""Of Viridis, that can be told apart."""
_OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")


def palettes() -> Settings:
    """Both palettes, for the page's script."""
    return settings({"light": asdict(LIGHT), "dark": asdict(DARK)})


def series_colours(names: Sequence[str]) -> dict[str, str]:
    """Colours for some values, in their order: one for each, or, of many, one for neighbours together."""
    if len(names) <= len(_OKABE_ITO):
        return dict(zip(names, _OKABE_ITO, strict=False))
    from plotly.colors import sample_colorscale

    num_shades = min(len(names), _MAX_SHADES)
    shades = sample_colorscale("Viridis", [0.06 + 0.82 * index / (num_shades - 1) for index in range(num_shades)])
    return {name: shades[index * num_shades // len(names)] for index, name in enumerate(names)}
