"""Editing the shipped atlas model: what must hold of any mask, agreement with SAEBench, and what cannot be edited."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from saecore import paths
from saecore.activations.models import TokenBatch
from saecore.metrics.editing import Mask, latents, rotated
from saecore.saes import SAE, build
from saecore.sources import atlas
from saecore.sources.entities import open_entities
from saecore.sources.synthetic import Superposition
from saecore.spec import ActivationSpec, ConstraintSpec, SAESpec, SourceSpec
from saecore.studies.editing import Editor, Small, _batches, known, prepare
from saecore.studies.facts import EditingError, Pool, Prompt, Sequences, Speaker

RAVEL = paths.root().parent / "shared" / "real" / "ravel" / "data.tgz"
SPEC = ActivationSpec("atlas", 1, "atlas", 128)
SMALL: Any = {"prompts": {"train": 60, "test": 40}, "pairs": {"train": 80, "test": 32}}


def source(spec: ActivationSpec = SPEC) -> Any:
    """As much of a source as an editor asks for."""
    return SimpleNamespace(spec=spec, device=torch.device("cpu"), covariance=lambda: torch.diag(torch.arange(1.0, 129)))


@pytest.fixture(scope="module")
def editor() -> Editor:
    return prepare(source(), attributes=["country", "language"], **SMALL)


@pytest.fixture(scope="module")
def sae(editor: Editor) -> SAE:
    """Half of the coordinates of each row about their mean: it rebuilds well, but not fully."""
    made = build(
        SAESpec("topk", d_model=128, n_latents=256, l0=64),
        ConstraintSpec("neurons"),
        generator=torch.Generator().manual_seed(0),
    )
    made.scale.fill_(2.0)
    with torch.no_grad():
        made.b_dec.copy_(editor.rows.mean(0) * 2)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def measured(editor: Editor, sae: SAE) -> dict[str, float]:
    return editor.measure(sae)


def test_the_model_knows_what_is_edited(editor):
    assert editor.counts["editing_prompts"] == 200 and editor.counts["editing_known_prompts"] > 0.95
    assert editor.counts["editing_test_pairs"] == sum(len(task["test"].base) for task in editor.tasks.values()) > 100


def test_pairs_are_what_they_claim(editor):
    short = editor.speaker.short_names(only("country", "language"), 1)
    pool = Pool.of(editor.speaker, short, SMALL["prompts"], True, np.random.default_rng(0))
    torch.testing.assert_close(pool.sequences.rows, editor.rows)
    decode = editor.speaker.model.tokenizer.decode
    split = {city.name: city.split for city in atlas.facts()}
    for attribute, tasks in editor.tasks.items():
        for part, pairs in tasks.items():
            assert pairs.cause.any() and (~pairs.cause).any()
            for base, from_, cause, label, row in zip(
                pairs.base, pairs.source, pairs.cause, pairs.label, pairs.row, strict=True
            ):
                one, other = pool.prompts[base], pool.prompts[from_]
                assert (one.attribute == other.attribute) and (one.attribute == attribute) == bool(cause)
                assert one.value != other.value and split[one.entity.name] == split[other.entity.name] == part
                wanted = other.value if cause else one.value
                assert wanted.startswith(decode([label]).strip())
                laid = pairs.sequences
                start, stop = int(laid.start[row]), int(laid.stop[row])
                said = decode(laid.tokens.ids[row, 1 : start + 1]).strip()
                name = decode(laid.tokens.ids[row, 1 : laid.place[row] + 1]).strip()
                assert said == one.text.strip() and name.endswith(one.entity.name)
                if part == "test":
                    assert decode(laid.tokens.ids[row, start + 1 : stop + 1]).strip() == wanted


def only(*attributes: str):
    data = open_entities("atlas")
    return replace(data, templates=tuple(t for a in attributes for t in data.templates if t.attribute == a))


def test_no_edit_and_everything_swapped(editor, measured):
    values = editor.references()
    assert set(values) == {"no_edit", "swap_all", "mdas", "neurons", "pca", "model"}
    none, swapped = values["no_edit"], values["swap_all"]
    assert (none["editing_cause"], none["editing_isolation"], none["editing_mask_size"]) == (0.0, 1.0, 0.0)
    assert swapped["editing_cause"] > 0.9 and swapped["editing_isolation"] < 0.1
    assert swapped["editing_mask_size_country"] == 128
    assert 0 < values["neurons"]["editing_mask_size"] < 128 and 0 < values["pca"]["editing_mask_size"] < 128
    assert "editing_cause_random" in values["pca"] and "editing_cause_with_error" not in values["pca"]


def test_a_share_is_read_between_the_better_floor_and_mdas(editor):
    told = {"no_edit": 0.5, "swap_all": 0.45, "mdas": 0.7}
    scores = {name: {"editing_disentanglement": value} for name, value in told.items()}
    made = replace(editor)
    floors = {name: scores[name] for name in ("no_edit", "swap_all")}
    vars(made).update(floors=floors, _mdas=scores["mdas"])  # where cached_property keeps them
    assert made._with_share({"editing_disentanglement": 0.55})["editing_share"] == pytest.approx(0.25)
    vars(made).update(_mdas=scores["no_edit"])
    assert made._with_share({"editing_disentanglement": 0.55}) == {"editing_disentanglement": 0.55}


def test_an_edit_that_puts_in_the_source_itself_is_a_swap(editor):
    """Whatever the axes, all of them together are the whole residual stream."""
    axes = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(1))).Q
    every = torch.ones(128, dtype=torch.bool)
    plain, turned = (
        editor.score("country", rotated(editor.rows, axes_), every).right for axes_ in (torch.eye(128), axes)
    )
    assert torch.equal(plain, turned) and 0 < plain.sum() < len(plain)


def test_every_metric_is_there_and_repeats(editor, sae, measured):
    names = {"cause", "isolation", "disentanglement"}
    wanted = {f"editing_{n}{e}" for n in names for e in ("", "_with_error", "_random", "_no_edit", "_swap_all")}
    wanted |= {f"editing_{n}_{a}" for n in {*names, "mask_size"} for a in ("country", "language")}
    assert set(measured) - {"editing_share"} == wanted | {"editing_mask_size"}
    assert measured["editing_cause_no_edit"] < 0.1 and measured["editing_isolation_no_edit"] > 0.7
    assert 0 < measured["editing_mask_size"] < latents(sae, editor.rows).codes.shape[1]
    assert editor.measure(sae) == measured


def test_small_masks_are_a_check_of_the_attributes_that_can_be_edited_alone(editor, sae, measured):
    made = replace(editor)
    vars(made).update(heights={"country": 0.3, "language": 0.01})
    check = Small.of(made)
    assert check.attributes == ("country",)
    values = replace(check, prices=(1e-9, 0.01, 10.0)).measure(sae)
    ends = {"", "_country"}
    names = {f"editing_{n}{e}" for n in ("cause", "isolation", "disentanglement", "mask_size") for e in ends}
    assert set(values) == {f"{name}_at_{price}" for name in names for price in ("1e-09", "0.01", "10")}
    for name in ("cause", "isolation", "mask_size"):
        assert values[f"editing_{name}_country_at_1e-09"] == measured[f"editing_{name}_country"], "a price of nothing"
    sizes = [values[f"editing_mask_size_at_{price}"] for price in ("1e-09", "0.01", "10")]
    assert sizes[0] > sizes[1] > sizes[2] == 0 == values["editing_cause_at_10"]
    vars(made).update(heights={"country": 0.02, "language": 0.01})
    with pytest.raises(
        EditingError, match=r"no more than 0.022 above the floor for any .* \(country \+0.020, language"
    ):
        Small.of(made)


def test_an_sae_without_live_latents_edits_nothing(editor):
    """A stated result: whatever the mask, every city reads as the bias, and nothing is lost on the way."""
    spec = SAESpec("relu", d_model=128, n_latents=64, l0=4)
    dead = build(spec, ConstraintSpec("untrained"), generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    dead.b_enc.fill_(-1e6)
    values = editor.measure(dead)
    assert values["editing_mask_size"] == 0 and values["editing_disentanglement"] <= 0.6
    assert values["editing_cause"] == values["editing_cause_no_edit"] and np.isfinite(list(values.values())).all()


def test_heights_are_those_of_mdas_above_the_better_floor(editor):
    assert set(editor.heights) == {"country", "language"}
    name = "editing_disentanglement_country"
    ends = editor.references()
    assert editor.heights["country"] == ends["mdas"][name] - max(ends[f][name] for f in ("no_edit", "swap_all"))


def test_only_the_mask_is_trained(editor, sae):
    network = editor.speaker.model.network
    weights = [*network.parameters(), *sae.parameters()]
    before = [weight.clone() for weight in weights]
    mask = Mask(latents(sae, editor.rows))
    editor.fit("country", mask)
    assert mask.logits.abs().max() > 0
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(weights, before, strict=True))


def test_what_is_said_is_what_is_scored(editor, sae):
    """A row is as the score has it: what should be said is said where the edit is right, and only there."""
    pairs = editor.tasks["country"]["test"]
    told = editor.told({"half": sae}, "country", n=6)
    which = torch.cat([pairs.cause.nonzero()[:6, 0], (~pairs.cause).nonzero()[:6, 0]])
    every = rotated(editor.rows, torch.eye(128))
    right = editor.score("country", every, torch.ones(128, dtype=torch.bool)).right[which]
    assert (told["everything swapped"] == told["should say"]).tolist() == right.tolist()
    assert 0 < right.sum() < 12
    assert (told["the model itself"] == told["should say"]).tolist() == 6 * [False] + 6 * [True]
    assert list(told.columns[:3]) == ["prompt", "source", "should say"] and "half" in told
    cities = {city.name: city for city in atlas.facts()}
    for base, row in zip(pairs.base[which].tolist(), told.to_dict("records"), strict=True):
        assert editor.entities[base] in row["prompt"]
    for row in told.to_dict("records")[:6]:
        assert row["should say"] == cities[row["source"]].country


# --- SAEBench's own procedure, written out plainly (sae-bench 0.6.0, sae_bench/evals/ravel) --------------------------


def hooked(model, layer, sae, mask, rows, places, run):
    """mdbm.py, create_intervention_hook: encode both, mix by the mask, decode, put at the base's position."""

    def put(_block, _inputs, stream):
        if stream.shape[1] == 1:
            return stream  # going on with the cache: the edit has been made
        stream = stream.clone()
        index = torch.arange(len(stream))
        base = sae.encode(stream[index, places] * sae.scale)
        mixed = (1 - mask) * base + mask * sae.encode(rows * sae.scale)
        stream[index, places] = sae.decode(mixed) / sae.scale
        return stream

    handle = model.blocks[layer].register_forward_hook(put)
    try:
        return run()
    finally:
        handle.remove()


