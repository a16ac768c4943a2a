"""StyleMamba as a stylizer of styles files: fits lazily, keeps what it fitted.

styles:
  starry-night:
    phrase: Van Gogh starry night     # the prompt
    stylizer: mamba
    settings: {images: photos, encoder: FOLDER_OF_SIGLIP, vae: FOLDER_OF_SD_VAE}
  monet:
    stylizer: mamba
    settings: {fitted: styles/monet, strength: 0.8}
"""

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from pseudo_labels.stylemamba.config import MambaConfig, PictureConfig
from pseudo_labels.stylemamba.encoders import RANDOM, load_encoder
from pseudo_labels.stylemamba.make import FitJob, fit_style
from pseudo_labels.stylemamba.measures import directional_score
from pseudo_labels.stylemamba.networks import ENCODER, VAE, Names, find_pictures, source_hash
from pseudo_labels.stylemamba.saved import (
    FACTS_FILE,
    SavedStyle,
    load_style,
    read_facts,
    style_hash,
)
from regionroute.config.io import load_config
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.files import file_hash, settings_hash

CACHE = "runs/mamba"
_REVISION = 1  # raise when equal settings would give another picture


class MambaStylizer:
    """Restyles whole pictures with a fitted style, or with one that it fits when first needed.

    Args:
        prompt: the style in words; styles files give the style's phrase. With a folder of several
            styles, which one.
        fitted: folder of `regionroute mamba fit` or `train`, in place of a fit.
        picture: a picture of the style, in place of words; needs `vgg`.
        images: photos to fit to: a picture or a folder. Needed unless `fitted` is given.
        encoder: SigLIP or CLIP, folder or hub id.
        vae: AutoencoderKL, folder or hub id, or "patch".
        vgg: safetensors of torchvision's VGG16 or VGG19.
        config: YAML file of settings of the fit.
        overrides: settings that win over the file, such as ["fit.steps=30"].
        cache: folder where fits are kept, by prompt, encoder and settings.
        strength: 0 (the photo) to 2, 1 is the style as fitted.
        gate: least directional score in [-1, 1] a picture needs; a weaker one is refused. Words
            only. The scores of SigLIP and CLIP do not compare.
        device: where it runs; None: cuda where there is one.

    Attributes:
        remarks: which networks have random weights, if any: goes into every sample's provenance.

    Raises:
        UserError: settings that do not go together, or files that are not there.
    """

    needs: frozenset[str] = frozenset({"text"})
    remarks: dict[str, Any]

    def __init__(
        self,
        prompt: str | None = None,
        *,
        fitted: str | None = None,
        picture: str | None = None,
        images: str | None = None,
        encoder: str = ENCODER,
        vae: str | None = None,
        vgg: str | None = None,
        config: str | None = None,
        overrides: list[str] | None = None,
        cache: str = CACHE,
        strength: float = 1.0,
        gate: float | None = None,
        device: str | None = None,
    ) -> None:
        if (fitted is None) == (images is None):
            raise UserError("a mamba style needs either 'fitted', a folder, or 'images' to fit to")
        if not 0 <= strength <= 2:
            raise UserError(f"the strength of a mamba style is {strength}, it must be 0 to 2")
        if gate is not None and (picture is not None or not -1 <= gate <= 1):
            raise UserError("the gate of a mamba style is for words and must be -1 to 1")
        if prompt is None and picture is None and fitted is None:
            raise UserError("a mamba style needs a 'prompt' or a 'picture'")
        self._prompt, self._vae, self._encoder = prompt, vae, encoder
        self._strength, self._gate, self._device = strength, gate, device
        self._job: FitJob | None = None
        self._style: SavedStyle | None = None
        self._judge: Any = None
        if fitted is not None:
            self._folder = Path(fitted)
            self._key = style_hash(self._folder)
            known = read_facts(self._folder)
            if gate is not None and known.encoder.get("takes") != "words":
                raise UserError(f"{fitted}: its styles are pictures, the gate is for words")
            random = known.random
        else:
            assert images is not None
            model = MambaConfig if picture is None else PictureConfig
            self._config = load_config(config, overrides or [], model)
            style = picture if picture is not None else str(prompt)
            files = tuple(find_pictures([images]))
            names = Names(encoder, vae or VAE, vgg)
            self._job = FitJob((style,), picture is not None, files, names)
            self._key = settings_hash(self._fit_facts(self._job))
            self._folder = Path(cache) / self._key
            random = [] if picture or encoder != RANDOM else ["encoder"]
            random += ["vae"] if vae == RANDOM else []
        self.remarks = {"random_weights": random} if random else {}
        facts = [_REVISION, self._key, prompt, strength, gate]
        self.fingerprint = f"mamba {settings_hash(facts)}"

    def stylize(
        self,
        content: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """See `Stylizer.stylize`; mask and generator are not used.

        Raises:
            UserError: a picture does not pass the gate, or the style cannot be fitted.
        """
        fitted = self._ready()
        several = len(fitted.facts.styles) > 1
        chosen = fitted.choose([self._prompt or style.words] if several else None)
        images = content if content.ndim == 4 else content[None]
        styled = fitted.apply(images, strength=self._strength, descriptions=chosen)
        if self._gate is not None:
            self._check(images, styled, self._prompt or style.words)
        return styled if content.ndim == 4 else styled[0]

    def __getstate__(self) -> dict[str, Any]:
        """Without the networks, and fitted: worker processes must not each fit the style."""
        if self._job is not None:
            self._ready()
        return self.__dict__ | {"_style": None, "_judge": None}

    def _fit_facts(self, job: FitJob) -> list[Any]:
        """Everything that a fit depends on."""
        styles = [file_hash(s) for s in job.styles] if job.pictures else job.styles
        networks = [] if job.pictures else [source_hash(job.names.encoder)]
        networks.append(source_hash(job.names.vae))
        networks.append("" if job.names.vgg is None else source_hash(job.names.vgg))
        photos = [file_hash(file) for file in job.images]
        fit, loss, fusion = self._config.fit, self._config.loss, self._config.fusion
        return [_REVISION, styles, networks, photos, fit, loss, fusion]

    def _ready(self) -> SavedStyle:
        """The style, fitted if it is not in the cache."""
        if self._style is None:
            device = _device(self._device)
            if self._job is not None and not (self._folder / FACTS_FILE).is_file():
                self._style = fit_style(self._job, self._config, self._folder, device)
            else:
                self._style = load_style(self._folder, self._vae, device)
        return self._style

    @torch.no_grad()
    def _check(self, images: Tensor, styled: Tensor, words: str) -> None:
        """Refuse pictures that are styled too weakly: rare prompts fail without a sign."""
        if self._judge is None:
            self._judge = load_encoder(self._encoder, _device(self._device))
        before = self._judge.embed(images)
        direction = self._judge.target(words).direction(before)
        weakest = float(directional_score(before, self._judge.embed(styled), direction).min())
        if weakest < float(self._gate or 0.0):
            raise UserError(
                f"mamba style '{words}': the directional score is {weakest:.3f}, below the gate "
                f"{self._gate}; raise 'strength', fit longer, or lower 'gate'"
            )


def _device(name: str | None) -> torch.device:
    from regionroute.models.devices import pick_device

    return pick_device(name)
