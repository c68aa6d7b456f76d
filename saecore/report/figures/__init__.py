"""Every figure of the book: one function each, which returns the figure with its alt text.

Colours are the same through the whole book: one per constraint (``VARIANTS``), or one per architecture
(``ARCHITECTURES``) where a figure shows one constraint. Bands and bars are intervals over seeds (compare.py).
"""

from saecore.report.figures.base import ALT, ARCHITECTURES, VARIANTS, BookFigure, Style, alt
from saecore.report.figures.checks import (
    best_latent_figure,
    distribution_figure,
    editing_figure,
    families_figure,
    probing_figure,
    ways_figure,
)
from saecore.report.figures.kernels import growth_figure, speed_figure
from saecore.report.figures.models import (
    bound_figure,
    concepts_figure,
    cone_figure,
    gain_figure,
    gaps_figure,
    lazy_figure,
    moved_figure,
    principal_figure,
    range_figure,
    reconstruction_bars,
)
from saecore.report.figures.recovery import (
    effects_plot,
    headline_figure,
    recovery_bars,
    recovery_by_frequency,
    recovery_curve,
    sweep_line,
    tradeoff_figure,
    variants_bars,
)
from saecore.report.figures.world import (
    amplitude_figure,
    chance_figure,
    cosine_histogram,
    detection_figure,
    interference_figure,
    norm_figure,
    probabilities_figure,
    sample_figure,
    selection_figure,
    superposition_sketch,
)

__all__ = [
    "ALT",
    "ARCHITECTURES",
    "BookFigure",
    "Style",
    "VARIANTS",
    "alt",
    "amplitude_figure",
    "best_latent_figure",
    "bound_figure",
    "chance_figure",
    "concepts_figure",
    "cone_figure",
    "cosine_histogram",
    "detection_figure",
    "distribution_figure",
    "editing_figure",
    "effects_plot",
    "families_figure",
    "gain_figure",
    "gaps_figure",
    "growth_figure",
    "headline_figure",
    "interference_figure",
    "lazy_figure",
    "moved_figure",
    "norm_figure",
    "principal_figure",
    "probabilities_figure",
    "probing_figure",
    "range_figure",
    "reconstruction_bars",
    "recovery_bars",
    "recovery_by_frequency",
    "recovery_curve",
    "sample_figure",
    "selection_figure",
    "speed_figure",
    "superposition_sketch",
    "sweep_line",
    "tradeoff_figure",
    "variants_bars",
    "ways_figure",
]