def saebench_mask(editor: Editor, sae: SAE, attribute: str) -> torch.Tensor:
    """mdbm.py, train_mdbm: over all latents, with whole forward passes of the model."""
    speaker, pairs = editor.speaker, editor.tasks[attribute]["train"]
    batches = 2 * _batches(pairs, editor.seed)
    logits = torch.zeros(sae.spec.n_latents, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=1e-3)
    for which, temperature in zip(batches, torch.logspace(0, -4, len(batches)), strict=True):
        asked = pairs.sequences.of(pairs.row[which], prompt_only=True)
        mask, rows = torch.sigmoid(logits / temperature), editor.rows[pairs.source[which]]
        out = hooked(
            speaker.model, speaker.layer, sae, mask, rows, asked.place,
            lambda ids=asked.tokens.ids: speaker.model.network(input_ids=ids).logits,
        )  # fmt: skip
        adam.zero_grad()
        F.cross_entropy(out[torch.arange(len(which)), asked.start], pairs.label[which]).backward()
        adam.step()
    return logits.detach()


def saebench_scores(editor: Editor, sae: SAE, attribute: str, mask: torch.Tensor) -> tuple[float, float]:
    """intervention.py, generate_batched_interventions, with the general rule of validation.py."""
    speaker, pairs = editor.speaker, editor.tasks[attribute]["test"]
    tokenizer, network = speaker.model.tokenizer, speaker.model.network
    cause, isolation = [], []
    for i in range(len(pairs.base)):
        asked = pairs.sequences.of(pairs.row[i : i + 1])
        start, stop = int(asked.start), int(asked.stop)
        prompt, label = asked.tokens.ids[:, : start + 1], tokenizer.decode(asked.tokens.ids[0, start + 1 : stop + 1])
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}

        def going_on(ids=prompt, with_=options):
            return network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **with_)

        rows = editor.rows[pairs.source[i : i + 1]]
        made = hooked(speaker.model, speaker.layer, sae, mask, rows, asked.place, going_on)
        said = tokenizer.decode(made[0, start + 1 :]).split('"')[0].strip(' "').lower()
        label = label.strip().lower()
        right = said.startswith(label) if len(label) < len(said) else label.startswith(said)
        own = going_on()[0, start + 1]
        (isolation if own == pairs.label[i] else cause).append(right and bool(said))
    return float(np.mean(cause)), float(np.mean(isolation))


