"""Prompts that a model completes with a fact it knows, and pairs of them between which facts can be swapped.

What the model does not know is left out and counted. Pairs are drawn as SAEBench draws them (sae_bench.evals.ravel):
base and source are asked the same attribute and differ in its value; for Cause it is the attribute edited, and the
answer should become the source's value; for Isolation it is another one, and the answer should stay.

Where we are stricter than SAEBench, which judges an answer by how it begins and forgives case, quotes and some
synonyms: it is right when it is the value itself and no part of a longer word. And Cause pairs whose values begin with
the same token are left out: a mask is trained on first tokens, and SAEBench would count such pairs for Isolation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saecore.activations.models import ResidualModel, TokenBatch
from saecore.sources.entities import SPLITS, Entities, Entity, Template
from saecore.spec import ActivationSpec

BATCH = 128
"""Prompts that the model sees at once."""
ANSWER = 8
"""Tokens of a continuation that is shown, at most."""
SPACE_MARKS = "ĠĊĉč▁"
"""How tokenizers write white space at a token's start."""


class EditingError(ValueError):
    """What cannot be edited; the message names the value, the rule and the way out."""


@dataclass(frozen=True)
class Prompt:
    entity: Entity
    template: Template

    @property
    def attribute(self) -> str:
        return self.template.attribute

    @property
    def value(self) -> str:
        return self.entity.values[self.attribute]

    @property
    def text(self) -> str:
        return self.template.prompt(self.entity.name)


@dataclass(frozen=True)
class Sequences:
    """Prompts with answers, and the residual stream where the edit is made.

    ``place``: the last token of the entity's name; ``start`` and ``stop``: the last token of the prompt and of the
    answer. The predictions from ``start`` on should be the answer, and the one at ``stop`` no more of it.
    """

    tokens: TokenBatch
    stream: Float[Tensor, "prompts seq d_model"]
    place: Int[Tensor, "prompts"]
    start: Int[Tensor, "prompts"]
    stop: Int[Tensor, "prompts"]

    @property
    def rows(self) -> Float[Tensor, "prompts d_model"]:
        """The residual stream at the entities."""
        return self.stream[torch.arange(len(self.place)), self.place]

    @property
    def positions(self) -> Int[Tensor, "1 seq"]:
        return torch.arange(self.tokens.ids.shape[1], device=self.place.device)[None]

    @property
    def first(self) -> Int[Tensor, "prompts"]:
        """The first token of each answer."""
        return self.tokens.ids[torch.arange(len(self.start)), self.start + 1]

    def of(self, which: Int[Tensor, "some"], prompt_only: bool = False) -> Sequences:
        """Some of them, no wider than the longest needs; with ``prompt_only`` without the answers."""
        which = which.to(self.place.device)
        width = int((self.start if prompt_only else self.stop)[which].max()) + 1 if len(which) else 1
        ids, attention, keep = (t[which, :width] for t in (self.tokens.ids, self.tokens.attention, self.tokens.keep))
        ends = (self.place[which], self.start[which], self.stop[which])
        return Sequences(TokenBatch(ids, attention, keep), self.stream[which, :width], *ends)

    def put(self, edited: Float[Tensor, "prompts d_model"]) -> Sequences:
        """With other residuals at the entities."""
        stream = self.stream.clone()
        stream[torch.arange(len(self.place)), self.place] = edited
        return replace(self, stream=stream)


@dataclass(frozen=True)
class Pairs:
    """Edits to be made: ``base`` and ``source`` are places in the pool, ``cause`` tells what the pair is for.

    The model goes on from row ``row[i]`` of ``sequences``; ``label`` is the first token that this should lead to.
    """

    base: Int[Tensor, "pairs"]
    source: Int[Tensor, "pairs"]
    cause: Bool[Tensor, "pairs"]
    label: Int[Tensor, "pairs"]
    sequences: Sequences
    row: Int[Tensor, "pairs"]


