"""Any transformers model as a residual stream: read after a block, or put in place there.

Which positions count
---------------------
``keep`` marks the positions whose activations are stored, reconstructed and judged:

- padding never;
- position 0 of a row never, whatever stands there: it serves as an attention sink, with a norm far above the others';
- BOS, EOS, [CLS], [SEP] and the tokenizer's other special tokens never, wherever they stand; the unknown token is text
  and counts;
- of an image, the class token never (it is position 0), every patch always.

Rows of a norm far above the usual are dropped later, by the limit that the activation store estimates once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saecore.activations.pretrained import (
    ModelError,
    draw_network,
    family,
    locate,
    read_config,
    read_image_processor,
    read_network,
    read_tokenizer,
)
from saecore.spec import WEIGHTS, one_of

if TYPE_CHECKING:
    from PIL.Image import Image

Replace = Callable[[Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]]
"""From the kept positions' residuals, in raw units and float32, to what stands in their place."""


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens, padded on the right. ``attention`` is False on padding; ``keep``: see the module."""

    ids: Int[Tensor, "batch seq"]
    attention: Bool[Tensor, "batch seq"]
    keep: Bool[Tensor, "batch seq"]


@dataclass(frozen=True)
class ImageBatch:
    """Images as a vision tower takes them. ``keep`` covers its positions: the class token, then the patches."""

    pixels: Float[Tensor, "batch channels height width"]
    keep: Bool[Tensor, "batch seq"]


class _Stopped(Exception):
    """Ends a forward pass after the block that was asked for."""


class ResidualModel:
    """A transformers model, frozen, seen as its residual stream.

    ``context``: the most positions that a row may have. ``layer`` counts blocks from 0 and means what leaves the block.
    """

    def __init__(self, name: str, network: Any, processor: Any) -> None:
        """``processor``: the tokenizer, or the image processor of a vision tower."""
        self.name, self.network = name, network.eval().requires_grad_(False)
        config, kind = network.config, family(network.config, name)
        self.kind, self.processor = kind.kind, processor
        self.d_model, self.n_layers = int(config.hidden_size), int(config.num_hidden_layers)
        self.blocks = network.base_model.get_submodule(kind.blocks)
        if self.kind == "vision":
            self.context = (config.image_size // config.patch_size) ** 2 + 1
        else:
            self.context = int(config.max_position_embeddings)
            self._prefix, self._suffix, self._special = _special_ids(processor, self.kind)

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def has_logits(self) -> bool:
        """Whether it predicts tokens."""
        return self.kind == "decoder"

    @property
    def tokenizer(self) -> Any:
        """The model's own. Raises ModelError for a vision tower."""
        if self.kind == "vision":
            raise ModelError(f"{self.name} sees images and has no tokenizer; give it images through pixels()")
        return self.processor

    def tokenize(self, texts: Sequence[str], context: int) -> TokenBatch:
        """Every text's tokens, in order, in rows of at most ``context``; a row never joins two texts.

        Each row starts with BOS where the tokenizer has one (a bidirectional encoder's rows lie between [CLS] and
        [SEP]), so a text of any length loses nothing. A text without tokens has no row; where none has one, there is a
        row of padding. Raises ModelError where ``context`` is longer than the model's or leaves no room for text.
        """
        around = len(self._around())
        room = context - around
        if room < 1 or context > self.context:
            raise ModelError(f"context={context} must lie between {around + 1} and {self.name}'s {self.context}")
        rows = []
        for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []:
            rows += [self._prefix + ids[i : i + room] + self._suffix for i in range(0, len(ids), room)]
        rows = rows or [[]]
        ids = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.long)
        attention = torch.zeros_like(ids, dtype=torch.bool)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            attention[place, : len(row)] = True
        return self.from_ids(ids, attention)

    def from_ids(self, ids: Int[Tensor, "batch seq"], attention: Bool[Tensor, "batch seq"] | None = None) -> TokenBatch:
        """A batch of given tokens (all of them attended to, by default), special tokens included.

        Raises ModelError where there is padding before a token.
        """
        ids = ids.to(self.device, torch.long)
        attention = torch.ones_like(ids, dtype=torch.bool) if attention is None else attention.to(self.device).bool()
        if (attention[:, 1:] & ~attention[:, :-1]).any():
            raise ModelError("attention has padding before a token; pad rows on the right")
        self._around()
        keep = attention & ~torch.isin(ids, self._special.to(self.device))
        keep[:, 0] = False
        return TokenBatch(ids, attention, keep)

    def pixels(self, images: Sequence[Image]) -> ImageBatch:
        """Images as the model's own processor prepares them. Raises ModelError for a language model."""
        if self.kind != "vision":
            raise ModelError(f"{self.name} reads text; give it texts through tokenize()")
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        keep = torch.ones(len(pixels), self.context, dtype=torch.bool, device=self.device)
        keep[:, 0] = False
        return ImageBatch(pixels.to(self.device, self.dtype), keep)

    @torch.no_grad()
    def residual(self, batch: TokenBatch | ImageBatch, layer: int) -> Float[Tensor, "batch seq d_model"]:
        """The residual stream that leaves block ``layer``, in float32; later blocks never run.

        What stands on padding means nothing. Raises ModelError where there is no such block.
        """
        found: list[Tensor] = []

        def stop(_block: Any, _inputs: Any, output: Any) -> None:
            found.append(_stream(output).float())
            raise _Stopped

        with self._hooked(layer, stop), suppress(_Stopped):
            self.network.base_model(**self._inputs(batch))
        return found[0]

    @torch.no_grad()
    def logits(self, tokens: TokenBatch) -> Float[Tensor, "batch seq vocabulary"]:
        """In the model's dtype. Raises ModelError where it has no language-model head."""
        return self._predict(tokens)

    def logits_with(self, tokens: TokenBatch, layer: int, replace: Replace) -> Float[Tensor, "batch seq vocabulary"]:
        """Logits with the residual stream that leaves block ``layer`` replaced at the kept positions.

        Gradients flow to what ``replace`` trains, never into the model. Raises ModelError as :meth:`residual` and
        :meth:`logits` do.
        """

        def put(_block: Any, _inputs: Any, output: Any) -> Any:
            stream = _stream(output)
            changed = stream.clone()
            changed[tokens.keep] = replace(stream[tokens.keep].float()).to(stream.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        with self._hooked(layer, put):
            return self._predict(tokens)

    def logits_from(
        self,
        tokens: TokenBatch,
        layer: int,
        stream: Float[Tensor, "batch seq d_model"],
        at: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, "picked vocabulary"]:
        """Logits at the positions that ``at`` marks, row by row, with ``stream`` as what leaves block ``layer``.

        The blocks up to there never run, and no logits are made elsewhere. Gradients flow to ``stream``, never into the
        model. Raises ModelError as :meth:`residual` and :meth:`logits` do.
        """
        self._check_layer(layer)
        given = stream.to(self.dtype)

        def pick(_head: Any, inputs: tuple[Tensor]) -> Tensor:
            return inputs[0][at]

        if not self.has_logits:
            return self._predict(tokens)
        handle = self.network.get_output_embeddings().register_forward_pre_hook(pick)
        try:
            for block in self.blocks[: layer + 1]:
                block.forward = lambda *_inputs, **_options: given
            return self._predict(tokens)
        finally:
            handle.remove()
            for block in self.blocks[: layer + 1]:
                block.__dict__.pop("forward", None)  # the class's own stands again

    def _predict(self, tokens: TokenBatch) -> Tensor:
        if not self.has_logits:
            raise ModelError(f"{self.name} has no language-model head and predicts no tokens; use a decoder")
        return self.network(**self._inputs(tokens)).logits

    def _inputs(self, batch: TokenBatch | ImageBatch) -> dict[str, Any]:
        """Decoders go without a mask: padding lies on the right, where no token looks, and the fast kernels serve."""
        if isinstance(batch, ImageBatch):
            return {"pixel_values": batch.pixels}
        if self.kind == "encoder":
            return {"input_ids": batch.ids, "attention_mask": batch.attention.long()}
        return {"input_ids": batch.ids, "use_cache": False}

    @contextmanager
    def _hooked(self, layer: int, hook: Callable[..., Any]) -> Iterator[None]:
        self._check_layer(layer)
        handle = self.blocks[layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise ModelError(f"layer={layer} must lie between 0 and {self.n_layers - 1}: {self.name} counts from 0")

    def _around(self) -> list[int]:
        """What stands around the text of each row."""
        if self.kind == "vision":
            raise ModelError(f"{self.name} sees images, not text; give it images through pixels()")
        return self._prefix + self._suffix


def _stream(output: Any) -> Tensor:
    """Blocks return the residual stream, alone or (older releases) first."""
    return output[0] if isinstance(output, tuple) else output


def _special_ids(tokenizer: Any, kind: str) -> tuple[list[int], list[int], Int[Tensor, "special"]]:
    """What each row starts and ends with, and the tokens that never count."""
    bos, cls, sep, unk = (getattr(tokenizer, f"{name}_token_id") for name in ("bos", "cls", "sep", "unk"))
    roles = [bos, tokenizer.eos_token_id, tokenizer.pad_token_id, cls, sep]
    special = {i for i in tokenizer.all_special_ids if i != unk or unk in roles}
    prefix, suffix = ([cls], [sep]) if kind == "encoder" else ([bos], [])
    return _known(prefix), _known(suffix), torch.tensor(sorted(special), dtype=torch.long)


def _known(ids: Sequence[int | None]) -> list[int]:
    return [i for i in ids if i is not None]


def load(
    name: str,
    *,
    weights: str = "trained",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> ResidualModel:
    """A model by name: ``atlas``, ``minilm``, a local folder or a hub id.

    ``weights="random"`` draws the same architecture from its own initialisation with ``seed``. ``dtype`` is bfloat16 by
    default on a card that computes in it and float32 elsewhere, because some families overflow float16. Raises
    ModelError for a model that cannot be reached, read or is of no known family.
    """
    one_of("weights", weights, WEIGHTS)
    place = locate(name)
    config = read_config(place)
    vision = family(config, name).kind == "vision"
    dtype = dtype or _dtype(torch.device(device))
    network = read_network(place, config, dtype) if weights == "trained" else draw_network(place, config, dtype, seed)
    processor = read_image_processor(place) if vision else read_tokenizer(place)
    return ResidualModel(name, network.to(device), processor)


def _dtype(device: torch.device) -> torch.dtype:
    half = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if half else torch.float32


__all__ = ["ImageBatch", "ModelError", "Replace", "ResidualModel", "TokenBatch", "load"]
