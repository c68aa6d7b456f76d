"""Entities with known attributes, and prompts that ask for them: what causal editing needs (RAVEL, Huang et al. 2024).

RAVEL's five kinds of entities are ``city``, ``nobel_prize_winner``, ``occupation``, ``physical_object`` and ``verb``.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saecore import paths
from saecore.sources import atlas
from saecore.sources.hub import quiet, reason

SPLITS = ("train", "test")
OPENING = "\"'([{<"
"""After these an answer stands without a space."""
PARTS = ("entity_attributes", "entity_to_split", "attribute_to_prompts", "prompt_to_split")
"""RAVEL's files of a kind of entities, ``ravel_<kind>_<part>.json``."""


class EntityError(OSError):
    """Entities that cannot be read; the message names the place, the reason and the way out."""


@dataclass(frozen=True)
class Entity:
    """``values`` by attribute, as a sentence can hold them; an attribute that it lacks is not asked."""

    name: str
    split: str
    values: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True)
class Template:
    """A prompt around an entity's name, which the model is to go on with the attribute's value."""

    attribute: str
    before: str
    after: str
    split: str

    def prompt(self, name: str) -> str:
        """Up to where the answer begins, without the space that its first token carries."""
        return f"{self.before}{name}{self.after}"

    def gap(self) -> str:
        """What stands between prompt and answer: a space, but none after another or an opening quote or bracket."""
        return "" if self.after[-1:].isspace() or self.after.endswith(tuple(OPENING)) else " "


@dataclass(frozen=True)
class Entities:
    """A data set: entities, and templates that ask for their attributes."""

    name: str
    entities: tuple[Entity, ...]
    templates: tuple[Template, ...]

    @property
    def attributes(self) -> tuple[str, ...]:
        """What templates ask and entities have, in the templates' order."""
        has = {attribute for entity in self.entities for attribute in entity.values}
        return tuple(dict.fromkeys(t.attribute for t in self.templates if t.attribute in has))


def open_entities(dataset: str) -> Entities:
    """``atlas``, or one kind of RAVEL's entities as ``place#kind``.

    ``place`` is a folder of RAVEL's files, its archive ``data.tgz`` (github.com/explanare/ravel) or a hub id such as
    ``adamkarvonen/ravel_prompts``, which SAEBench reads. Raises EntityError for what is missing, unreachable or of
    another form.
    """
    if dataset == "atlas":
        return of_atlas()
    place, _, kind = dataset.partition("#")
    if not kind:
        raise EntityError(f"entities {dataset!r} name no kind; give atlas or place#kind, such as data.tgz#city")
    path = Path(place).expanduser()
    if path.is_dir():
        return of_ravel(dataset, kind, lambda name: (path / name).read_bytes())
    if path.is_file():
        return of_ravel(dataset, kind, lambda name: _member(path, name))
    if path.is_absolute() or place.count("/") != 1 or place.startswith((".", "~")):
        raise EntityError(f"{place!r} is no folder and no archive; give one of RAVEL's, or a hub id owner/name")
    return of_ravel(dataset, kind, lambda name: _from_hub(place, name))


def of_atlas() -> Entities:
    """The embedded world's cities. Wordings that its model was trained on train, those held out from it test."""
    entities = tuple(
        Entity(city.name, city.split, {a: getattr(city, a) for a in atlas.ATTRIBUTES}) for city in atlas.facts()
    )
    templates = []
    for attribute in atlas.ATTRIBUTES:
        for held_out, split in ((False, "train"), (True, "test")):
            for wording in atlas.wordings(attribute, held_out):
                before, _, rest = wording.text.partition("{city}")
                after = rest.partition("{value}")[0]
                templates.append(Template(attribute, before, after.rstrip(" "), split))
    return Entities("atlas", entities, tuple(templates))


def of_ravel(name: str, kind: str, read: Callable[[str], bytes]) -> Entities:
    """RAVEL's entities of a kind, from its files as ``read`` gives them. What is there to validate counts as training.

    Raises EntityError.
    """
    told: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        file = f"ravel_{kind}_{part}.json"
        try:
            told[part] = json.loads(read(file))
        except (OSError, ValueError, tarfile.TarError) as error:
            raise EntityError(f"{name}: {file} cannot be read ({error}); is {kind!r} one of RAVEL's kinds?") from error
        if not isinstance(told[part], dict):
            raise EntityError(f"{name}: {file} holds a {type(told[part]).__name__}; RAVEL's files hold objects")
    values, entity_split, prompts, prompt_split = (told[part] for part in PARTS)
    try:
        entities = tuple(
            Entity(entity, _split(entity_split[entity]), {a: v for a, v in has.items() if v})
            for entity, has in values.items()
        )
        templates = []
        for attribute, texts in prompts.items():
            for text in texts:
                before, after = text.split("%s")
                templates.append(Template(attribute, before, after, _split(prompt_split[text])))
    except (KeyError, ValueError, AttributeError) as error:
        raise EntityError(f"{name}: {kind!r} is not of RAVEL's form ({error!r})") from error
    return Entities(name, entities, tuple(templates))


def _split(split: str) -> str:
    return "train" if split == "val" else split


def _member(path: Path, name: str) -> bytes:
    with tarfile.open(path) as archive:
        for member in archive:
            if Path(member.name).name == name and (file := archive.extractfile(member)):
                return file.read()
    raise EntityError(f"it has no member {name}")


def _from_hub(repository: str, name: str) -> bytes:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise EntityError(f"{repository!r} is read from the hub ({error}); {paths.install_hint('models')}") from error
    try:
        with quiet():
            return Path(hf_hub_download(repository, name, repo_type="dataset")).read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        raise EntityError(
            f"the hub does not give it: {reason(error)}; offline, give atlas or RAVEL's own files"
        ) from error
