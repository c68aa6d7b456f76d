"""Every figure has labelled axes, alt text and the book's colours, and none stays open."""

import inspect
import itertools
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from saecore import spec
from saecore.metrics.detection import Detection
from saecore.metrics.geometry import log10_cap_bound, log10_cap_probability
from saecore.report import compare, figures, ledger, names, paper
from saecore.sources.synthetic import Superposition

HEADLINE = {"settings": "", "l0": 20}
STEPS = (1000, 10_000, 60_000)
METRICS = ("explained_variance", "sparse_probing_top1", "ravel_disentanglement")


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def study(frame, rng):
    """Three seeds of every architecture under every constraint, with a curve, bins and one choice."""
    rows = []
    for source, architecture, constraint, seed in itertools.product(
        spec.PROBABILITIES, spec.ARCHITECTURES, spec.CONSTRAINTS, range(3)
    ):
        cell = {"source": source, "architecture": architecture, "constraint": constraint, "seed": seed}
        for step in STEPS if constraint == "free" else STEPS[-1:]:
            at = {**cell, "step": step}
            rows.append({**at, "metric": "features_recovered", "value": float(rng.integers(3200))})
            rows.append({**at, "metric": "explained_variance", "value": rng.random()})
        at = {**cell, "step": STEPS[-1]}
        rows.append({**at, "metric": "fraction_recovered", "value": rng.random()})
        rows += [{**at, "metric": f"recovered_bin_{i}", "value": rng.random()} for i in range(8)]
        if constraint == "free":
            changed = {**at, "metric": "fraction_recovered", "settings": "training.learning_rate=0.001"}
            rows.append({**changed, "value": rng.random()})
    return frame(*rows)


@pytest.fixture
def models(frame, rng):
    """Two seeds of two architectures on a model's activations, with a curve, concepts and parts of the gain."""
    rows = []
    plan = [(c, i) for c in ("free", "soft_frozen_decoder", "frozen_encoder") for i in ("iso", "cov")]
    metrics = ("explained_variance", "ce_recovered", "concept_f1_kind", "concept_f1_topic")
    for architecture, (constraint, init), seed in itertools.product(("batch_topk", "jump_relu"), plan, range(2)):
        at = {"source": "atlas.2", "architecture": architecture, "constraint": constraint, "init": init, "seed": seed}
        for metric in (*metrics, *(f"gain_{part}" for part in ("encoder", "decoder", "biases"))):
            rows.append({**at, "metric": metric, "value": rng.random()})
        for step, side in itertools.product((10, 50, 100), ("live", "dead")):
            rows.append({**at, "step": step, "metric": f"cosine_to_start_{side}", "value": rng.random()})
    return frame(*rows)


@pytest.fixture
def ends(frame):
    """A floor and a ceiling for each of two concepts."""
    cells = itertools.product(("always", "probe"), ("kind", "topic"))
    same = {"architecture": "", "init": "", "l0": None}
    return frame(
        *({**same, "constraint": c, "metric": f"concept_f1_{n}", "value": float(c == "probe")} for c, n in cells)
    )


def _unit(rng, n, d):
    rows = rng.standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _moved(rng):
    """Two latents of either kind for each side of two variants, as studies.frozen.rows_moved gives them."""
    variants = (("free", "iso"), ("frozen_decoder", "cov"))
    cells = itertools.product(variants, ("encoder", "decoder"), (True, False), range(2))
    rows = [(*variant, side, live, rng.random()) for variant, side, live, _ in cells]
    return pd.DataFrame(rows, columns=["constraint", "init", "side", "live", "cosine"])


