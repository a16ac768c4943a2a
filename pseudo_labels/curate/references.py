"""Picks a style reference for every sample, as in the triplets of StyleExpert (§4.5).

The reference is the nearest image of the same style by embedding, never of the same content, so
that it shows the style only.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import LongTensor, Tensor
from tqdm import tqdm

from pseudo_labels.segment.hub import from_hub
from pseudo_labels.segment.weights import fingerprint
from regionroute.data.images import read_image, read_mask, to_pil
from regionroute.data.manifest import EditSample
from regionroute.files import atomic_write, settings_hash, text_hash


def nearest_reference(
    embeddings: Tensor, style_ids: Sequence[int], content_ids: Sequence[int]
) -> LongTensor:
    """For every row, find the nearest other row of its style and of another content.

    Args:
        embeddings: [N, D], any scale.
        style_ids: N ids.
        content_ids: N ids.

    Returns:
        [N] indices, -1 if there is none; the first of equally near rows.

    Raises:
        ValueError: the numbers of ids and rows differ.
    """
    if not len(embeddings) == len(style_ids) == len(content_ids):
        raise ValueError(
            f"{len(embeddings)} rows, {len(style_ids)} styles, {len(content_ids)} contents"
        )
    unit = F.normalize(embeddings.double(), dim=1)
    styles, contents = torch.tensor(style_ids), torch.tensor(content_ids)
    nearest = torch.full((len(unit),), -1)
    for row, vector in enumerate(unit):
        allowed = (styles == styles[row]) & (contents != contents[row])
        if allowed.any():
            similarity = torch.where(allowed, unit @ vector, torch.tensor(-torch.inf).double())
            nearest[row] = similarity.argmax()
    return nearest  # type: ignore[return-value]


class ImageEncoder:
    """Embeds images with any vision model of transformers (SigLIP, CLIP, DINOv2, ...).

    Args:
        source: hub id or local folder.
        device: where the network runs.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        self._processor, model = from_hub(source, "AutoModel", "an image encoder")
        self.model = model.to(device)

    @torch.no_grad()
    def embed(self, image: Tensor) -> Tensor:
        """Embed an image [3, H, W] in [0, 1]: [D]."""
        inputs = self._processor(images=to_pil(image), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device)
        if hasattr(self.model, "get_image_features"):
            output: Any = self.model.get_image_features(pixel_values=pixels)
        else:
            output = self.model(pixel_values=pixels)
        vector = output if isinstance(output, Tensor) else output.pooler_output
        return vector[0].float().cpu()


@functools.cache
def _encoder(source: str, device: str) -> ImageEncoder:
    return ImageEncoder(source, device)


def add_references(
    samples: Sequence[EditSample], out: Path, encoder: str, device: str = "cpu"
) -> list[EditSample]:
    """Choose the reference of each sample.

    Args:
        samples: samples of a data set; those with several regions get none.
        out: folder of the data set; embeddings are cached in it.
        encoder: hub id or folder of an image encoder.
        device: where it runs.

    Returns:
        The samples in order; `provenance["reference"]` is the id of another sample of the same
        split, or None.

    Raises:
        UserError: the encoder cannot be loaded.
    """
    single = [sample for sample in samples if len(sample.regions) == 1]
    bar = tqdm(single, desc="references", unit="sample", disable=None)
    vectors = [_embedding(sample, out, encoder, device) for sample in bar]
    if not vectors:
        return list(samples)
    # Of the same split, so that no photo of the test split shows a style in training.
    styles = _numbers([f"{sample.split}/{sample.regions[0].style}" for sample in single])
    contents = _numbers([sample.provenance["photo_hash"] for sample in single])
    nearest = nearest_reference(torch.stack(vectors), styles, contents).tolist()
    chosen = {
        sample.id: single[other].id if other >= 0 else None
        for sample, other in zip(single, nearest, strict=True)
    }
    return [
        dataclasses.replace(
            sample, provenance=sample.provenance | {"reference": chosen.get(sample.id)}
        )
        for sample in samples
    ]


def _embedding(sample: EditSample, out: Path, encoder: str, device: str) -> Tensor:
    """Embedding of the restyled object on grey; cached under the name of the target."""
    key = settings_hash([sample.target, text_hash(fingerprint(encoder))])[:16]
    record = out / ".cache" / "embeddings" / f"{key}.safetensors"
    try:
        return load_file(record)["embedding"]
    except (OSError, SafetensorError, KeyError):
        pass  # missing or damaged
    region = sample.regions[0]
    y0, x0, y1, x1 = region.box
    inside = read_mask(out / region.mask) > 0
    image = torch.where(inside, read_image(out / sample.target), torch.tensor(0.5))
    vector = _encoder(encoder, device).embed(image[:, y0:y1, x0:x1])
    with atomic_write(record) as temporary:
        save_file({"embedding": vector}, temporary)
    return vector


def _numbers(names: Sequence[str]) -> list[int]:
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return [order[name] for name in names]