@dataclass(frozen=True)
class Speaker:
    """A model, where its facts are edited, and how its answers are judged."""

    model: ResidualModel
    layer: int
    continuing: Bool[Tensor, "vocabulary"]
    """Tokens that go on with a word."""

    @staticmethod
    def of(model: ResidualModel, spec: ActivationSpec) -> Speaker:
        """Raises EditingError where an edit at the spec's layer would lead nowhere."""
        if not model.has_logits or spec.layer > model.n_layers - 2:
            raise EditingError(
                f"{spec.model!r} with its {model.n_layers} blocks cannot be edited after block {spec.layer}: an edit "
                "needs a decoder, and a block after it that carries it on to the answer; take an earlier layer or "
                "another model"
            )
        tokens = model.tokenizer.convert_ids_to_tokens(range(len(model.tokenizer)))
        told = [bool(t) and t[0] not in SPACE_MARKS and t[0].isalpha() for t in tokens]
        size = max(len(told), model.network.get_output_embeddings().weight.shape[0])
        continuing = torch.tensor(told + [False] * (size - len(told)), device=model.device)
        return Speaker(model, spec.layer, continuing)

    @torch.no_grad()
    def right(self, asked: Sequences) -> Bool[Tensor, "prompts"]:
        """Whether the greedy completion of each prompt is its answer and no part of a longer word (Niger, Nigeria).

        It is where the first choice is the right one at each token of the answer, and starts no more letters after it.
        """
        at = (asked.positions >= asked.start[:, None]) & (asked.positions <= asked.stop[:, None])
        chosen = self.model.logits_from(asked.tokens, self.layer, asked.stream, at).argmax(1)
        last = (asked.positions == asked.stop[:, None])[at]
        good = torch.where(last, ~self.continuing[chosen], chosen == asked.tokens.ids.roll(-1, 1)[at])
        wrong = torch.zeros(len(asked.start), device=chosen.device)
        return wrong.index_add(0, at.nonzero()[:, 0], (~good).float()) == 0

    @torch.no_grad()
    def goes_on(self, asked: Sequences, rows: Float[Tensor, "1 d_model"]) -> str:
        """What the model says after one prompt with ``rows`` at its entity: greedy, up to a full stop or a line's end.

        At most ``ANSWER`` tokens; those of the answer that the sequence holds play no part.
        """
        start = int(asked.start)
        ids = asked.tokens.ids[:, : start + 1]
        for _ in range(ANSWER):
            tokens = self.model.from_ids(ids)
            stream = self.model.residual(tokens, self.layer).clone()
            stream[0, int(asked.place)] = rows[0].to(stream)
            last = torch.zeros_like(tokens.attention)
            last[0, -1] = True
            chosen = self.model.logits_from(tokens, self.layer, stream, last).argmax(1)
            ids = torch.cat([ids, chosen[None].to(ids)], 1)
        said = self.model.tokenizer.decode(ids[0, start + 1 :], skip_special_tokens=True)
        return re.split(r"[.,;!?\n]", said.lstrip())[0].strip()

    def texts(self, asked: Sequences) -> tuple[str, str]:
        """The one prompt and its answer."""
        start, stop = int(asked.start), int(asked.stop)
        ids, decode = asked.tokens.ids[0].tolist(), self.model.tokenizer.decode
        answer = decode(ids[start + 1 : stop + 1], skip_special_tokens=True)
        return decode(ids[: start + 1], skip_special_tokens=True).strip(), answer.strip()

    def short_names(self, data: Entities, most: int) -> Entities:
        """The entities whose names have at most so many tokens within a sentence. Raises EditingError without two."""
        names = [f" {entity.name}" for entity in data.entities]
        lengths = map(len, self.model.tokenizer(names, add_special_tokens=False)["input_ids"])
        kept = tuple(entity for entity, length in zip(data.entities, lengths, strict=True) if length <= most)
        if len(kept) < 2:
            raise EditingError(
                f"name_tokens={most}: {len(kept)} of the {len(names)} entities of {data.name} have names so short for "
                f"{self.model.name!r}; raise it, or set None for names of any length"
            )
        return replace(data, entities=kept)

    def lay_out(self, asked: Sequence[tuple[Prompt, str]], read: bool = True) -> Sequences:
        """Prompts with these answers as tokens, and their residual streams (left out unless ``read``).

        Raises EditingError where a row does not fit the model's context, or where the tokens do not tell entity from
        answer.
        """
        texts = [prompt.text + prompt.template.gap() + answer for prompt, answer in asked]
        tokens = self.model.tokenize(texts, self.model.context)
        own = self.model.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(tokens.ids) != len(texts):
            length, text = max(zip(map(len, own["input_ids"]), texts, strict=True))
            raise EditingError(
                f"{text!r} has {length} tokens, and a row of {self.model.name!r} may have {self.model.context}; leave "
                "the entity or the prompt out"
            )
        lengths = tokens.attention.sum(1).tolist()
        ends = [
            _ends(prompt, offsets, real - len(offsets))
            for (prompt, _), offsets, real in zip(asked, own["offset_mapping"], lengths, strict=True)
        ]
        place, start, stop = torch.tensor(ends, device=tokens.ids.device).T
        width = self.model.d_model if read else 0
        laid = Sequences(tokens, torch.zeros(*tokens.ids.shape, width, device=tokens.ids.device), place, start, stop)
        if read:
            for which in stop.argsort().split(BATCH):
                part = laid.of(which)
                laid.stream[which, : part.positions.shape[1]] = self.model.residual(part.tokens, self.layer)
        return laid


