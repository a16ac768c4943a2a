"""Loads the frozen networks by name, and the images to fit on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pseudo_labels.segment.given import open_photo, read_labels
from pseudo_labels.stylemamba.codecs import PATCH, load_codec, patch_codec
from pseudo_labels.stylemamba.encoders import GramEncoder, StyleEncoder, load_encoder
from pseudo_labels.stylemamba.fitting import stacked
from pseudo_labels.stylemamba.objective import Parts
from regionroute.data.image_files import images_in
from regionroute.data.images import read_image, read_mask
from regionroute.errors import UserError
from regionroute.files import file_hash, settings_hash
from regionroute.models.vgg import load_vgg

ENCODER, VAE = "google/siglip-base-patch16-224", "stabilityai/sd-vae-ft-mse"


@dataclass(frozen=True)
class Names:
    """Names of the networks.

    Attributes:
        encoder: SigLIP or CLIP by folder or hub id, or "random"; not used with style images.
        vae: an AutoencoderKL by folder or hub id, "patch" for a transform fitted to the images,
            or "random".
        vgg: safetensors of torchvision's VGG16 or VGG19. Required for style images. For words
            it is used by the content loss, which otherwise compares latents.
    """

    encoder: str = ENCODER
    vae: str = VAE
    vgg: str | None = None


def load_parts(names: Names, images: Tensor, pictures: bool, device: torch.device) -> Parts:
    """Load the networks.

    Args:
        names: names of the networks.
        images: [n, 3, S, S] in [0, 1], for the "patch" codec and the scale of style images.
        pictures: whether styles are given as images, not as words.
        device: where they run.

    Raises:
        UserError: one of them cannot be loaded, or does not take images of this size.
    """
    vgg = None if names.vgg is None else load_vgg(names.vgg).to(device)
    if pictures and vgg is None:
        raise UserError("style images need VGG: give --vgg FILE")
    codec = patch_codec(images) if names.vae == PATCH else load_codec(names.vae)
    side = images.shape[-1]
    if side % codec.multiple:
        raise UserError(f"size is {side}: this codec takes multiples of {codec.multiple} pixels")
    encoder: StyleEncoder
    if pictures:
        assert vgg is not None
        encoder = GramEncoder(vgg, f"Gram statistics of {vgg.kind}", side)
    else:
        encoder = load_encoder(names.encoder, device)
    return Parts(codec.to(device), encoder, vgg)


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files: the given ones, and those directly in given folders, sorted.

    Raises:
        UserError: a path does not exist, or there is no image.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise UserError(f"{path}: no such image or folder, check the path")
        if path.is_dir():
            found += images_in(path)
        else:
            found.append(path)
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: there are no images")
    return found


def read_images(files: Sequence[Path], size: int) -> Tensor:
    """Centre crops of images, [n, 3, size, size] in [0, 1].

    Raises:
        UserError: one of them is damaged.
    """
    return stacked([read_image(file) for file in files], size)


def find_region(region: str, photo: Path, labels: str | None) -> Tensor:
    """The mask of a region of a photo.

    Args:
        region: file name of a mask, or with `labels` an object word.
        photo: the photo.
        labels: labels file with the photo, its objects and their masks; or None.

    Returns:
        [1, H, W] in {0, 1} of the photo's size.

    Raises:
        UserError: there is no such mask.
    """
    if labels is None:
        image = read_image(photo)
        if not Path(region).is_file():
            raise UserError(
                f"--region {region}: no such mask; give the file of a mask, or --labels FILE and "
                "an object word"
            )
        return read_mask(region, (image.shape[-2], image.shape[-1]))
    for known in read_labels(labels)[0]:
        if known.path.resolve() == photo.resolve():
            for segment in open_photo(known)[1]:
                if segment.word.casefold() == region.casefold():
                    return segment.mask
            words = ", ".join(item.word for item in known.objects)
            raise UserError(
                f"--region {region}: {labels} has only these words for {photo.name}: {words}"
            )
    raise UserError(f"{labels}: {photo.name} is not listed, give its mask with --region FILE")


def source_hash(name: str) -> str:
    """Changes with the files of a network; for a hub id, with the id only."""
    path = Path(name).expanduser()
    if path.is_file():
        return file_hash(path)
    files = sorted(f for f in path.rglob("*") if f.suffix in (".safetensors", ".bin", ".json"))
    if not path.is_dir() or not files:
        return name
    return settings_hash([[f.relative_to(path).as_posix(), file_hash(f)] for f in files])
