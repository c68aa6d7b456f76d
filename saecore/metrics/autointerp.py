"""Automated interpretability: can a reader of a latent's strongest sequences tell where else it fires?

The paper's protocol (Sec. 4): 200 random live latents, up to 15 top sequences for a description, then 100 test
sequences, 50 that activate at varied strength and 50 random ones that do not; the score is the accuracy, chance 0.5.
What it leaves open follows SAEBench's ``autointerp`` (2503.09532), except where that lets sequences leak:

- A sequence is 21 tokens around a token (``buffer=10``), moved inside its row at either end, so that none is shorter. A
  token counts as activating above 1 % of the latent's greatest activation (``act_threshold_frac``).
- A row of tokens gives a latent at most one sequence, around its strongest token there. SAEBench's windows may overlap.
  No two sequences of a latent hold the same tokens either, so that no test sequence was seen with the description.
- Varied strength (``squared``): of the sequences below the top ones each is drawn with a weight of its squared peak, as
  SAEBench does, which favours strong ones. ``ranks`` takes them at equal steps in the order of strength instead: most
  of a latent's sequences are weak, and this asks whether the description holds for them too.
- Silent sequences are checked to be silent at every token. SAEBench's random ones are not checked.
- A latent with fewer than 65 sequences splits them in the same proportion, with as many silent as active ones in the
  test; with fewer than ``LEAST`` of either it is left out and counted.

Random silent sequences are easy to tell. The hard ones are silent around a token at which a top sequence peaks, in
contexts most like theirs; where a latent never leaves its tokens out, around other tokens in such contexts. Chance is
below 0.5 for them: a description that names no more than the token takes every hard one for active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from saecore.spec import SpecError, one_of

HALF = 10
WIDTH = 2 * HALF + 1
"""Tokens of a sequence."""
LATENTS = 200
FREQUENCY = 1e-6
"""Share of the tokens on which a live latent fires at least."""
TOP, ACTIVE, SILENT = 15, 50, 50
"""Sequences to describe from, and of either kind in the test."""
LEAST = 10
"""Test sequences of either kind that a latent needs."""
THRESHOLD = 0.01
"""Share of the latent's greatest activation above which a token counts as activating."""
RESERVED_EVERY = 10
"""One row in so many is in no description and no test; a judge may learn from it what is common."""
POOL = 1000
"""Silent sequences of either kind (same token, any token) among which the hard ones are looked for."""
SPREADS = ("squared", "ranks")
REACH = 4
"""Tokens on either side that count as context, each with a weight of one over its distance."""


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens in rows that no sequence crosses. ``row`` rises; ``pieces`` gives each token's own characters.

    Raises SpecError where a row is shorter than a sequence, or where there are fewer rows than a reserved one needs.
    """

    ids: Int[np.ndarray, "positions"]
    row: Int[np.ndarray, "positions"]
    pieces: Mapping[int, str]

    def __post_init__(self) -> None:
        rows, counts = np.unique(self.row, return_counts=True)
        if len(rows) < RESERVED_EVERY or counts.min() < WIDTH or (rows != np.arange(len(rows))).any():
            shortest = counts.min() if len(rows) else 0
            raise SpecError(
                f"{len(rows)} rows, the shortest of {shortest} tokens: need {RESERVED_EVERY} rows, numbered from 0, of "
                f"{WIDTH} tokens each; pass more text and leave short rows out"
            )

    @cached_property
    def start(self) -> Int[np.ndarray, "positions"]:
        """Where the sequence around each position starts."""
        ends = np.cumsum(np.bincount(self.row))
        first = np.concatenate([[0], ends[:-1]])
        return np.clip(np.arange(len(self.ids)) - HALF, first[self.row], ends[self.row] - WIDTH)

    @cached_property
    def content(self) -> Int[np.ndarray, "starts"]:
        """A number for each start, equal where the tokens that follow are."""
        windows = np.lib.stride_tricks.sliding_window_view(self.ids.astype(np.int32), WIDTH)
        return np.unique(windows, axis=0, return_inverse=True)[1].ravel()

    @cached_property
    def reserved(self) -> Bool[np.ndarray, "positions"]:
        return self.row % RESERVED_EVERY == RESERVED_EVERY - 1

    @cached_property
    def tiles(self) -> Int[np.ndarray, "tiles"]:
        """Starts of the sequences, side by side, into which the reserved rows are cut."""
        lengths = np.bincount(self.row)
        within = np.arange(len(self.ids)) - (np.cumsum(lengths) - lengths)[self.row]
        whole = (within % WIDTH == 0) & (within + WIDTH <= lengths[self.row])
        return np.flatnonzero(self.reserved & whole)


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A sequence, with one latent's activations on it (0 where it is silent) and where these count."""

    text: Text
    start: int
    values: Float[np.ndarray, "width"]
    active: Bool[np.ndarray, "width"]

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(self.text.pieces[i] for i in self.text.ids[self.start : self.start + WIDTH].tolist())

    @property
    def plain(self) -> str:
        return _shown("".join(self.tokens))

    @property
    def marked(self) -> str:
        """With ``<<`` and ``>>`` around each token on which the latent fires, as SAEBench marks them."""
        return _shown("".join(f"<<{t}>>" if a else t for t, a in zip(self.tokens, self.active, strict=True)))


