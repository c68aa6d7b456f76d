"""Entities and the prompts that ask about them: atlas, RAVEL's own form, and what cannot be read."""

import json
import logging
import tarfile
from pathlib import Path

import pytest

from saecore import paths
from saecore.sources import atlas
from saecore.sources.entities import PARTS, EntityError, Template, open_entities

RAVEL = paths.root().parent / "shared" / "real" / "ravel" / "data.tgz"
BIRDS = {
    "entity_attributes": {
        "owl": {"Colour": "brown", "Diet": "mice"},
        "tit": {"Colour": "blue", "Diet": ""},
        "emu": {"Colour": "black"},
    },
    "entity_to_split": {"owl": "train", "tit": "val", "emu": "test"},
    "attribute_to_prompts": {"Colour": ["The %s is", '"%s": "'], "Diet": ["%s eats"], "Song": ["%s sings"]},
    "prompt_to_split": {"The %s is": "train", '"%s": "': "test", "%s eats": "val", "%s sings": "test"},
}


def write(folder: Path, told: dict = BIRDS, kind: str = "bird") -> Path:
    for part, content in told.items():
        (folder / f"ravel_{kind}_{part}.json").write_text(json.dumps(content))
    return folder


def test_atlas_prompts_are_its_wordings():
    data = open_entities("atlas")
    assert data.attributes == atlas.ATTRIBUTES and len(data.entities) == len(atlas.facts())
    lima = next(entity for entity in data.entities if entity.name == "Lima")
    assert lima.values["country"] == "Peru" and lima.split == next(c for c in atlas.facts() if c.name == "Lima").split
    for attribute in atlas.ATTRIBUTES:
        for held_out, split in ((False, "train"), (True, "test")):
            wanted = [wording.prompt("Lima") for wording in atlas.wordings(attribute, held_out)]
            found = [t for t in data.templates if t.attribute == attribute and t.split == split]
            assert [t.prompt("Lima") for t in found] == wanted and {t.gap() for t in found} == {" "}


@pytest.mark.parametrize("packed", [False, True])
def test_ravels_form_from_a_folder_and_from_its_archive(tmp_path, packed):
    place = write(tmp_path)
    if packed:
        with tarfile.open(tmp_path / "data.tgz", "w:gz") as archive:
            for part in PARTS:
                archive.add(tmp_path / f"ravel_bird_{part}.json", f"data/ravel_bird_{part}.json")
        place = tmp_path / "data.tgz"
    data = open_entities(f"{place}#bird")
    assert [(e.name, e.split, e.values) for e in data.entities] == [
        ("owl", "train", {"Colour": "brown", "Diet": "mice"}),
        ("tit", "train", {"Colour": "blue"}),
        ("emu", "test", {"Colour": "black"}),
    ]
    assert data.attributes == ("Colour", "Diet")
    assert [(t.attribute, t.prompt("owl") + t.gap() + "x", t.split) for t in data.templates] == [
        ("Colour", "The owl is x", "train"),
        ("Colour", '"owl": "x', "test"),
        ("Diet", "owl eats x", "train"),
        ("Song", "owl sings x", "test"),
    ]


def test_an_answer_stands_apart_but_for_space_and_opening_marks():
    gaps = {after: Template("a", "The ", after, "train").gap() for after in ("", " is", " is ", ": [", ': "', ",")}
    assert gaps == {"": " ", " is": " ", " is ": "", ": [": "", ': "': "", ",": " "}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entity_to_split": {"owl": "train"}}, r"'bird' is not of RAVEL's form \(KeyError\('tit'\)\)"),
        ({"attribute_to_prompts": {"Colour": ["No bird is"]}}, "is not of RAVEL's form"),
        ({"prompt_to_split": []}, r"prompt_to_split.json holds a list; RAVEL's files hold objects"),
    ],
)
def test_files_of_another_form_are_named(tmp_path, change, message):
    place = write(tmp_path, BIRDS | change)
    with pytest.raises(EntityError, match=message):
        open_entities(f"{place}#bird")


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(EntityError, match=r"ravel_fish_entity_attributes.json cannot be read .* is 'fish' one of"):
        open_entities(f"{tmp_path}#fish")
    with pytest.raises(EntityError, match="name no kind; give atlas or place#kind"):
        open_entities(str(tmp_path))
    with pytest.raises(EntityError, match="is no folder and no archive"):
        open_entities("/nowhere/at/all#city")
    (tmp_path / "ravel_bird_prompt_to_split.json").write_text('{"cut')
    with pytest.raises(EntityError, match=r"ravel_bird_prompt_to_split.json cannot be read \(Unterminated"):
        open_entities(f"{tmp_path}#bird")
    broken = tmp_path / "data.tgz"
    broken.write_bytes(b"no archive")
    with pytest.raises(EntityError, match="cannot be read"):
        open_entities(f"{broken}#bird")


def test_the_hub_gives_files_or_one_clear_line(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    write(tmp_path)
    asked, chatter = [], logging.getLogger("huggingface_hub.utils")
    before = chatter.isEnabledFor(logging.WARNING)

    def download(repository, name, repo_type):
        asked.append((repository, name, repo_type))
        assert not chatter.isEnabledFor(logging.WARNING)
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert len(open_entities("someone/birds#bird").entities) == 3
    assert asked[0] == ("someone/birds", "ravel_bird_entity_attributes.json", "dataset") and len(asked) == 4

    def refuse(*_, **__):
        raise OSError("no route to host\nand a long tail")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(EntityError, match="the hub does not give it: no route to host; offline, give atlas") as told:
        open_entities("someone/birds#bird")
    assert "long tail" not in str(told.value)
    assert before and chatter.isEnabledFor(logging.WARNING)


@pytest.mark.skipif(not RAVEL.exists(), reason="RAVEL's archive is not at hand")
def test_ravels_own_archive_is_read_whole():
    sizes = {}
    for kind in ("city", "nobel_prize_winner", "occupation", "physical_object", "verb"):
        data = open_entities(f"{RAVEL}#{kind}")
        sizes[kind] = (len(data.entities), len(data.templates), len(data.attributes))
        assert {entity.split for entity in data.entities} == {t.split for t in data.templates} == {"train", "test"}
    assert sizes == {
        "city": (3552, 273, 6),
        "nobel_prize_winner": (928, 301, 5),
        "occupation": (799, 92, 3),
        "physical_object": (563, 165, 4),
        "verb": (986, 359, 4),
    }
    city = open_entities(f"{RAVEL}#city")
    assert next(e for e in city.entities if e.name == "Aalborg").values["Country"] == "Denmark"
    assert any(t.prompt("Lima") + t.gap() + "Peru" == "Lima is a city in the country of Peru" for t in city.templates)
