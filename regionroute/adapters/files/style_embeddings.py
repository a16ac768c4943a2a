"""Styles by name among experts that are chosen by example: each trained style's mean embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regionroute.adapters.files.lora_file import write_tensors
from regionroute.errors import UserError, nearest

FILE = "style_embeddings.safetensors"


@dataclass(frozen=True, eq=False)
class StyleEmbeddings:
    """Embeddings [Ds] fp32 by the style's name.

    A blend of styles is the weighted mean of their embeddings.
    """

    by_name: Mapping[str, Tensor]

    @property
    def names(self) -> list[str]:
        """The trained styles."""
        return list(self.by_name)

    def name(self, style: str) -> str:
        """The style's name as it was trained, given in any case.

        Raises:
            UserError: an unknown style; names the nearest.
        """
        for name in self.by_name:
            if name.casefold() == style.strip().casefold():
                return name
        raise UserError(
            f'these experts were not trained on style "{style}", the nearest is '
            f'"{nearest(style, self.by_name)}" (known: {", ".join(self.by_name)}); or show them '
            "an example image"
        )

    def blend(self, weights: Mapping[str, float]) -> Tensor:
        """The mean embedding [Ds] of styles with weights above 0."""
        total = sum(weights.values())
        return torch.stack([self.by_name[n] * (w / total) for n, w in weights.items()]).sum(0)

    def nearest(self, embedding: Tensor) -> tuple[str, float]:
        """The trained style most like an embedding [Ds], and their cosine."""
        own = embedding.detach().float().cpu()
        cosines = {
            name: torch.cosine_similarity(own, other, dim=0).item()
            for name, other in self.by_name.items()
        }
        best = max(cosines, key=lambda name: cosines[name])
        return best, cosines[best]

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes them into the experts' folder, complete or not at all."""
        write_tensors(Path(folder) / FILE, {n: x.cpu() for n, x in self.by_name.items()}, {})


def load_style_embeddings(folder: str | PathLike[str], style_dim: int) -> StyleEmbeddings:
    """Reads what `StyleEmbeddings.save` wrote.

    Args:
        folder: of the experts.
        style_dim: Ds of their gates.

    Raises:
        UserError: missing or damaged, or of another width.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"{path}: this file is missing, copy the whole folder of the experts")
    try:
        by_name = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: this file is damaged, copy it again ({error})") from error
    wrong = [name for name, x in by_name.items() if x.shape != (style_dim,)]
    wrong += [name for name, x in by_name.items() if not torch.isfinite(x.float()).all()]
    if wrong or not by_name:
        raise UserError(f"{path}: its embeddings do not fit these experts, copy it again")
    return StyleEmbeddings({name: x.float() for name, x in sorted(by_name.items())})