@dataclass(frozen=True, eq=False)
class Trial:
    """What a judge is given of one latent: ``top``, strongest first; ``silent``, the text's tiles where it is silent.

    ``test`` and ``hard`` hold the same active sequences with random and with hard silent ones, shuffled; ``truth`` and
    ``hard_truth`` tell which are active. ``same_token`` is the share of hard ones around a token of the top peaks.
    """

    latent: int
    frequency: float
    top: tuple[Excerpt, ...]
    silent: Bool[np.ndarray, "tiles"]
    test: tuple[Excerpt, ...]
    truth: Bool[np.ndarray, "tests"]
    hard: tuple[Excerpt, ...]
    hard_truth: Bool[np.ndarray, "hard_tests"]
    same_token: float


@dataclass(frozen=True)
class Judged:
    """A latent's trial with what the judge made of it; None where it gave no usable answer."""

    trial: Trial
    description: str | None
    said: Sequence[bool] | None
    hard_said: Sequence[bool] | None

    @property
    def accuracy(self) -> float:
        """NaN where the judge did not answer."""
        return accuracy(self.said, self.trial.truth)

    @property
    def accuracy_hard(self) -> float:
        return accuracy(self.hard_said, self.trial.hard_truth)


def accuracy(said: Sequence[bool] | None, truth: Bool[np.ndarray, "tests"]) -> float:
    """(share of active ones named + share of silent ones left out) / 2, which is accuracy where both are equally many.

    A judge that ignores the sequences has 0.5. NaN where there is no answer.
    """
    if said is None:
        return float("nan")
    named = np.asarray(said, dtype=bool)
    return float((named[truth].mean() + 1 - named[~truth].mean()) / 2)


@dataclass(frozen=True)
class Chosen:
    """Trials of randomly chosen latents. ``live``: latents that fire often enough; ``left_out``: tried, but too few or
    too many sequences to test."""

    trials: tuple[Trial, ...]
    live: int
    left_out: int


def choose(text: Text, codes: sparse.csc_array, seed: int, latents: int = LATENTS, spread: str = SPREADS[0]) -> Chosen:
    """Trials of ``latents`` random live latents, fewer where there are not so many.

    ``codes``: (positions, n_latents). The same seed gives a latent the same trial, whichever others are chosen.
    """
    frequency = np.diff(codes.indptr) / len(text.ids)
    live = np.flatnonzero((frequency > 0) & (frequency >= FREQUENCY))
    trials, left_out = [], 0
    for latent in np.random.default_rng(seed).permutation(live).tolist():
        if len(trials) == latents:
            break
        found = trial(text, codes, latent, seed, spread)
        trials += [found] if found else []
        left_out += found is None
    return Chosen(tuple(trials), len(live), left_out)


