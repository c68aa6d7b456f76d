"""A judge that has the labels of the text: the description is the rule that best explains the top sequences.

What a rule may say is what could be said of a latent in a few words, in a vocabulary that is the same for every SAE:

- that a label holds, such as ``topic = sport`` or ``city_country = Peru``, of the concepts that made the text;
- that the token is one in particular, or that it follows one in particular: a description such as "the word ' in'" or
  "what comes after 'Q'" is a fair one, and without it latents for words would count as uninterpretable;
- two of these at once, of the same token.

A model that reads the text could say more ("any of these three words", "capitals in general"), so the oracle measures
from below; and it knows labels that no reader of the text could tell (a city's continent). It makes no slips, so what
keeps it from 1 is the latent, or the vocabulary.

A rule is scored as the test will score it: (share of the top sequences in which it holds at an activating token + 1 -
share of silent sequences in which it holds anywhere) / 2. Those come from the reserved rows, never from a test.
Rules are ranked by this score; of equal ones, one part before two, and labels before tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from saecore.judges.base import Plan, Question
from saecore.metrics.autointerp import WIDTH, Excerpt, Text, Trial

TOKEN, FOLLOWS = "the token", "after the token"
PARTS = 20
"""Single rules of which pairs are tried: those that hold in most of the top sequences."""

Rule = tuple[int, ...]
"""One or two parts, each a number that stands for a column and a value."""


class Oracle:
    """``labels``: for each concept one label for each of the text's positions, None where it has none.

    Raises ValueError where a concept does not have as many labels as the text has positions.
    """

    def __init__(self, text: Text, labels: Mapping[str, Sequence[str | None]]) -> None:
        wrong = {concept: len(told) for concept, told in labels.items() if len(told) != len(text.ids)}
        if wrong:
            raise ValueError(f"{len(text.ids)} positions, but {wrong} labels; give one label (or None) a position")
        before = np.concatenate([[-1], text.ids[:-1]])
        before[np.flatnonzero(np.diff(text.row, prepend=-1))] = -1
        columns = [np.asarray(["" if label is None else label for label in told]) for told in labels.values()]
        self._names: list[str] = []
        self._column: list[int] = []
        parts = []
        for column, (concept, told) in enumerate(zip(labels, columns, strict=True)):
            values, place = np.unique(told, return_inverse=True)
            parts.append(self._numbered(column, [f"{concept} = {v}" if v else "" for v in values.tolist()], place))
        for kind, ids in ((TOKEN, text.ids), (FOLLOWS, before)):
            values, place = np.unique(ids, return_inverse=True)
            names = [_named(kind, text, i) if i >= 0 else "" for i in values.tolist()]
            parts.append(self._numbered(len(parts), names, place))
        self.facts: Int[np.ndarray, "positions columns"] = np.stack(parts, axis=1)
        """What holds at each position: for each column the number of its value, -1 for none."""
        self._tiles = self.facts[text.tiles[:, None] + np.arange(WIDTH)]
        tile, atom = np.unique(self._per_tile(), axis=0).T
        shape = (len(text.tiles), len(self._names))
        self._in_tile = sparse.csr_array((np.ones(len(tile)), (tile, atom)), shape=shape)
        self._rules: dict[str, Rule] = {}

    def describe(self, trials: Sequence[Trial]) -> list[str | None]:
        return [self._describe(trial) for trial in trials]

    def judge(self, questions: Sequence[Question]) -> list[list[bool] | None]:
        """Raises ValueError for a description that this oracle did not give."""
        return [self._judge(*question) for question in questions]

    def plan(self, trials: Sequence[Trial], price_in: float, price_out: float) -> Plan:
        return Plan()

    def _numbered(self, column: int, names: Sequence[str], place: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Numbers of a column's values, -1 for those without a name."""
        own = np.full(len(names), -1)
        for i, name in enumerate(names):
            if name:
                own[i] = len(self._names)
                self._names.append(name)
                self._column.append(column)
        return own[place.ravel()]

    def _per_tile(self) -> Int[np.ndarray, "n 2"]:
        """(tile, number) of everything that holds in a tile."""
        tile, place, column = np.nonzero(self._tiles >= 0)
        return np.stack([tile, self._tiles[tile, place, column]], axis=1)

    def _describe(self, trial: Trial) -> str:
        owner = np.concatenate([np.full(e.active.sum(), i) for i, e in enumerate(trial.top)])
        facts = self.facts[np.concatenate([e.start + np.flatnonzero(e.active) for e in trial.top])]
        place, column = np.nonzero(facts >= 0)
        held = np.unique(np.stack([owner[place], facts[place, column]]), axis=1)[1]
        recall = np.bincount(held, minlength=len(self._names)) / len(trial.top)
        alarms = (trial.silent @ self._in_tile) / max(1, trial.silent.sum())
        score = np.where(recall > 0, (recall + 1 - alarms) / 2, -1)
        best, rule = float(score.max()), (int(score.argmax()),)
        hopeful = np.flatnonzero((recall + 1) / 2 > best)
        hopeful = hopeful[np.argsort(-recall[hopeful], kind="stable")][:PARTS]
        if len(hopeful) > 1:
            value, pair = self._best_pair(hopeful, facts, owner, trial.silent)
            best, rule = (value, pair) if value > best else (best, rule)
        description = " and ".join(self._names[number] for number in rule)
        self._rules[description] = rule
        return description

    def _best_pair(
        self,
        parts: Int[np.ndarray, "parts"],
        facts: Int[np.ndarray, "n columns"],
        owner: Int[np.ndarray, "n"],
        silent: Bool[np.ndarray, "tiles"],
    ) -> tuple[float, Rule]:
        """Score of the best two parts that hold of one token, and the two."""
        columns = np.asarray(self._column)[parts]
        here = facts[:, columns].T == parts[:, None]
        there = self._tiles[silent][..., columns].transpose(2, 0, 1) == parts[:, None, None]
        first, second = np.triu_indices(len(parts), 1)
        tops = np.zeros((len(first), owner.max() + 1), dtype=bool)
        both, place = np.nonzero(here[first] & here[second])
        tops[both, owner[place]] = True
        alarms = [
            (there[i] & there[j]).any(1).mean() if len(there[i]) else 0.0 for i, j in zip(first, second, strict=True)
        ]
        score: Float[np.ndarray, "pairs"] = (tops.mean(1) + 1 - np.asarray(alarms)) / 2
        found = int(score.argmax())
        return float(score[found]), (int(parts[first[found]]), int(parts[second[found]]))

    def _judge(self, description: str, excerpts: Sequence[Excerpt]) -> list[bool]:
        if description not in self._rules:
            raise ValueError(f"description {description!r} is none of this oracle's; call describe() of the same one")
        places = np.asarray([excerpt.start for excerpt in excerpts])[:, None] + np.arange(WIDTH)
        holds = np.ones(places.shape, dtype=bool)
        for number in self._rules[description]:
            holds &= self.facts[places, self._column[number]] == number
        return [bool(row.any()) for row in holds]


def _named(kind: str, text: Text, token: int) -> str:
    """Tokens that are parts of a character look alike and are told by their number."""
    piece = text.pieces[token]
    return f"{kind} #{token}" if "\ufffd" in piece or not piece else f"{kind} {piece!r}"