@pytest.fixture
def every(study, models, ends, rng):
    """Each figure function's name with a figure it made."""
    headline = ledger.last(study.loc[study["settings"] == ""])
    free = headline.loc[headline["constraint"] == "free"]
    variable = headline.loc[headline["source"] == "variable"]
    trained = ledger.last(study.loc[study["constraint"] == "free"])
    swept = ledger.expand(trained.loc[trained["source"] == "variable"], "training.learning_rate")
    angles = np.linspace(0, 2 * np.pi, 8)[:-1]
    norms = rng.lognormal(size=200)
    table2 = paper.table().query("source == 'Table 2' and architecture == 'batch_topk'")
    table2 = table2.astype({"value": float, "spread": float})
    last = ledger.last(models)
    one = (last["architecture"] == "batch_topk") & (last["init"] == "iso")
    seen = Detection(np.linspace(-4, 4, 401))
    seen.update(torch.from_numpy(rng.standard_normal((50, 20))), torch.from_numpy(rng.random((50, 20)) < 0.2))
    made = {
        "recovery_curve": figures.recovery_curve(study.loc[study["settings"] == ""]),
        "recovery_bars": figures.recovery_bars(free),
        "cosine_histogram": figures.cosine_histogram(
            {"topk": rng.random(50), "batch_topk": rng.random(50), "by hand": np.ones(50)}, rng.random(50)
        ),
        "recovery_by_frequency": figures.recovery_by_frequency(variable, samples=1e8),
        "variants_bars": figures.variants_bars(variable),
        "effects_plot": figures.effects_plot(compare.effects(trained, HEADLINE, "fraction_recovered")),
        "sweep_line": figures.sweep_line(
            swept, "training.learning_rate", "fraction_recovered", headline=3e-3, log=True
        ),
        "interference_figure": figures.interference_figure({d: _unit(rng, 60, d) for d in (3, 30)}),
        "probabilities_figure": figures.probabilities_figure(
            {p: Superposition(spec.SourceSpec(probability=p)).probabilities for p in spec.PROBABILITIES}
        ),
        "superposition_sketch": figures.superposition_sketch(np.c_[np.cos(angles), np.sin(angles)]),
        "selection_figure": figures.selection_figure(
            norms, {"topk": np.full(200, 20), "batch_topk": rng.poisson(20, 200)}
        ),
        "headline_figure": figures.headline_figure(table2, METRICS, {METRICS[1]: 0.5}),
        "tradeoff_figure": figures.tradeoff_figure(
            study.loc[(study["source"] == "variable") & (study["settings"] == "")]
        ),
        "amplitude_figure": figures.amplitude_figure({"narrow": 0.25, "wide": 0.5}),
        "norm_figure": figures.norm_figure(norms, np.repeat([3, 4], 100)),
        "sample_figure": figures.sample_figure(rng.standard_normal(100), np.arange(5), np.ones(5)),
        "detection_figure": figures.detection_figure(seen, 50),
        "chance_figure": figures.chance_figure(
            pd.DataFrame({"latents": [10, 100], "seed": 0, "mean": [0.2, 0.3], "max": [0.4, 0.5]}), 100
        ),
        "principal_figure": figures.principal_figure(
            {"data": [0.7, 0.9, 1], "cov": [0.6, 0.9, 1], "iso": [0.3, 0.7, 1]}
        ),
        "moved_figure": figures.moved_figure(_moved(rng), 0.8),
        "cone_figure": figures.cone_figure({"free": rng.random(50), "soft_frozen_decoder": np.full(50, 0.8)}, 0.8, 128),
        "bound_figure": figures.bound_figure({"free": rng.random(50)}, 0.8, 128),
        "range_figure": figures.range_figure(
            last.loc[last["architecture"] == "batch_topk"], METRICS[:1], {}, {METRICS[0]: 1.0}
        ),
        "reconstruction_bars": figures.reconstruction_bars(last.loc[last["init"] == "iso"]),
        "gaps_figure": figures.gaps_figure(compare.gaps(last, "explained_variance"), paper.gaps("explained_variance")),
        "concepts_figure": figures.concepts_figure(last.loc[one], ends),
        "lazy_figure": figures.lazy_figure(
            models.loc[(models["architecture"] == "jump_relu") & (models["init"] == "iso")]
        ),
        "gain_figure": figures.gain_figure(last),
    }
    return made


