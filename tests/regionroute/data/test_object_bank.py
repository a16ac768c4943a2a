import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from regionroute.data.object_bank import (
    COMMON,
    PHOTO,
    BankIndex,
    BankPhoto,
    ObjectBank,
    Rendering,
    read_index,
    write_index,
    write_photos,
    write_rendering,
)
from regionroute.errors import UserError


def random_images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def masks():
    """Three masks of two photos: the second photo has two objects."""
    found = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for number in range(3):
        found[number, number] = 1
    return found


@pytest.fixture
def bank(tmp_path):
    """A bank of two photos in one style and one colour."""
    folder = tmp_path / "bank"
    write_photos(folder, random_images(2, 0), masks())
    photos = [
        BankPhoto(file="a.jpg", split="train", words=["dog"]),
        BankPhoto(file="b.jpg", split="test", words=["cup", "cat"], licence="CC0"),
    ]
    renderings = {
        "neon": Rendering(kind="style", words="neon glow", key="k"),
        "colour-red": Rendering(kind="colour", words="red", key="c"),
    }
    for seed, name in enumerate(renderings, start=1):
        write_rendering(folder, name, random_images(2, seed))
    write_index(folder, BankIndex(side=8, photos=photos, renderings=renderings, key="x"))
    return folder


def test_what_is_written_is_read(bank):
    read = ObjectBank(bank)

    assert read.side == 8
    assert read.split("train") == [0]
    assert read.split("test") == [1]
    assert read.names("style") == ["neon"]
    assert read.renderings["neon"].words == "neon glow"
    assert torch.equal(read.image(PHOTO, 1), random_images(2, 0)[1] / 255)
    assert torch.equal(read.image("colour-red", 0), random_images(2, 2)[0] / 255)
    assert torch.equal(read.masks(0), masks()[:1].float())
    assert torch.equal(read.masks(1), masks()[1:].float())


def test_surroundings_are_the_words_that_stand_beside_many_objects(bank):
    read = ObjectBank(bank)
    assert read.surroundings() == set()
    shown = [["dog", "grass", "grass"]] * (COMMON - 1) + [["grass", "dog"], ["cat", "grass"]]
    read.photos = [BankPhoto(file="a.png", split="train", words=words) for words in shown]
    assert read.surroundings() == {"grass"}
    read.photos.append(BankPhoto(file="b.png", split="train", words=["grass", "paw"]))
    assert read.subjects() == {"dog", "cat"}


def test_other_facts_of_a_photo_are_kept(bank):
    index = read_index(bank)
    write_index(bank, index)

    assert json.loads((bank / "bank.json").read_text())["photos"][1]["licence"] == "CC0"


def test_a_bank_written_by_the_first_version_loads(tmp_path):
    """Byte for byte the files of that version: its index said `left_out`."""
    save_file(
        {"pictures": random_images(1, 0), "masks": masks()[:1]}, tmp_path / "photos.safetensors"
    )
    save_file({"pictures": random_images(1, 1)}, tmp_path / "neon.safetensors")
    row = {"file": "a.jpg", "split": "train", "words": ["dog"], "license": "CC BY"}
    index = {
        "side": 8,
        "photos": [row],
        "renderings": {"neon": {"kind": "style", "words": "neon", "key": "filter neon 12"}},
        "left_out": ["b.jpg: no object of it has a mask"],
        "key": "0123",
    }
    (tmp_path / "bank.json").write_text(json.dumps(index, indent=2))

    read = ObjectBank(tmp_path)

    assert torch.equal(read.image("neon", 0), random_images(1, 1)[0] / 255)
    assert read.masks(0).sum() == 8
    assert read_index(tmp_path).skipped == ["b.jpg: no object of it has a mask"]
    assert read_index(tmp_path).key == "0123"


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ("[]", "not the index"),
        ("{}", "side"),
        ('{"side": 8, "photos": [], "renderings": {}}', "photos"),
        ('{"side": 8, "photos": [{"file": "a"}], "renderings": {}}', "split"),
        ('{"side": 0, "photos": [], "renderings": {}}', "side"),
    ],
)
def test_a_wrong_index_is_one_sentence(bank, index, part):
    (bank / "bank.json").write_text(index)

    with pytest.raises(UserError, match=part):
        ObjectBank(bank)


def test_a_bank_that_cannot_be_used_is_one_sentence(bank, tmp_path):
    with pytest.raises(UserError, match="regionroute bank"):
        ObjectBank(tmp_path / "nowhere")
    shutil.copytree(bank, tmp_path / "cut")
    (tmp_path / "cut" / "colour-red.safetensors").write_bytes(b"cut")
    cut = ObjectBank(tmp_path / "cut")
    with pytest.raises(UserError, match=r"colour-red\.safetensors"):
        cut.image("colour-red", 0)
    (tmp_path / "cut" / "colour-red.safetensors").unlink()
    with pytest.raises(UserError, match=r"colour-red\.safetensors is missing"):
        ObjectBank(tmp_path / "cut")