def _ends(prompt: Prompt, offsets: Sequence[tuple[int, int]], before: int) -> tuple[int, int, int]:
    """The last tokens of entity, prompt and answer; ``before``: tokens of the row that stand before the text's own."""
    begin, end = len(prompt.template.before), len(prompt.template.before + prompt.entity.name)
    entity = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin]
    answer = [i for i, (_, b) in enumerate(offsets) if b > len(prompt.text)]
    if not entity or not answer or entity[-1] >= answer[0]:
        raise EditingError(
            f"the tokens of {prompt.text!r} do not tell where {prompt.entity.name!r} ends and the answer begins; leave "
            "the entity out, or use a tokenizer that gives the places of its tokens"
        )
    return before + entity[-1], before + answer[0] - 1, before + len(offsets) - 1


@dataclass(frozen=True)
class Pool:
    """The prompts that a model completes with the right value; pairs are drawn from them.

    ``asked`` are all that were tried; ``splits`` tells for each prompt of the pool which pairs may have it.
    """

    speaker: Speaker
    attributes: tuple[str, ...]
    asked: tuple[Prompt, ...]
    prompts: tuple[Prompt, ...]
    splits: tuple[str, ...]
    sequences: Sequences

    @staticmethod
    def of(speaker: Speaker, data: Entities, n: Mapping[str, int], held_out: bool, rng: np.random.Generator) -> Pool:
        """As :meth:`ask`. Raises EditingError where the model does not know two values of an attribute in a split."""
        pool = Pool.ask(speaker, data, n, held_out, rng)
        pool._check()
        return pool

    @staticmethod
    def ask(speaker: Speaker, data: Entities, n: Mapping[str, int], held_out: bool, rng: np.random.Generator) -> Pool:
        """From ``n`` prompts of each attribute and split; without ``held_out`` either split has all there are.

        Empty where the model knows nothing.
        """
        asked, splits = [], []
        for attribute in data.attributes:
            for split in SPLITS:
                drawn = _draw(data, attribute, split if held_out else None, n[split], rng)
                asked += drawn
                splits += [split] * len(drawn)
        laid = speaker.lay_out([(prompt, prompt.value) for prompt in asked])
        right = torch.cat([speaker.right(laid.of(which)) for which in torch.arange(len(asked)).split(BATCH)])
        kept = right.nonzero()[:, 0].tolist()
        prompts, parts = tuple(asked[i] for i in kept), tuple(splits[i] for i in kept)
        return Pool(speaker, data.attributes, tuple(asked), prompts, parts, laid.of(torch.tensor(kept).long()))

    def pairs(self, attribute: str, split: str, n: int, rng: np.random.Generator) -> Pairs:
        """Up to ``n`` pairs for Cause, and as many for Isolation from all other attributes together.

        Training pairs go on from the pool's own sequences, test pairs from some with the wanted answer. Raises
        EditingError where no pair is left for Cause.
        """
        drawn = [self._differing([attribute], split, n, rng)]
        drawn.append(self._differing([a for a in self.attributes if a != attribute], split, n, rng))
        numbers = np.concatenate(drawn, axis=1)
        causes = [True] * n + [False] * n
        wanted = [
            (self.prompts[b], self.prompts[s if c else b].value) for (b, s), c in zip(numbers.T, causes, strict=True)
        ]
        laid = self.speaker.lay_out(wanted, read=split == "test")
        base, source = torch.from_numpy(numbers).to(laid.place.device)
        cause = torch.tensor(causes, device=base.device)
        kept = (~cause | (laid.first != self.sequences.first[base])).nonzero()[:, 0]
        if not cause[kept].any():
            raise EditingError(
                f"in all {n} pairs drawn for {attribute!r} in the {split} split, the two values begin with the same "
                f"token of {self.speaker.model.name!r}, so that no edit can be told; leave the attribute out"
            )
        if split == "test":
            sequences, row = laid.of(kept), torch.arange(len(kept), device=base.device)
        else:
            sequences, row = self.sequences, base[kept]
        return Pairs(base[kept], source[kept], cause[kept], laid.first[kept], sequences, row)

    def counts(self) -> dict[str, float]:
        """What was asked, and the share of it that the model knew; an entity is known by one prompt."""
        asked, known = ({prompt.entity.name for prompt in prompts} for prompts in (self.asked, self.prompts))
        return {
            "editing_prompts": float(len(self.asked)),
            "editing_known_prompts": len(self.prompts) / len(self.asked),
            "editing_entities": float(len(asked)),
            "editing_known_entities": len(known) / len(asked),
        }

    def known(self) -> pd.DataFrame:
        """A row for each attribute: ``prompts`` and ``entities`` asked, those known of them, ``values`` so told."""
        rows = {}
        for attribute in self.attributes:
            asked, told = ([p for p in every if p.attribute == attribute] for every in (self.asked, self.prompts))
            entities, known = ({prompt.entity.name for prompt in part} for part in (asked, told))
            found = {"prompts": len(asked), "known prompts": len(told), "entities": len(entities)}
            rows[attribute] = found | {"known entities": len(known), "values": len({prompt.value for prompt in told})}
        return pd.DataFrame.from_dict(rows, orient="index")

    def _places(self, attribute: str, split: str) -> Int[np.ndarray, "found"]:
        told = zip(self.prompts, self.splits, strict=True)
        return np.flatnonzero([prompt.attribute == attribute and part == split for prompt, part in told])

    def _differing(
        self, attributes: Sequence[str], split: str, n: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "2 n"]:
        """Bases drawn from the prompts of some attributes, and sources asked the same but of another value."""
        places = {attribute: self._places(attribute, split) for attribute in attributes}
        values = np.array([prompt.value for prompt in self.prompts])
        base = rng.choice(np.concatenate(list(places.values())), n)
        source = np.empty_like(base)
        for i, place in enumerate(base):
            others = places[self.prompts[place].attribute]
            source[i] = rng.choice(others[values[others] != values[place]])
        return np.stack([base, source])

    def _check(self) -> None:
        for attribute in self.attributes:
            asked = sum(prompt.attribute == attribute for prompt in self.asked)
            for split in SPLITS:
                places = self._places(attribute, split)
                if len({self.prompts[i].value for i in places}) < 2:
                    raise EditingError(
                        f"of {asked} prompts for {attribute!r}, {self.speaker.model.name!r} completes {len(places)} of "
                        f"the {split} split rightly, with fewer than the two values that a pair needs; leave the "
                        "attribute out, try more prompts or take a model that knows these entities"
                    )


def _draw(data: Entities, attribute: str, split: str | None, n: int, rng: np.random.Generator) -> list[Prompt]:
    """Up to ``n`` different prompts of an attribute: of the entities and the wordings of a split, or of all."""
    entities = [e for e in data.entities if attribute in e.values and split in (e.split, None)]
    templates = [t for t in data.templates if t.attribute == attribute and split in (t.split, None)]
    total = len(entities) * len(templates)
    places = rng.choice(total, min(n, total), replace=False) if total else []
    return [Prompt(entities[place // len(templates)], templates[place % len(templates)]) for place in places]