def _functions():
    """Public functions that return a figure; jaxtyping wraps every function, so being wrapped says nothing.

    Those of figures.checks and figures.kernels are tested in test_figures_checks.py and test_figures_kernels.py.
    """
    found = inspect.getmembers(figures, inspect.isfunction)
    public = {n: f for n, f in found if n[0] != "_" and f.__annotations__.get("return") == "BookFigure"}
    assert set(public) == set(figures.ALT)
    return {n for n, f in public.items() if not f.__module__.endswith((".checks", ".kernels"))}


def test_every_figure_has_labels_and_alt_text_and_none_stays_open(every):
    assert set(every) == _functions()
    for name, figure in every.items():
        assert figures.alt(figure) == figures.ALT[name] == figure.alt
        drawn = [ax for ax in figure.axes if ax.axison]
        said = {"x": [ax.get_xlabel() for ax in drawn], "y": [ax.get_ylabel() for ax in drawn]}
        assert any(said["x"]), f"{name} does not say what its x axis shows"
        rows = [t.get_text() for ax in drawn for t in ax.get_yticklabels()]
        told = {
            "TopK",
            "BatchTopK",
            "learning rate = 0.001",
            "trained, iso",
            "trained, cov",
            "topic",
            "BatchTopK, trained, iso",
        }
        named = any(said["y"]) or figure._supylabel is not None or told & set(rows)
        assert named, f"{name} does not say what its y axis shows"
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_exact_curve_is_in_sight_at_tau(every):
    ax = every["bound_figure"].axes[0]
    assert ax.get_xlabel() == "cosine to a given direction"
    assert ax.get_ylim()[0] < log10_cap_probability(128, 0.8) < log10_cap_bound(128, 0.8)


def test_the_datas_line_lies_under_the_cov_line_and_is_wider(every):
    data, cov, _ = every["principal_figure"].axes[0].lines
    assert data.get_label() == "data" and data.get_linewidth() > 2 * cov.get_linewidth()


def test_shares_are_shown_as_percentages(every):
    for name, place in [("recovery_curve", 0), ("cosine_histogram", 0), ("sweep_line", 0)]:
        figure = every[name]
        figure.png()
        labels = [t.get_text() for t in figure.axes[place].get_yticklabels()]
        assert labels and all(text.endswith("%") for text in labels), name


def test_ticks_of_a_share_are_not_rounded(every):
    ax = every["cosine_histogram"].axes[0]
    ax.set_yticks([0.025, 0.05])
    ax.set_ylim(0, 0.1)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["2.5 %", "5.0 %"]


def test_intervals_are_drawn(every):
    assert every["recovery_curve"].axes[0].collections, "a band for each line"
    assert every["sweep_line"].axes[0].containers, "error bars"


def test_the_papers_values_are_marked(every):
    from matplotlib.colors import to_hex

    marks = [
        line
        for ax in every["recovery_bars"].axes
        for line in ax.lines
        if line.get_marker() == "D" and to_hex(line.get_markerfacecolor()) == "#ffffff"
    ]
    assert sorted(float(line.get_xdata()[0]) for line in marks) == pytest.approx(
        [0.0003, 3 / 3200, 3 / 3200, 225 / 3200, 297 / 3200, 0.43, 0.67, 0.67, 0.71, 0.71, 0.999]
    )


def test_the_best_baseline_is_ringed_and_it_is_not_the_trained_one(every):
    rings = [line for ax in every["headline_figure"].axes for line in ax.lines if line.get_markersize() == 15]
    rows = [t.get_text() for t in every["headline_figure"].axes[0].get_yticklabels()]
    ringed = [(rows[int(line.get_ydata()[0])], float(line.get_xdata()[0])) for line in rings]
    assert ringed == [
        ("soft-frozen decoder, iso", 0.785),
        ("frozen decoder, cov", 0.692),
        ("soft-frozen decoder, iso", 0.728),
    ]


