"""Specs refuse what cannot run, and their keys follow their content."""

import dataclasses
import hashlib
import json

import pytest

from saecore.spec import (
    ARCHITECTURES,
    CONSTRAINTS,
    DICTIONARIES,
    ActivationSpec,
    ConstraintSpec,
    RunSpec,
    SAESpec,
    SourceSpec,
    SpecError,
    TrainingSpec,
    from_dict,
)

OTHER = {
    SourceSpec: dict(
        probability="constant", n_features=30, d_model=5, expected_l0=3.0, p_min=1e-4, p_max=0.1, sigma=0.5, seed=1
    ),
    SAESpec: dict(
        architecture="relu", d_model=7, n_latents=99, l0=5, group_size=4, rescale=True, fractions=(0.5, 0.5),
        aux_coefficient=0.0, aux_k=3, dead_after=9, bandwidth=0.2, ortho_coefficient=0.5, ortho_every=2,
    ),
    ConstraintSpec: dict(name="frozen_decoder", tau=0.5, init="cov", tied=False),
    TrainingSpec: dict(
        steps=5, batch_size=4, learning_rate=1e-3, beta1=0.5, beta2=0.999, decay=0.1, seed=1
    ),
}  # fmt: skip
"""A second valid value of every field."""
BASE = {
    SourceSpec: SourceSpec(),
    SAESpec: SAESpec("topk"),
    ConstraintSpec: ConstraintSpec(),
    TrainingSpec: TrainingSpec(),
}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SAESpec("tpok"), ["architecture='tpok'", "choose one of", *ARCHITECTURES]),
        (lambda: SAESpec("topk", n_latents=8, l0=9), ["l0=9", "between 1 and n_latents=8", "more latents than it has"]),
        (lambda: SAESpec("topk", l0=0), ["l0=0", "between 1 and n_latents=3200"]),
        (lambda: SAESpec("topk", d_model=0), ["d_model=0", "at least 1"]),
        (lambda: SAESpec("topk", n_latents=0), ["n_latents=0", "at least 1"]),
        (lambda: SAESpec("topk", group_size=-1), ["group_size=-1", "not be negative", "0: the architecture's own"]),
        (lambda: SAESpec("relu", group_size=4), ["group_size=4", "'relu'", "topk and batch_topk only"]),
        (lambda: SAESpec("matryoshka", fractions=(0.5, 0.4)), ["(0.5, 0.4)", "positive and sum to 1"]),
        (lambda: SAESpec("matryoshka", fractions=(1.5, -0.5)), ["(1.5, -0.5)", "positive and sum to 1"]),
        (lambda: SAESpec("topk", aux_coefficient=-0.1), ["aux_coefficient=-0.1", "not be negative"]),
        (lambda: SAESpec("jump_relu", bandwidth=0.0), ["bandwidth=0.0", "positive"]),
        (lambda: SourceSpec(probability="normal"), ["probability='normal'", "constant, variable"]),
        (lambda: SourceSpec(n_features=1, expected_l0=0.5), ["n_features=1", "at least 2"]),
        (lambda: SourceSpec(d_model=0), ["d_model=0", "at least 1"]),
        (lambda: SourceSpec(n_features=10, expected_l0=10), ["expected_l0=10", "between 0 and n_features=10"]),
        (lambda: SourceSpec(p_min=0.1, p_max=0.01), ["p_min=0.1", "p_max=0.01", "0 < p_min < p_max < 1"]),
        (lambda: SourceSpec(sigma=-1), ["sigma=-1", "not be negative"]),
        (lambda: SourceSpec("constant", correlation=1.0), ["correlation=1.0", "[0, 1)"]),
        (lambda: SourceSpec("variable", correlation=0.5), ["correlation=0.5", "probability='constant'"]),
        (lambda: ConstraintSpec("frozen"), ["constraint='frozen'", *CONSTRAINTS]),
        (lambda: ConstraintSpec(init="pca"), ["init='pca'", "iso, cov"]),
        (lambda: ConstraintSpec(tau=1.0), ["tau=1.0", "[0, 1)", "frozen_decoder"]),
        (lambda: ConstraintSpec(tau=-0.1), ["tau=-0.1", "[0, 1)"]),
        (lambda: TrainingSpec(steps=-1), ["steps=-1", "not be negative"]),
        (lambda: TrainingSpec(batch_size=0), ["batch_size=0", "at least 1"]),
        (lambda: TrainingSpec(learning_rate=0), ["learning_rate=0", "positive"]),
        (lambda: TrainingSpec(beta2=1.0), ["1.0", "[0, 1)"]),
        (lambda: TrainingSpec(decay=1.5), ["decay=1.5", "[0, 1]"]),
        (lambda: TrainingSpec(seed=128), ["seed=128", "0 and 127"]),
        (lambda: TrainingSpec(seed=-1), ["seed=-1", "0 and 127"]),
        (lambda: SourceSpec(seed=-1), ["seed=-1", "not be negative"]),
        (lambda: RunSpec(SAESpec("topk", d_model=99)), ["sae.d_model=99", "source.d_model=100", "set them equal"]),
        (
            lambda: RunSpec(SAESpec("topk", n_latents=64), constraint=ConstraintSpec("oracle")),
            ["oracle", "n_latents=64", "n_features=3200"],
        ),
    ],
)  # fmt: skip
def test_an_error_names_the_value_the_rule_and_the_way_out(make, said):
    with pytest.raises(SpecError) as caught:
        make()
    assert not [part for part in said if part not in str(caught.value)], caught.value