def test_agrees_with_saebench(editor, sae):
    """The same mask from the same pairs, and scores within 0.01 of theirs."""
    space, mask = latents(sae, editor.rows), Mask(latents(sae, editor.rows))
    editor.fit("country", mask)
    theirs = saebench_mask(editor, sae, "country")
    live = (sae.encode(editor.rows * sae.scale) != 0).any(0)
    assert not theirs[~live].any()
    agree = mask.chosen() == (theirs[live] > 0)
    assert agree.float().mean() > 0.98
    ours = editor.score("country", space, theirs[live] > 0)
    cause, isolation = saebench_scores(editor, sae, "country", (theirs > 0).float())
    assert abs(ours.cause_score() - cause) <= 0.01 and abs(ours.isolation_score() - isolation) <= 0.01
    assert 0 < cause < 1 and 0 < isolation < 1


def test_the_edit_is_where_saebench_makes_it(editor):
    """instance.py, build_and_tokenize_prompts: as many tokens from the end as what follows the entity has, with BOS."""
    tokenizer, speaker = editor.speaker.model.tokenizer, editor.speaker
    templates = [t for t in only("country").templates if t.after.startswith(" ")][::7]  # its own rest begins with one
    prompts = [Prompt(entity, template) for entity in open_entities("atlas").entities[::60] for template in templates]
    laid = speaker.lay_out([(prompt, prompt.value) for prompt in prompts], read=False)
    for prompt, place, start in zip(prompts, laid.place, laid.start, strict=True):
        theirs = len(tokenizer.encode(prompt.text)) - len(tokenizer.encode(prompt.template.after))
        assert int(place) == theirs and int(start) == len(tokenizer.encode(prompt.text)) - 1


