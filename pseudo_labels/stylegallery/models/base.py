"""What the stages of StyleGallery need of a diffusion model.

Timesteps are whole numbers in all models, from 0 (the image) to `training_steps` - 1 (noise).

Shape legend: B images, C channels of a feature, c latent channels, h w latent rows and columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from pseudo_labels.stylegallery.models.attention import Recorded

RANDOM = "random"  # in place of a model's name: small random weights
# Maps latents and a timestep to the prediction, of the latents' shape, and features [B, C, h', w'].
Predict = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class GalleryModel(ABC):
    """A frozen diffusion model, with the empty prompt as its text.

    Wherever latents are given to the network, so are the `clean` latents of the same images,
    [B, c, h, w]: an editing model sees them as its context image, others ignore them.

    Attributes:
        name: folder or hub id, with the commit that was loaded.
        fingerprint: changes with the weights.
        device: where it runs.
        random: whether the weights are random, for dry runs.
        training_steps: number of timesteps.
        offset: the first timestep of an inversion.
        resolution: side of the images it was trained on in pixels.
    """

    name: str
    fingerprint: str
    device: torch.device
    random: bool
    training_steps: int
    offset: int
    resolution: int

    @property
    @abstractmethod
    def factor(self) -> int:
        """Sides of images must be multiples of this number of pixels."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of attention layers that can be recorded."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks whose output can be the feature, in the order of execution."""

    @property
    @abstractmethod
    def usual_block(self) -> int:
        """Number of the block whose output is the feature where none is chosen."""

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Latents [1, c, h, w], in float32, of an image [3, H, W] in [0, 1]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The image [3, H, W] in [0, 1] of latents [1, c, h, w], on the CPU."""

    @abstractmethod
    def working(self) -> AbstractContextManager[None]:
        """Keeps the network on the device for the duration of the block."""

    @abstractmethod
    def predict(self, latents: Tensor, timestep: int, clean: Tensor) -> Tensor:
        """The network's prediction [B, c, h, w], in float32: noise, or a velocity."""

    @abstractmethod
    def feature_map(self, output: object, latents: Tensor) -> Tensor:
        """The output of one of `blocks` for latents [B, c, h, w], as features [B, C, h', w']."""

    @abstractmethod
    def move(self, latents: Tensor, prediction: Tensor, timestep: int, target: int) -> Tensor:
        """A deterministic step of the sampler between two timesteps, in either direction."""

    @abstractmethod
    def noised(self, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Clean latents with the noise of a timestep; all [B, c, h, w]."""

    @abstractmethod
    def record(
        self,
        latents: Tensor,
        timestep: int,
        clean: Tensor,
        layers: Sequence[int],
        inputs_only: bool = False,
    ) -> Recorded:
        """Attention among an image's own cells, in some layers.

        Args:
            latents: [B, c, h, w].
            timestep: timestep of the model.
            clean: [B, c, h, w].
            layers: their numbers in the order of execution, ascending.
            inputs_only: skip the last layer's output, for speed.
        """

    @contextmanager
    def reading(self, block: int, clean: Tensor) -> Iterator[Predict]:
        """Predictions together with the features of a block.

        Args:
            block: its number among `blocks`.
            clean: clean latents of what will be predicted, [B, c, h, w].
        """
        held: list[object] = []
        hook = self.blocks()[block].register_forward_hook(
            lambda module, inputs, output: held.append(output)
        )

        def predict(latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
            held.clear()
            prediction = self.predict(latents, timestep, clean)
            return prediction, self.feature_map(held[0], latents)

        try:
            yield predict
        finally:
            hook.remove()


def chosen_layers(setting: int | Sequence[int] | None, count: int) -> list[int]:
    """Numbers of the layers that a setting means.

    Args:
        setting: so many from the last, or their numbers; None: three of eight, counted from the
            last, which is 6 of Stable Diffusion 1.5's 16.
        count: layers of the model.

    Raises:
        ValueError: more, or others, than the model has.
    """
    if setting is None:
        setting = max(1, round(count * 3 / 8))
    if isinstance(setting, int):
        if setting > count:
            raise ValueError(f"{setting} layers requested, the model has {count}")
        return list(range(count - setting, count))
    if not setting or max(setting) >= count or min(setting) < 0:
        raise ValueError(f"layers {list(setting)} requested, the model has 0 to {count - 1}")
    return sorted(set(setting))
