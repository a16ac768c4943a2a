"""Diffusion transformers that predict a velocity: FLUX.1-Kontext, FLUX.2-klein, the embedded bases.

They are inverted along their flow's ODE, and read in the blocks' attention of the image's own
tokens: queries, keys and values of the noisy target, without text and context. A timestep is
1000 σ.

Shape legend: B images, H heads, N tokens of an image, T of the text, D head width, c latent
channels, h w latent rows and columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional as F

from pseudo_labels.stylegallery.config import FlowConfig
from pseudo_labels.stylegallery.models.attention import Attend, Recorded, recording
from pseudo_labels.stylegallery.models.base import GalleryModel
from regionroute.attention.processors import BlockProcessor, called_as, stock_processor
from regionroute.diffusion.family import Processor
from regionroute.diffusion.flow import TIMESTEPS, add_noise, predict_velocity
from regionroute.models.backbone import Backbone


class FlowModel(GalleryModel):
    """A base of regionroute, with the empty prompt as its text.

    Args:
        backbone: the base; its text encoders are dropped once the prompt is encoded.
        config: context, positions and guidance.
        fingerprint: changes with the weights and the settings.
        device: where it runs.
        offload: keep idle networks on the CPU.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: FlowConfig,
        fingerprint: str,
        device: torch.device,
        offload: bool = False,
    ) -> None:
        self.backbone, self.config = backbone, config
        self.fingerprint, self.device = fingerprint, device
        revision = f"@{backbone.revision}" if backbone.revision else ""
        self.name = backbone.name + revision
        self.random, self.training_steps, self.offset = False, TIMESTEPS, 1
        self.resolution = backbone.settings.resolution
        states, pooled = backbone.encode_prompts([""])
        dtype = backbone.transformer.dtype
        self._text = states.to(device, dtype), pooled.to(device, dtype)
        backbone.text_encoder = backbone.text_encoder_2 = None
        backbone.vae.float()
        if offload:
            backbone.execution_device = device
        else:
            backbone.to(device)
        self._attention = list(backbone.family.blocks(backbone.transformer).items())

    @property
    def factor(self) -> int:
        """Side of a token in pixels."""
        return 2 * self.backbone.vae_scale

    @property
    def layers(self) -> int:
        """Number of blocks, double and single."""
        return len(self._attention)

    def blocks(self) -> Sequence[nn.Module]:
        """All blocks, double ones first."""
        network = self.backbone.transformer
        return [*network.transformer_blocks, *network.single_transformer_blocks]

    @property
    def usual_block(self) -> int:
        """The middle one."""
        return (self.layers - 1) // 2

    def encode(self, image: Tensor) -> Tensor:
        """Normalised latents [1, c, h, w] of an image [3, H, W] in [0, 1]."""
        return self.backbone.encode_images(image[None]).float()

    def decode(self, latents: Tensor) -> Tensor:
        """The image [3, H, W] in [0, 1] of latents [1, c, h, w]."""
        return self.backbone.decode_latents(latents)[0].cpu()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keeps the transformer on the device; with offloading the rest goes to the CPU."""
        self.backbone.on_device(self.backbone.transformer)
        yield

    def predict(self, latents: Tensor, timestep: int, clean: Tensor) -> Tensor:
        """The velocity, noise − image."""
        base, count = self.backbone, len(latents)
        target = latents
        if base.semantic_channels:  # features of the image encoder, read from the context alone
            padding = (0, 0, 0, 0, 0, base.semantic_channels)
            target = F.pad(latents[:, : -base.semantic_channels], padding)
        context = clean if self.config.context == "own" else clean[:, :, :0]
        states, pooled = (item.expand(count, *item.shape[1:]) for item in self._text)
        sigma = torch.full((count,), timestep / TIMESTEPS, device=self.device)
        guidance = self.config.guidance
        velocity = predict_velocity(
            base.transformer, target, context, states, pooled, sigma, guidance
        )
        return velocity.float()

    def feature_map(self, output: object, latents: Tensor) -> Tensor:
        """A block's tokens of the noisy target, as a map."""
        # Double blocks return (text, image), single blocks may join them, text first.
        hidden = output[1] if isinstance(output, tuple) else output[:, self._text[0].shape[1] :]  # type: ignore[index]
        rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
        return hidden[:, : rows * columns].mT.unflatten(-1, (rows, columns))

    def move(self, latents: Tensor, prediction: Tensor, timestep: int, target: int) -> Tensor:
        """An Euler step of the flow."""
        return latents + (target - timestep) / TIMESTEPS * prediction

    def noised(self, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """(1 − σ) z + σ ε."""
        return add_noise(clean, noise, torch.full((len(clean),), timestep / TIMESTEPS))

    def record(
        self,
        latents: Tensor,
        timestep: int,
        clean: Tensor,
        layers: Sequence[int],
        inputs_only: bool = False,
    ) -> Recorded:
        """Attention among the tokens of the noisy target, see `GalleryModel.record`.

        Its outputs are computed from these tokens alone; the blocks themselves attend to all.
        """
        family = self.backbone.family
        chosen = [self._attention[number] for number in layers]
        for name, attn in chosen:
            stock_processor(name, attn, family)  # raises if it cannot be replaced
        tokens = latents.shape[-2] // 2 * (latents.shape[-1] // 2)
        rows = slice(self._text[0].shape[1], self._text[0].shape[1] + tokens)

        def make(attn: Any, attend: Attend) -> Processor:
            return called_as(attn.processor, _FlowProcessor(self, rows, attend))

        with recording([attn for _, attn in chosen], inputs_only, make) as record:
            self.predict(latents, timestep, clean)
        return record


class _FlowProcessor(BlockProcessor):
    """Records attention among the noisy target's own tokens.

    Args:
        model: gives the family and whether positions count.
        rows: the noisy target's tokens among all.
        attend: computes and records attention.
    """

    def __init__(self, model: FlowModel, rows: slice, attend: Attend) -> None:
        super().__init__(model.backbone.family)
        self._positions, self._rows, self._attend = model.config.positions, rows, attend

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rotary: Any
    ) -> Tensor:
        """See `BlockProcessor`."""
        placed = [apply_rotary_emb(x, rotary, sequence_dim=1) for x in (query, key)]
        mine = [*(placed if self._positions else (query, key)), value]
        self._attend(*(x[:, self._rows].transpose(1, 2) for x in mine))
        every = [x.transpose(1, 2) for x in (*placed, value)]
        return F.scaled_dot_product_attention(*every).transpose(1, 2)
