"""Does StyleGallery's matching choose the same object? By features that run offline.

    python bench/gallery_matching.py --assets ../shared/assets

A query is an object of a shared photo whose word another photo has too, at most `--per-word` photos
each. References: one photo of the same word and `--others` photos of other words, `--draws` random
sets per query. In every image
the object's mask is a region and the rest is divided by the clusters of nano-photos, so all
features choose among the same regions. Correct: the object's region is matched with the object of
the same word. Also: with any region of that photo, and what choosing at random gives. Features:

nano-photos  the word-aligned image encoder, for statistics and meaning, as `gallery` does offline
VGG16        relu4_3 for statistics, relu5_3 for meaning, 256 px
colour       the mean colour of the cells, for both
Each also by its meaning alone, without statistics and circles. DINOv2 was not available.

The photos are those that `regionroute bank` keeps for tests; the encoder did not see them. The
intervals resample words, since photos of a word are alike. The result goes to
bench/results/gallery_matching.json.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from eval.encoders.vision import VggEncoder, load_vgg
from pseudo_labels.segment.given import LabelledPhoto, content_hash, open_photo, read_labels
from pseudo_labels.stylegallery.clusters import to_grid
from pseudo_labels.stylegallery.config import MatchConfig
from pseudo_labels.stylegallery.matching import RegionMatcher, RegionSet
from pseudo_labels.stylegallery.networks import SIDE, encoded
from pseudo_labels.stylegallery.offline import find_clusters
from regionroute.files import text_hash, write_json

ALONE = MatchConfig(statistical=0.0, geometric=0.0)
RESAMPLES = 2000
TEST_SHARE = 0.1  # of `regionroute bank`
Features = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Item:
    """A photo with one object.

    Attributes:
        name: file of the photo.
        word: of the object.
        labels: regions [h, w] from 1.
        object: label of the object.
        features: statistics' and meaning's features by name.
    """

    name: str
    word: str
    labels: Tensor
    object: int
    features: dict[str, Features]

    def set(self, features: str) -> RegionSet:
        """Its part in matching."""
        mix, tokens = self.features[features]
        return RegionSet(mix, self.labels, tokens)


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--others", type=int, default=4, help="photos of other words (default: 4)")
    parser.add_argument("--draws", type=int, default=4, help="sets per query (default: 4)")
    parser.add_argument("--per-word", type=int, default=4, help="photos (default: 4)")
    parser.add_argument("--words", type=int, help="words at most")
    add_result_argument(parser, "gallery_matching")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vgg = load_vgg(str(args.assets / "weights" / "lpips" / "vgg16_features.safetensors"))
    photos = test_photos(args.assets / "photos_256" / "labels.jsonl", args.per_word, args.words)
    items = read_items(photos, vgg)
    questions = draw(items, args.others, args.draws)
    found, chance = {}, [1 / sum(r.labels.max() for r in refs) for _, refs in questions]
    for features in items[0].features:
        for way, config in (("all terms", MatchConfig()), ("meaning alone", ALONE)):
            matcher = Matcher(config)
            rows = [answer(query, refs, features, matcher) for query, refs in tqdm(questions)]
            found[f"{features}, {way}"] = {
                "object": by_words([row[0] for row in rows], questions),
                "photo": by_words([row[1] for row in rows], questions),
            }
    facts = {
        "photos": len(items),
        "words": len({query.word for query, _ in questions}),
        "questions": len(questions),
        "references": args.others + 1,
        "by chance": {"object": float(np.mean(chance)), "photo": 1 / (args.others + 1)},
    }
    write_json(args.result, provenance(("torch",)) | facts | {"features": found})
    for name, row in found.items():
        print(f"{name:<28} object {row['object']['mean']:.2f}, photo {row['photo']['mean']:.2f}")
    print(facts)
    return 0


class Matcher(RegionMatcher):
    """A matcher that computes an image's statistics once."""

    def __init__(self, config: MatchConfig) -> None:
        super().__init__(config)
        self._known: dict[int, Tensor] = {}

    def statistics(self, item: RegionSet) -> Tensor:
        """See `RegionMatcher.statistics`; images are kept by their regions."""
        key = id(item.labels)
        if key not in self._known:
            self._known[key] = super().statistics(item)
        return self._known[key]


def test_photos(labels: Path, per_word: int, words: int | None) -> list[LabelledPhoto]:
    """Test photos of one object, of every word that at least two of them have."""
    by_word: dict[str, list[LabelledPhoto]] = {}
    for photo in read_labels(str(labels))[0]:
        held_out = int(text_hash(content_hash(photo))[:8], 16) / 16**8 < TEST_SHARE
        if len(photo.objects) == 1 and held_out:
            by_word.setdefault(photo.objects[0].word, []).append(photo)
    enough = [rows[:per_word] for rows in by_word.values() if len(rows) > 1]
    return [photo for rows in enough[:words] for photo in rows]


def read_items(photos: list[LabelledPhoto], vgg: VggEncoder) -> list[Item]:
    """Regions and features of photos."""
    found = []
    for photo in tqdm(photos, desc="photos"):
        image, [segment], *_ = open_photo(photo)
        small = F.interpolate(image[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0]
        small = small.clamp(0, 1)
        mix = encoded(image)
        grid = (mix.shape[-2], mix.shape[-1])
        user = to_grid(segment.mask, grid)
        if not user.any():
            continue
        regions = find_clusters(mix, user)
        maps = vgg(small[None], ("relu4_3", "relu5_3"))
        deep = [F.interpolate(maps[name], grid, mode="bilinear")[0] for name in maps]
        colours = F.interpolate(small[None], grid, mode="area")[0]
        features = {
            "nano-photos": (mix, mix),
            "VGG16": (deep[0], deep[1]),
            "colour": (colours, colours),
        }
        own = int(regions[user > 0][0])
        found.append(Item(photo.name, photo.objects[0].word, regions, own, features))
    return found


def draw(items: list[Item], others: int, draws: int) -> list[tuple[Item, list[Item]]]:
    """Queries with their references; the first reference has the query's word."""
    chooser, found = random.Random(29), []
    for query in items:
        same = [item for item in items if item.word == query.word and item is not query]
        if not same:
            continue
        different: dict[str, list[Item]] = {}
        for item in items:
            if item.word != query.word:
                different.setdefault(item.word, []).append(item)
        for _ in range(draws):
            words = chooser.sample(sorted(different), others)
            rest = [chooser.choice(different[word]) for word in words]
            found.append((query, [chooser.choice(same), *rest]))
    return found


def answer(
    query: Item, references: list[Item], features: str, matcher: RegionMatcher
) -> tuple[bool, bool]:
    """Whether the query's object is matched with the object, and with the photo, of its word."""
    sets = [reference.set(features) for reference in references]
    match = matcher.match(query.set(features), sets)[query.object - 1]
    photo = match.reference == 0
    return photo and match.cluster == references[0].object, photo


def by_words(
    values: list[bool], questions: list[tuple[Item, list[Item]]]
) -> dict[str, float | int]:
    """Mean of words' means, with a 95 % interval of the bootstrap over words."""
    words: dict[str, list[bool]] = {}
    for value, (query, _) in zip(values, questions, strict=True):
        words.setdefault(query.word, []).append(value)
    means = np.array([np.mean(rows) for rows in words.values()])
    chooser = np.random.default_rng(0)
    drawn = chooser.choice(means, (RESAMPLES, len(means))).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"mean": float(means.mean()), "low": float(low), "high": float(high), "n": len(means)}


if __name__ == "__main__":
    raise SystemExit(main())