# --- what is left out, and what cannot be edited ---------------------------------------------------------------------


def ravel(folder, extra: dict[str, str]) -> str:
    """Atlas cities in RAVEL's files, with the countries of some others made up."""
    cities = [city for city in atlas.facts() if city.country in ("Peru", "Japan", "France", "Nigeria", "Kenya")]
    values = {c.name: {"Country": c.country, "Continent": c.continent, "Planet": "Earth"} for c in cities}
    values |= {name: {"Country": land, "Continent": "Atlantis", "Planet": "Earth"} for name, land in extra.items()}
    prompts = {"Country": ["%s is a city in", "If you visit %s, you are in"], "Planet": ["%s is on the planet"]}
    prompts["Continent"] = ["The continent around %s is", "The continent that %s belongs to is"]
    templates = [text for texts in prompts.values() for text in texts]
    told = {
        "entity_attributes": values,
        "entity_to_split": {name: ("train", "test")[i % 2] for i, name in enumerate(values)},
        "attribute_to_prompts": prompts,
        "prompt_to_split": {text: ("train", "test")[i % 2] for i, text in enumerate(templates)},
    }
    for part, content in told.items():
        (folder / f"ravel_city_{part}.json").write_text(json.dumps(content))
    return f"{folder}#city"


def test_what_the_model_does_not_know_is_left_out_and_counted(tmp_path):
    invented = {"Narnia Bay": "Narnia", "Oz": "Oz", "Rivendell": "Gondor", "Gotham": "Utopia"}
    place = ravel(tmp_path, invented)
    made = prepare(source(), place, attributes=["Country", "Continent"], name_tokens=None, **SMALL)
    asked = made.counts["editing_prompts"]
    assert made.counts["editing_known_prompts"] <= 1 - 4 / asked
    texts = {
        made.speaker.model.tokenizer.decode(row)
        for task in made.tasks.values()
        for row in task["train"].sequences.tokens.ids
    }
    assert texts and not any("Narnia" in text or "Gondor" in text for text in texts)
    values = made.measure(build_neurons(made))
    assert "editing_cause_country" in values and "editing_mask_size_continent" in values


@pytest.mark.skipif(not RAVEL.exists(), reason="RAVEL's archive is not at hand")
def test_ravels_own_cities_asked_of_atlas():
    """Few of its cities and wordings are atlas'; what is known can be edited."""
    asked = {"prompts": {"train": 400, "test": 400}, "pairs": {"train": 16, "test": 16}, "name_tokens": None}
    made = prepare(source(), f"{RAVEL}#city", attributes=["Country", "Continent", "Language"], **asked)
    assert made.counts["editing_prompts"] == 2400 and 0.03 < made.counts["editing_known_prompts"] < 0.2
    swapped = made.floors["swap_all"]
    assert swapped["editing_cause"] > 0.1 and 0 < swapped["editing_isolation"] < 0.9


