import dataclasses

import pytest
import torch

from pseudo_labels.curate import references
from pseudo_labels.curate.references import add_references, nearest_reference
from regionroute.data.images import write_image
from regionroute.data.manifest import EditSample, Region


class TestNearest:
    def test_by_angle_of_the_same_style_and_another_content(self):
        vectors = torch.tensor([[1.0, 0], [10, 1], [0, 1], [1, 0], [0.9, 0.1]])
        styles = [0, 0, 0, 1, 0]
        contents = [0, 1, 2, 3, 0]
        assert nearest_reference(vectors, styles, contents).tolist() == [1, 4, 4, -1, 1]

    def test_the_same_content_in_the_same_style_is_no_reference(self):
        vectors = torch.eye(2)
        assert nearest_reference(vectors, [0, 0], [7, 7]).tolist() == [-1, -1]

    def test_ids_must_fit(self):
        with pytest.raises(ValueError, match="2 rows"):
            nearest_reference(torch.eye(2), [0], [0, 1])


def sample(index, style, folder):
    write_image(folder / f"{index}.png", torch.rand(3, 48, 48))
    mask = torch.zeros(1, 48, 48)
    mask[:, 8:40, 8:40] = 1
    write_image(folder / "mask.png", mask)
    return EditSample(
        f"s{index}",
        "0.png",
        f"{index}.png",
        (Region("dog", style, "mask.png", (8, 8, 40, 40)),),
        "p",
        provenance={"photo_hash": f"h{index}"},
    )


@pytest.fixture(scope="module", params=["siglip", "dinov2"])
def encoder(request, networks, tmp_path_factory):
    save = getattr(networks, f"save_{request.param}")
    return str(save(tmp_path_factory.mktemp("encoder") / request.param))


def test_samples_name_another_of_their_style(encoder, tmp_path):
    samples = [sample(i, style, tmp_path) for i, style in enumerate(["a", "a", "a", "b"])]
    several = dataclasses.replace(samples[0], id="multi", regions=samples[0].regions * 2)
    named = add_references([*samples, several], tmp_path, encoder)
    chosen = [item.provenance["reference"] for item in named]
    assert all(name in {"s0", "s1", "s2"} for name in chosen[:3])
    assert all(item.id != name for item, name in zip(named, chosen, strict=True))
    assert chosen[3:] == [None, None]


def test_a_reference_is_of_the_same_split(encoder, tmp_path):
    samples = [sample(i, "a", tmp_path) for i in range(4)]
    samples = [
        dataclasses.replace(item, split=split)
        for item, split in zip(samples, ("train", "test", "train", "test"), strict=True)
    ]
    named = add_references(samples, tmp_path, encoder)
    assert [item.provenance["reference"] for item in named] == ["s2", "s3", "s0", "s1"]


def test_embeddings_are_computed_once(encoder, tmp_path, monkeypatch):
    samples = [sample(i, "a", tmp_path) for i in range(2)]
    first = add_references(samples, tmp_path, encoder)
    monkeypatch.setattr(references, "_encoder", lambda *_: pytest.fail("encoded again"))
    assert add_references(samples, tmp_path, encoder) == first
