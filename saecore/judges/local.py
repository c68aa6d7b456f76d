"""A judge on this machine: an instruct model through transformers, answering greedily."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from saecore.activations.models import ModelError, load
from saecore.judges.language import Ask


class Local:
    """``name``: a folder or hub id of a decoder with a chat template, such as Qwen/Qwen2.5-7B-Instruct.

    ``batch`` questions are answered at once. Raises ModelError where the model cannot be opened or holds no chat.
    """

    def __init__(self, name: str, batch: int = 8, device: str | torch.device = "cpu") -> None:
        self.model, self.batch = load(name, device=device), batch
        if not self.model.has_logits or not self.model.tokenizer.chat_template:
            raise ModelError(f"{name} has no chat template and answers no questions; give an instruct model")

    def complete(self, asks: Sequence[Ask]) -> list[str]:
        """The answers in order, "" where one was cut off. Raises ModelError where a question exceeds the context."""
        order = sorted(range(len(asks)), key=lambda place: asks[place].characters)
        found = dict(zip(order, self._answers([asks[place] for place in order]), strict=True))
        return [found[place] for place in range(len(asks))]

    def known(self, ask: Ask) -> str | None:
        return None

    def _answers(self, asks: Sequence[Ask]) -> Iterator[str]:
        for first in range(0, len(asks), self.batch):
            yield from self._batch(asks[first : first + self.batch])

    @torch.no_grad()
    def _batch(self, asks: Sequence[Ask]) -> list[str]:
        tokenizer, network = self.model.tokenizer, self.model.network
        chats = [[{"role": role, "content": content} for role, content in ask.messages] for ask in asks]
        prompts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        rows = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        width, room = max(map(len, rows)), max(ask.max_tokens for ask in asks)
        if width + room > self.model.context:
            raise ModelError(
                f"{self.model.name}: a question of {width} tokens and an answer of {room} exceed its context of "
                f"{self.model.context}; give a model with a longer one"
            )
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(row) :], mask[place, width - len(row) :] = torch.tensor(row), 1
        ends = self._ends()
        out = network.generate(
            input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device), do_sample=False,
            max_new_tokens=room, pad_token_id=ends[0] if ends else 0, eos_token_id=ends or None,
        )  # fmt: skip
        return [self._read(row, ends) for row in out[:, width:].tolist()]

    def _ends(self) -> list[int]:
        """Tokens that end an answer."""
        told = self.model.network.generation_config.eos_token_id
        told = self.model.tokenizer.eos_token_id if told is None else told
        return [] if told is None else [told] if isinstance(told, int) else list(told)

    def _read(self, row: list[int], ends: Sequence[int]) -> str:
        stop = next((place for place, token in enumerate(row) if token in ends), None)
        if stop is None and ends:
            return ""
        return self.model.tokenizer.decode(row[:stop], skip_special_tokens=True)