@pytest.mark.skipif(not RAVEL.exists(), reason="RAVEL's archive is not at hand")
@pytest.mark.parametrize("kind", ["city", "nobel_prize_winner", "occupation", "physical_object", "verb"])
def test_a_real_model_that_knows_none_of_ravels_facts(kind):
    """All is left out and counted: none known is a result of ``known``, and nothing to edit an error that says so."""
    real = RAVEL.parent.parent
    spec = ActivationSpec(str(real / "stories260K"), 2, str(real / "text" / "tinystories_1000.json"), 64)
    given: Any = {"dataset": f"{RAVEL}#{kind}", "prompts": {"train": 30, "test": 20}, "name_tokens": None}
    table = known(source(spec), **given)
    assert table.index.tolist() == list(open_entities(given["dataset"]).attributes)
    assert set(table["prompts"]) == {50} and min(table["entities"]) > 20
    assert not any(table["known prompts"]) and not any(table["known entities"])
    with pytest.raises(EditingError, match=r"of 50 prompts for '.*', '.*stories260K' completes 0 of the train split"):
        prepare(source(spec), **given)


def build_neurons(made: Editor) -> SAE:
    spec = SAESpec("topk", d_model=128, n_latents=256, l0=128)
    return build(spec, ConstraintSpec("neurons"), generator=torch.Generator().manual_seed(0))


def test_names_may_be_of_any_length(editor):
    tokens = editor.speaker.model.tokenizer
    short = editor.speaker.short_names(open_entities("atlas"), 1)
    assert all(len(tokens(f" {e.name}", add_special_tokens=False)["input_ids"]) == 1 for e in short.entities)
    assert 200 < len(short.entities) < len(editor.speaker.short_names(open_entities("atlas"), 3).entities) < 600
    with pytest.raises(EditingError, match="name_tokens=0: 0 of the 600 entities of atlas have names so short"):
        prepare(source(), name_tokens=0, **SMALL)
    longer = prepare(source(), attributes=["country", "language"], name_tokens=None, **SMALL)
    assert longer.floors["swap_all"]["editing_cause"] < editor.floors["swap_all"]["editing_cause"] - 0.2


def test_what_is_known_is_counted_by_attribute(tmp_path):
    invented = {"Narnia Bay": "Narnia", "Oz": "Oz", "Rivendell": "Gondor", "Gotham": "Utopia"}
    place, of = ravel(tmp_path, invented), ["Country", "Continent"]
    table = known(source(), place, of, SMALL["prompts"], name_tokens=None)
    counts = prepare(source(), place, of, name_tokens=None, **SMALL).counts
    assert table.index.tolist() == of and sum(table["prompts"]) == counts["editing_prompts"]
    assert sum(table["known prompts"]) == round(counts["editing_known_prompts"] * counts["editing_prompts"])
    assert all(some < whole for some, whole in zip(table["known entities"], table["entities"], strict=True))
    assert table.loc["Country", "values"] == 5
    nothing = known(source(replace(SPEC, weights="random")), place, of, SMALL["prompts"], name_tokens=None)
    assert not any(nothing["known prompts"]) and not any(nothing["values"])
    assert nothing["prompts"].equals(table["prompts"])


def test_without_holding_out_the_test_repeats_the_training():
    made = prepare(source(), attributes=["country", "language"], held_out=False, **SMALL)
    pairs = made.tasks["country"]
    decode = made.speaker.model.tokenizer.decode
    wordings = {w.text.partition("{city}")[0].strip() for w in atlas.wordings("country", True)} - {""}
    train = {decode(pairs["train"].sequences.tokens.ids[row]) for row in pairs["train"].row.tolist()}
    assert any(wording in text for wording in wordings for text in train)


