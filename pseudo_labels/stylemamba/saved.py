"""A fitted style on disk; it restyles images at any strength.

FOLDER/style.json            styles, networks, settings, scores
FOLDER/fusion.safetensors    the module and its style inputs
FOLDER/codec/                the codec, if it was fitted to the images
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pseudo_labels.stylemamba.codecs import PATCH, Codec, load_codec
from pseudo_labels.stylemamba.config import FusionConfig
from pseudo_labels.stylemamba.encoders import RANDOM
from pseudo_labels.stylemamba.modules.fusion import StyleFusion
from regionroute.errors import UserError, nearest
from regionroute.files import (
    atomic_write,
    file_hash,
    read_json,
    settings_hash,
    write_json,
)

FACTS_FILE, WEIGHTS_FILE, CODEC_FOLDER = "style.json", "fusion.safetensors", "codec"
_DESCRIPTIONS, _MODULE = "styles", "fusion."


class StyleFacts(BaseModel):
    """Content of ``style.json``.

    Attributes:
        styles: names, in the order of their descriptions.
        fusion: sizes of the module.
        codec: facts of the codec.
        vae: name of the codec.
        encoder: facts of the encoder the styles were fitted with.
        style_input: which style input the module was trained with.
        random: networks with random weights; such a style is meaningless.
        settings: settings, losses and images of the fit or training.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    styles: list[str]
    fusion: FusionConfig
    codec: dict[str, Any]
    vae: str
    encoder: dict[str, Any]
    style_input: str
    random: list[str]
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _before_normalization(cls, values: Any) -> Any:
        """Styles without the key are of a time when the scan was not normalised."""
        if isinstance(values, dict) and isinstance(values.get("fusion"), dict):
            return values | {"fusion": {"normalize": False} | values["fusion"]}
        return values


@dataclass
class SavedStyle:
    """One or many styles with the module that was fitted to them.

    Attributes:
        facts: see `StyleFacts`.
        fusion: the module.
        descriptions: style inputs of the module, [S, K].
        codec: the codec.
    """

    facts: StyleFacts
    fusion: StyleFusion
    descriptions: Tensor
    codec: Codec = field(repr=False)

    def save(self, folder: Path) -> None:
        """Write the style; ``style.json`` is last: if it exists, so does the rest."""
        (folder / FACTS_FILE).unlink(missing_ok=True)  # of an older style
        state = {_MODULE + name: value for name, value in self.fusion.state_dict().items()}
        state[_DESCRIPTIONS] = self.descriptions
        with atomic_write(folder / WEIGHTS_FILE) as temporary:
            save_file({name: value.contiguous().cpu() for name, value in state.items()}, temporary)
        if self.facts.vae == PATCH:
            self.codec.vae.save_pretrained(folder / CODEC_FOLDER)
        write_json(folder / FACTS_FILE, self.facts)

    def choose(self, names: Sequence[str] | None) -> Tensor:
        """Style inputs [n, K] of some of the styles; None: of the only one.

        Raises:
            UserError: an unknown name, or no name for a folder of several styles.
        """
        known = self.facts.styles
        if not names:
            if len(known) > 1:
                raise UserError(f"this folder holds {len(known)} styles: name one, e.g. {known[0]}")
            return self.descriptions
        for name in names:
            if name not in known:
                close = nearest(name, known)
                raise UserError(f"no style '{name}' in this folder, the nearest is '{close}'")
        return self.descriptions[[known.index(name) for name in names]]

    @torch.no_grad()
    def apply(
        self,
        images: Tensor,
        *,
        strength: float = 1.0,
        descriptions: Tensor | None = None,
        weights: Sequence[float] | None = None,
    ) -> Tensor:
        """Restyle images: one encoding, one fusion, one decoding.

        Args:
            images: [B, 3, H, W] in [0, 1], any size.
            strength: η of z + η(z' − z); 0 gives the codec's reconstruction.
            descriptions: style inputs to blend [n, K]; None: the only style.
            weights: weights of the blend, n numbers ≥ 0; None: equal.

        Returns:
            [B, 3, H, W] in [0, 1], a new tensor on images' device.
        """
        device = self.descriptions.device
        styles = self.choose(None) if descriptions is None else descriptions.to(device)
        shares = torch.tensor(weights if weights is not None else [1.0] * len(styles))
        height, width = images.shape[-2:]
        latents = self.codec.encode(self.codec.padded(images.to(device)))
        code = self.fusion.blend(styles, shares.to(device))
        styled = self.fusion.fuse(latents, code.expand(len(images), -1))
        result = self.codec.decode(latents + strength * (styled - latents))
        return result[..., :height, :width].contiguous().to(images.device)


def load_style(
    folder: str | Path, vae: str | None = None, device: torch.device | str = "cpu"
) -> SavedStyle:
    """Read a style's folder.

    Args:
        folder: folder of the style, see the top of this file.
        vae: folder or hub id of the codec; None: as named when the style was fitted.
        device: where it runs.

    Raises:
        UserError: no such folder, damaged files, or another codec than that of the fit.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    state = _read_weights(folder / WEIGHTS_FILE)
    try:
        descriptions = state.pop(_DESCRIPTIONS)
        fusion = StyleFusion(facts.codec["channels"], descriptions.shape[1], facts.fusion)
        fusion.load_state_dict({k.removeprefix(_MODULE): v for k, v in state.items()})
    except (KeyError, RuntimeError, IndexError) as error:
        raise UserError(
            f"{folder / WEIGHTS_FILE}: these weights do not fit {FACTS_FILE}, fit the style again"
        ) from error
    codec = load_codec(str(folder / CODEC_FOLDER) if facts.vae == PATCH else vae or facts.vae)
    if codec.facts["weights"] != facts.codec["weights"]:
        raise UserError(
            f"{folder}: this style was fitted on the codec '{facts.vae}' with other weights than "
            "those found here; give that codec by --vae"
        )
    fusion = fusion.requires_grad_(False).eval().to(device)
    return SavedStyle(facts, fusion, descriptions.to(device), codec.to(device))


def read_facts(folder: Path) -> StyleFacts:
    """``style.json`` of a style's folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / FACTS_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no {FACTS_FILE}, give a folder of `regionroute mamba fit`")
    try:
        return StyleFacts.model_validate(read_json(path))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path}: '{where}' is wrong or missing, fit the style again") from error


def style_hash(folder: Path) -> str:
    """Changes whenever the style would restyle differently."""
    facts = read_facts(folder)
    return settings_hash(
        [facts.fusion, facts.codec, facts.styles, file_hash(folder / WEIGHTS_FILE)]
    )


def warning(random: Sequence[str]) -> str | None:
    """Warning for everything made by random networks."""
    if not random:
        return None
    return f"random weights ({' and '.join(random)}): a dry run, the image is meaningless"


def vae_name(name: str) -> str:
    """Name of a codec that is valid in any working folder."""
    if name in (PATCH, RANDOM):
        return name
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged, fit the style again") from error


def png_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Text chunks of a PNG, as `regionroute edit` writes them."""
    import json

    return {"parameters": json.dumps(facts, ensure_ascii=False)}
