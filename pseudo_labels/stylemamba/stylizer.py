"""StyleMamba as a stylizer in styles files; it fits on first use and keeps the fit.

styles:
  starry-night:
    phrase: Van Gogh starry night     # the prompt
    stylizer: mamba
    settings: {images: photos, encoder: FOLDER_OF_SIGLIP, vae: FOLDER_OF_SD_VAE}
  ukiyo-e:
    stylizer: mamba                   # without settings: the packaged bank, chosen by the phrase
  monet:
    stylizer: mamba
    settings: {fitted: styles/monet, strength: 0.8}
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pseudo_labels.stylemamba.bank.packaged import described, packaged_bank, packaged_folder
from pseudo_labels.stylemamba.bank.saved import WEIGHTS_FILE
from pseudo_labels.stylemamba.config import ImageStyleConfig, MambaConfig
from pseudo_labels.stylemamba.encoders import RANDOM, load_encoder
from pseudo_labels.stylemamba.make import FitJob, fit_style
from pseudo_labels.stylemamba.measures import directional_score
from pseudo_labels.stylemamba.networks import ENCODER, VAE, Names, find_images, source_hash
from pseudo_labels.stylemamba.saved import (
    FACTS_FILE,
    SavedStyle,
    load_style,
    read_facts,
    style_hash,
)
from pseudo_labels.stylize.base import Number, Stylizer
from regionroute.config.base import Section
from regionroute.config.io import load_config
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.files import file_hash, settings_hash
from regionroute.models.devices import pick_device

CACHE = "runs/mamba"
_REVISION = 1  # raise when equal settings would give another image


class MambaSettings(Section):
    """Settings of `MambaStylizer`; those of the fit itself are in `MambaConfig`."""

    prompt: str | None = Field(
        None,
        description="the style in words (in styles files, the default is the style's phrase); with "
        "a folder of several styles, the name of one",
    )
    fitted: str | None = Field(
        None, description="folder of `regionroute mamba fit` or `train`, instead of a new fit"
    )
    picture: str | None = Field(None, description="style image, instead of words; needs `vgg`")
    images: str | None = Field(
        None,
        description="photos to fit on: an image or a folder; without it and without `fitted` the "
        "packaged bank is used",
    )
    encoder: str = Field(ENCODER, description="SigLIP or CLIP: folder or hub id")
    vae: str | None = Field(None, description='AutoencoderKL: folder, hub id, or "patch"')
    vgg: str | None = Field(None, description="safetensors of torchvision's VGG16 or VGG19")
    config: str | None = Field(None, description="YAML file of settings of the fit")
    overrides: list[str] | None = Field(
        None, description="settings that override the file, such as [fit.steps=30]"
    )
    cache: str = Field(CACHE, description="folder of fits, by prompt, encoder and settings")
    strength: Annotated[Number, Field(ge=0, le=2)] = Field(
        1.0, description="0 (the photo) to 2; 1 is the style as fitted"
    )
    gate: Annotated[Number, Field(ge=-1, le=1)] | None = Field(
        None,
        description="minimum directional score of a styled image; weaker ones are refused. For "
        "styles in words only; scores of SigLIP and CLIP are not comparable",
    )
    device: str | None = Field(None, description="null: a GPU if there is one")

    @model_validator(mode="after")
    def _consistent(self) -> "MambaSettings":
        if self.fitted is not None and self.images is not None:
            raise UserError("give either 'fitted', a folder, or 'images' to fit on")
        if self.uses_bank and (self.picture is not None or self.gate is not None):
            raise UserError("'picture' and 'gate' need 'images' to fit on")
        if self.gate is not None and self.picture is not None:
            raise UserError("'gate' is for styles in words, not for a 'picture'")
        if self.prompt is None and self.picture is None and self.fitted is None:
            raise UserError("give a 'prompt' or a 'picture'")
        return self

    @property
    def uses_bank(self) -> bool:
        """Whether the packaged bank paints."""
        return self.fitted is None and self.images is None


class MambaStylizer(Stylizer[MambaSettings]):
    """Restyles whole images with a style of the packaged bank, a fitted one, or one it fits first.

    Args:
        settings: the style, or what it is fitted on; nothing is loaded yet.

    Raises:
        UserError: settings of the fit, a style's folder or an image cannot be used.
    """

    kind = "mamba"
    settings_class = MambaSettings
    needs: frozenset[str] = frozenset({"text"})

    def __init__(self, settings: MambaSettings) -> None:
        self._job: FitJob | None = None
        self._style: SavedStyle | None = None
        self._judge: Any = None
        if settings.uses_bank:
            self._bank_weights, used, warnings = described(packaged_bank(), settings.prompt or "")
            style_key = settings_hash([file_hash(packaged_folder() / WEIGHTS_FILE), used])
            facts = [_REVISION, style_key, settings.strength]
            super().__init__(
                settings, settings_hash(facts), {"warnings": warnings} if warnings else None
            )
            return
        if settings.fitted is not None:
            self._folder = Path(settings.fitted)
            style_key = style_hash(self._folder)
            random = _random_networks(settings, self._folder)
        else:
            self._config, self._job = _fit_job(settings)
            style_key = settings_hash(_fit_facts(self._job, self._config))
            self._folder = Path(settings.cache) / style_key
            random = ["encoder"] if settings.encoder == RANDOM and not settings.picture else []
            random += ["vae"] if settings.vae == RANDOM else []
        facts = [_REVISION, style_key, settings.prompt, settings.strength, settings.gate]
        super().__init__(
            settings, settings_hash(facts), {"random_weights": random} if random else None
        )

    def stylize(self, image: Tensor, style: StyleSpec, **unused: Any) -> Tensor:
        """See `Stylizer.stylize`.

        Raises:
            UserError: the image does not pass the gate, or the style cannot be fitted.
        """
        if self.settings.uses_bank:
            return packaged_bank().paint(image[None], self._bank_weights, self.settings.strength)[0]
        fitted, prompt = self._ready(), self.settings.prompt or style.words
        chosen = fitted.choose([prompt] if len(fitted.facts.styles) > 1 else None)
        styled = fitted.apply(image[None], strength=self.settings.strength, descriptions=chosen)
        if self.settings.gate is not None:
            self._check(image[None], styled, prompt, self.settings.gate)
        return styled[0]

    def __getstate__(self) -> dict[str, Any]:
        """Without the networks but fitted: worker processes must not each fit the style."""
        if self._job is not None:
            self._ready()
        return self.__dict__ | {"_style": None, "_judge": None}

    def _ready(self) -> SavedStyle:
        """The style, fitted if it is not in the cache."""
        if self._style is None:
            device = pick_device(self.settings.device)
            if self._job is not None and not (self._folder / FACTS_FILE).is_file():
                self._style = fit_style(self._job, self._config, self._folder, device)
            else:
                self._style = load_style(self._folder, self.settings.vae, device)
        return self._style

    @torch.no_grad()
    def _check(self, images: Tensor, styled: Tensor, words: str, gate: float) -> None:
        """Refuse images that are styled too weakly: rare prompts fail silently."""
        if self._judge is None:
            self._judge = load_encoder(self.settings.encoder, pick_device(self.settings.device))
        before = self._judge.embed(images)
        direction = self._judge.target(words).direction(before)
        weakest = float(directional_score(before, self._judge.embed(styled), direction).min())
        if weakest < gate:
            raise UserError(
                f"mamba style '{words}': the directional score is {weakest:.3f}, below the gate "
                f"{gate}; raise 'strength', fit longer, or lower 'gate'"
            )


def _random_networks(settings: MambaSettings, folder: Path) -> list[str]:
    """Networks with random weights of a fitted style."""
    facts = read_facts(folder)
    if settings.gate is not None and facts.encoder.get("takes") != "words":
        raise UserError(f"{folder}: its styles are images, 'gate' is for styles in words")
    return facts.random


def _fit_job(settings: MambaSettings) -> tuple[MambaConfig, FitJob]:
    """The fit that is made on first use."""
    assert settings.images is not None
    by_image = settings.picture is not None
    model = ImageStyleConfig if by_image else MambaConfig
    config = load_config(settings.config, settings.overrides or [], model)
    style = settings.picture if settings.picture is not None else str(settings.prompt)
    names = Names(settings.encoder, settings.vae or VAE, settings.vgg)
    return config, FitJob((style,), by_image, tuple(find_images([settings.images])), names)


def _fit_facts(job: FitJob, config: MambaConfig) -> list[Any]:
    """Everything that a fit depends on."""
    styles = [file_hash(s) for s in job.styles] if job.pictures else job.styles
    networks = [] if job.pictures else [source_hash(job.names.encoder)]
    networks.append(source_hash(job.names.vae))
    networks.append("" if job.names.vgg is None else source_hash(job.names.vgg))
    photos = [file_hash(file) for file in job.images]
    return [_REVISION, styles, networks, photos, config.fit, config.loss, config.fusion]