@pytest.mark.parametrize("cls", OTHER)
def test_every_field_counts_in_the_key(cls):
    base = BASE[cls]
    left_out = {f.name for f in dataclasses.fields(cls)} - set(OTHER[cls])
    assert left_out <= {"correlation"}  # needs a constant probability, below
    changed = {name: dataclasses.replace(base, **{name: value}) for name, value in OTHER[cls].items()}
    keys = {base.key(), *(spec.key() for spec in changed.values())}
    assert len(keys) == 1 + len(changed)
    assert {name: spec.differences() for name, spec in changed.items() if name != "architecture"} == {
        name: {name: value} for name, value in OTHER[cls].items() if name != "architecture"
    }


def test_correlation_counts_in_the_key():
    assert SourceSpec("constant").key() != SourceSpec("constant", correlation=0.5).key()


def test_a_key_is_the_hash_of_the_canonical_content():
    text = '{"init":"iso","name":"soft_frozen_decoder","tau":0.8,"tied":true}'
    assert ConstraintSpec("soft_frozen_decoder").key() == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_equal_runs_have_equal_keys_and_every_part_counts():
    def make(**parts):
        return RunSpec(SAESpec("topk"), **parts)

    assert make().key() == make(training=TrainingSpec()).key()
    parts = [make(), make(source=SourceSpec(seed=1)), make(constraint=ConstraintSpec("untrained")),
             make(training=TrainingSpec(seed=1)), RunSpec(SAESpec("relu"))]  # fmt: skip
    assert len({run.key() for run in parts}) == len(parts)


@pytest.mark.parametrize("probability", ["constant", "variable"])
def test_a_headline_run_has_no_settings(probability):
    for architecture in ARCHITECTURES:
        for constraint in (c for c in CONSTRAINTS if c not in DICTIONARIES):
            run = RunSpec(
                SAESpec(architecture, l0=40),
                SourceSpec(probability, seed=2),
                ConstraintSpec(constraint, init="cov"),
                TrainingSpec(steps=7, seed=2),
            )
            assert run.settings() == ""


def test_settings_name_what_differs_in_the_order_of_names():
    run = RunSpec(
        SAESpec("topk", aux_coefficient=0.0),
        SourceSpec(sigma=0.5),
        ConstraintSpec("soft_frozen_decoder", tau=0.5, tied=False),
        TrainingSpec(learning_rate=1e-3),
    )
    assert run.settings() == (
        "constraint.tau=0.5;constraint.tied=False;sae.aux_coefficient=0.0;source.sigma=0.5;training.learning_rate=0.001"
    )


def test_a_run_survives_json():
    run = RunSpec(
        SAESpec("matryoshka", d_model=8, n_latents=12, l0=2, fractions=(0.25, 0.75)),
        SourceSpec("constant", n_features=12, d_model=8, expected_l0=2.0, correlation=0.5, seed=3),
        ConstraintSpec("soft_frozen_decoder", tau=0.3),
        TrainingSpec(steps=9, decay=0.5),
    )
    again = from_dict(json.loads(json.dumps(run.as_dict())))
    assert again == run
    assert again.key() == run.key()
    assert hash(again) == hash(run)


def test_unknown_fields_and_parts_are_refused():
    data = RunSpec(SAESpec("topk")).as_dict()
    with pytest.raises(SpecError, match=r"no part \['metric'\].*constraint.*sae"):
        from_dict({**data, "metric": {}})
    with pytest.raises(SpecError, match=r"TrainingSpec has no field \['lr'\].*learning_rate"):
        from_dict({**data, "training": {"lr": 1}})


def test_specs_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SAESpec("topk").l0 = 3  # type: ignore[misc]


def test_rows_that_share_a_selection():
    assert SAESpec("topk").rows_per_selection(64) == 1
    assert SAESpec("batch_topk").rows_per_selection(64) == 64
    assert SAESpec("batch_topk", group_size=8).rows_per_selection(64) == 8
    assert SAESpec("topk", group_size=128).rows_per_selection(64) == 64


def test_matryoshka_prefixes_end_where_their_fractions_do():
    assert SAESpec("matryoshka", n_latents=10, l0=1).group_ends() == (5, 8, 10)
    assert SAESpec("matryoshka", n_latents=3200).group_ends() == (1600, 2560, 3200)
    assert SAESpec("batch_topk", n_latents=10, l0=1).group_ends() == (10,)


def test_the_learning_rate_falls_linearly_over_the_last_share():
    spec = TrainingSpec(steps=100, learning_rate=1.0, decay=0.2)
    assert [spec.rate_at(step) for step in (0, 79, 80)] == [1, 1, 1]
    assert spec.rate_at(90) == pytest.approx(0.5)
    assert spec.rate_at(99) == pytest.approx(0.05)
    assert TrainingSpec(steps=100, learning_rate=1.0).rate_at(99) == 1


@pytest.mark.parametrize(
    ("model", "dataset", "weights", "name"),
    [
        ("atlas", "atlas", "trained", "atlas.1"),
        ("atlas", "atlas", "random", "atlas.1.random"),
        ("minilm", "python-docs", "trained", "minilm.1"),
        ("atlas", "python-docs", "trained", "atlas.1.python-docs"),
        ("google/gemma-2-2b", "Skylion007/openwebtext", "trained", "gemma-2-2b.1.openwebtext"),
        ("/models/mine/", "texts/a.csv#said", "random", "mine.1.a.csv#said.random"),
    ],
)
def test_a_source_is_named_by_model_layer_and_text(model, dataset, weights, name):
    assert ActivationSpec(model, 1, dataset, d_model=8, weights=weights).name == name