def trial(text: Text, codes: sparse.csc_array, latent: int, seed: int, spread: str = SPREADS[0]) -> Trial | None:
    """One latent's sequences, or None where it has too few that are active or silent. Needs sorted indices."""
    one_of("spread", spread, SPREADS)
    part = slice(*codes.indptr[latent : latent + 2])
    positions, strengths = codes.indices[part], codes.data[part]
    if not len(positions) or strengths.max() <= 0:
        return None
    rng = np.random.default_rng([seed, latent])
    values = np.zeros(len(text.ids), dtype=np.float32)
    values[positions] = strengths
    counts = values > THRESHOLD * strengths.max()
    peaks = _peaks(text, values, np.flatnonzero(counts & ~text.reserved))
    top = peaks[: min(TOP, len(peaks) * TOP // (TOP + ACTIVE))]
    below = peaks[len(top) :]
    active = _spread(below, values[below], spread, rng)
    silent = _silent(values)
    used = np.concatenate([top, active])
    free = silent[text.start] & ~text.reserved & ~np.isin(text.row, text.row[used])
    seen = text.content[text.start[used]]
    quiet = _distinct(text, _draw(np.flatnonzero(free), 10 * SILENT, rng), seen)[: min(SILENT, len(active))]
    near = np.isin(text.ids, text.ids[top])
    hard = _distinct(text, _closest(text, top, near, free, rng), seen)[: len(quiet)]
    if not len(top) or min(len(active), len(quiet), len(hard)) < LEAST:
        return None

    def excerpts(places: Int[np.ndarray, "n"]) -> tuple[Excerpt, ...]:
        return tuple(
            Excerpt(text, s, values[s : s + WIDTH], counts[s : s + WIDTH]) for s in text.start[places].tolist()
        )

    def test(others: Int[np.ndarray, "n"]) -> tuple[tuple[Excerpt, ...], Bool[np.ndarray, "tests"]]:
        order = rng.permutation(len(active) + len(others))
        return excerpts(np.concatenate([active, others])[order]), order < len(active)

    frequency = len(positions) / len(text.ids)
    same = float(near[hard].mean())
    return Trial(latent, frequency, excerpts(top), silent[text.tiles], *test(quiet), *test(hard), same)


def _peaks(
    text: Text, values: Float[np.ndarray, "positions"], places: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "peaks"]:
    """The strongest of ``places`` in each row, strongest first; of several with the same tokens, the strongest."""
    return _distinct(text, places[np.argsort(-values[places], kind="stable")], places[:0])


def _distinct(text: Text, places: Int[np.ndarray, "n"], seen: Int[np.ndarray, "m"]) -> Int[np.ndarray, "kept"]:
    """In their order, the first of each row and of each content that was not seen."""
    places = places[_firsts(text.row[places])]
    places = places[_firsts(text.content[text.start[places]])]
    return places[~np.isin(text.content[text.start[places]], seen)]


def _firsts(labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "distinct"]:
    """Where each label stands first."""
    return np.sort(np.unique(labels, return_index=True)[1])


def _spread(
    places: Int[np.ndarray, "n"], strengths: Float[np.ndarray, "n"], spread: str, rng: np.random.Generator
) -> Int[np.ndarray, "active"]:
    """Up to ``ACTIVE`` of the places, which come in the order of strength."""
    count = min(ACTIVE, len(places))
    if spread == "ranks":
        return places[np.linspace(0, len(places) - 1, count).round().astype(int)]
    weights = strengths.astype(np.float64) ** 2
    return rng.choice(places, count, replace=False, p=weights / weights.sum()) if count else places


def _silent(values: Float[np.ndarray, "positions"]) -> Bool[np.ndarray, "starts"]:
    """For each start whether the sequence has no activation at all."""
    total = np.concatenate([[0], np.cumsum(values > 0)])
    return total[WIDTH:] == total[:-WIDTH]


def _draw(places: Int[np.ndarray, "n"], count: int, rng: np.random.Generator) -> Int[np.ndarray, "drawn"]:
    """In random order, all of them or ``count`` draws."""
    return rng.permutation(places) if len(places) <= count else rng.choice(places, count)


def _closest(
    text: Text,
    top: Int[np.ndarray, "top"],
    near: Bool[np.ndarray, "positions"],
    free: Bool[np.ndarray, "positions"],
    rng: np.random.Generator,
) -> Int[np.ndarray, "candidates"]:
    """Free positions, those at the top peaks' tokens (``near``) first, then by how much of their context they share.

    A neighbour counts where a top peak has the same token at the same distance.
    """
    pools = (np.flatnonzero(free & near), np.flatnonzero(free & ~near))
    pool = np.concatenate([_draw(places, POOL, rng) for places in pools])
    score = near[pool] * 10.0  # above any context: 2 (1 + 1/2 + 1/3 + 1/4) = 4.2
    for offset in (*range(-REACH, 0), *range(1, REACH + 1)):
        there, own = _shifted(text, pool, offset), _shifted(text, top, offset)
        score += (np.isin(there, own) & (there >= 0)) / abs(offset)
    return pool[np.argsort(-score, kind="stable")]


def _shifted(text: Text, places: Int[np.ndarray, "n"], offset: int) -> Int[np.ndarray, "n"]:
    """The token so far from each place, -1 outside its row."""
    there = np.clip(places + offset, 0, len(text.ids) - 1)
    return np.where((text.row[there] == text.row[places]) & (there == places + offset), text.ids[there], -1)


def _shown(text: str) -> str:
    """On one line."""
    return text.replace("\ufffd", "").replace("\n", "↵").replace("\r", "")