def test_what_cannot_be_edited(tmp_path):
    with pytest.raises(EditingError, match=r"attribute 'Planet' has the one value 'Earth' .* leave it out"):
        prepare(source(), ravel(tmp_path, {}), **SMALL)
    with pytest.raises(EditingError, match=r"choose two or more of country, continent"):
        prepare(source(), attributes=["country"], **SMALL)
    with pytest.raises(EditingError, match=r"attributes \['country', 'colour'\]: choose two or more"):
        prepare(source(), attributes=["country", "colour"], **SMALL)
    with pytest.raises(EditingError, match=r"with its 4 blocks cannot be edited after block 3.*take an earlier layer"):
        prepare(source(replace(SPEC, layer=3)), **SMALL)
    with pytest.raises(EditingError, match=r"of 100 prompts for 'country', 'atlas' completes 0 of the train split"):
        prepare(source(replace(SPEC, weights="random")), attributes=["country", "language"], **SMALL)
    with pytest.raises(EditingError, match="is drawn, not read from a model"):
        prepare(Superposition(SourceSpec()))


def test_values_that_all_begin_with_one_token_leave_nothing_to_tell(editor):
    """The Netherlands, the Philippines: no pair is left for Cause."""
    data = only("country", "language")
    articled = tuple(entity for entity in data.entities if entity.values["country"].startswith("the "))
    rng = np.random.default_rng(0)
    pool = Pool.of(editor.speaker, replace(data, entities=articled), SMALL["prompts"], True, rng)
    assert pool.pairs("language", "test", 32, rng).cause.any()
    with pytest.raises(EditingError, match="in all 32 pairs drawn for 'country' in the test split.*leave the attrib"):
        pool.pairs("country", "test", 32, rng)


def test_a_name_or_a_prompt_that_the_tokens_do_not_tell(editor):
    template = only("country").templates[0]
    entity = open_entities("atlas").entities[0]
    nameless = Prompt(replace(entity, name=""), replace(template, before="", after=""))
    with pytest.raises(EditingError, match="do not tell where '' ends"):
        editor.speaker.lay_out([(nameless, "Peru")])
    long = Prompt(entity, replace(template, after=" is" * 200))
    with pytest.raises(EditingError, match=r"has 2\d\d tokens, and a row of 'atlas' may have 128"):
        editor.speaker.lay_out([(long, "Peru")])


def test_an_answer_is_right_when_whole_and_no_part_of_a_longer_word(editor):
    """Two tokens after a prompt of three: the first choices are scripted, token 9 goes on with a word."""
    ids = torch.tensor([[0, 1, 2, 5, 6]]).repeat(5, 1)
    choices = torch.tensor([[5, 6, 8], [5, 6, 9], [5, 7, 8], [7, 6, 8], [5, 6, 7]])
    one = torch.ones(5, dtype=torch.long)
    asked = Sequences(TokenBatch(ids, ids >= 0, ids >= 0), torch.zeros(5, 5, 4), one, 2 * one, 4 * one)

    def scripted(tokens, layer, stream, at):
        assert at.tolist() == [[False, False, True, True, True]] * 5 and stream is asked.stream
        return F.one_hot(choices.flatten(), 10).float()

    fake: Any = SimpleNamespace(logits_from=scripted)
    speaker = Speaker(fake, 1, torch.arange(10) == 9)
    assert speaker.right(asked).tolist() == [True, False, False, False, True]


def test_another_value_is_no_right_answer(editor):
    prompts = [Prompt(entity, only("country").templates[0]) for entity in open_entities("atlas").entities[:20]]
    right = editor.speaker.right(editor.speaker.lay_out([(prompt, prompt.value) for prompt in prompts]))
    wrong = editor.speaker.right(editor.speaker.lay_out([(prompt, "Peru") for prompt in prompts]))
    assert right.float().mean() > 0.9 and wrong.sum() == sum(prompt.value == "Peru" for prompt in prompts)


def test_tokens_that_go_on_with_a_word(editor):
    tokens = {text: i for i, text in enumerate(editor.speaker.model.tokenizer.convert_ids_to_tokens(range(4096)))}
    told = {text: bool(editor.speaker.continuing[tokens[text]]) for text in ("ing", "a", "Ġis", "Ġ", "Ċ", ".", "<s>")}
    assert [text for text, goes_on in told.items() if goes_on] == ["ing", "a"]


def test_a_model_that_only_reads_is_refused():
    fake: Any = SimpleNamespace(has_logits=False, n_layers=6)
    with pytest.raises(EditingError, match="an edit needs a decoder"):
        Speaker.of(fake, replace(SPEC, model="minilm"))


def test_the_models_forward_passes_are_its_own_again(editor):
    blocks = editor.speaker.model.blocks
    assert not any("forward" in block.__dict__ or block._forward_hooks for block in blocks)