def test_a_detection_is_drawn_as_counts_per_sample(every):
    left = every["detection_figure"].axes[0]
    drawn = [patch.get_data() for patch in left.patches]
    per_sample = sum(float((d.values * np.diff(d.edges)).sum()) for d in drawn)
    assert per_sample == pytest.approx(20, rel=1e-6)


def test_the_same_picture_is_the_same_bytes(every):
    figure = every["superposition_sketch"]
    assert figure.png() == figure.png()


def test_a_notebook_shows_the_picture_once_with_its_alt_text(every):
    display = pytest.importorskip("IPython.core.formatters")
    data, metadata = display.DisplayFormatter().format(every["superposition_sketch"])
    assert data["image/png"].startswith(b"\x89PNG") if isinstance(data["image/png"], bytes) else data["image/png"]
    assert data["text/plain"] == figures.ALT["superposition_sketch"]
    assert metadata["image/png"] == {"width": 700}


def test_a_figure_of_others_has_no_alt_text():
    from matplotlib.figure import Figure

    with pytest.raises(ValueError, match="has no alt text; make figures with saecore.report.figures"):
        figures.alt(Figure())


def test_alt_texts_are_sentences():
    for name, text in figures.ALT.items():
        assert 60 < len(text) < 300 and text.endswith(".") and "  " not in text, name


def test_the_theme_stays_inside():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.superposition_sketch(np.eye(2), active=(0,), amplitudes=(1.0,)).png()
    assert dict(mpl.rcParams) == before


def test_rows_of_different_length_are_refused():
    with pytest.raises(ValueError, match="topk has 2 rows of counts beside 3 norms"):
        figures.selection_figure([1, 2, 3], {"topk": [20, 20]})


def test_frames_with_one_seed_draw(frame):
    rows = [{"metric": "features_recovered", "value": 3.0 * s, "step": s} for s in (10, 100)]
    figure = figures.recovery_curve(frame(*rows))
    assert not figure.axes[0].collections


# the palette


def test_the_palette_covers_every_constraint_and_architecture():
    assert set(figures.VARIANTS) == set(names.VARIANTS) == set(spec.CONSTRAINTS)
    assert set(figures.ARCHITECTURES) == set(names.ARCHITECTURES) == set(spec.ARCHITECTURES)
    assert set(names.SOURCES) == set(spec.PROBABILITIES)


# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB
SIGHT = {
    "full": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip


def _lab(colour, sight):
    """CIE L*a*b* of a colour as seen with the sight named."""
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("palette", [figures.VARIANTS, figures.ARCHITECTURES], ids=["variants", "architectures"])
def test_colours_are_told_apart_with_any_sight(palette, sight):
    for (a, one), (b, other) in itertools.combinations(palette.items(), 2):
        distance = np.linalg.norm(_lab(one.colour, sight) - _lab(other.colour, sight))
        assert distance > 20, f"{a} and {b} look alike ({distance:.0f}) with {sight}"


@pytest.mark.parametrize("palette", [figures.VARIANTS, figures.ARCHITECTURES], ids=["variants", "architectures"])
def test_markers_differ_and_colours_stand_out_from_white(palette):
    assert len({style.marker for style in palette.values()}) == len(palette)
    assert all(_lab(style.colour, "full")[0] < 78 for style in palette.values())


def test_what_is_known_has_a_name():
    assert names.label("batch_topk") == "BatchTopK" and names.label("free") == "trained"
    assert names.label("some_new_metric") == "some new metric"
    assert names.setting("") == "headline"
    assert names.setting("l0=10;source.sigma=0.5") == "target L0 = 10, sigma of log c = 0.5"
    assert names.ordered(["relu", "new", "topk"]) == ["topk", "relu", "new"]
