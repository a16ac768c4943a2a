"""Files of a restyled photo: the image, its record, and on request a page.

The page shows regions, matches, losses and result, in one HTML file.
"""

import base64
import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from pseudo_labels.stylegallery.gallery import AnalysedImage, GalleryResult
from pseudo_labels.stylegallery.stylizer import AttentionEnergyStylizer
from regionroute.data.images import to_pil, write_image
from regionroute.files import atomic_write, write_json
from regionroute.settings_files import versions

_SIDE = 384  # longer side of displayed images in pixels
_CURVE = (720, 200)


def write_result(
    out: Path,
    photo: Path,
    image: Tensor,
    result: GalleryResult,
    stylizer: AttentionEnergyStylizer,
    page: Path | None = None,
) -> list[str]:
    """Write ``out``, its settings file beside it, and the page.

    Args:
        out: PNG, written last.
        photo: file of the photo.
        image: [3, H, W] in [0, 1], the photo.
        result: the restyled photo, its matches and losses.
        stylizer: made the result.
        page: HTML file, None for no page.

    Returns:
        Warnings, one sentence each; the files hold them too.
    """
    facts: dict[str, Any] = {
        "photo": photo.name,
        "references": [file.name for file in stylizer.files],
        "matches": result.matches,
        "styled": result.styled,
        "loss": {"first": result.losses[0], "last": result.losses[-1]} if result.losses else None,
        "settings": stylizer.config,
        **({"networks": stylizer.networks} if stylizer.networks else {}),
        **stylizer.remarks,
        "versions": versions(),
    }
    warnings = []
    if stylizer.remarks:
        random = ", ".join(stylizer.remarks["random_weights"])
        warnings = [f"random weights ({random}): the image is meaningless"]
        facts["warnings"] = warnings
    if page:
        write_page(page, image, result, warnings)
    write_json(out.with_suffix(".json"), facts)
    write_image(out, result.image)
    return warnings


def write_page(
    path: Path, image: Tensor, result: GalleryResult, warnings: Sequence[str] = ()
) -> None:
    """Write the page.

    Args:
        path: an HTML file.
        image: the content image [3, H, W].
        result: result of `Gallery.restyle`.
        warnings: shown at the top.
    """
    environment = Environment(
        loader=PackageLoader("pseudo_labels", "stylegallery"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = [item.name for item in result.references]
    rows = [
        {
            "match": match,
            "colour": _hex(match.region),
            "area": 100 * float((result.content.labels == match.region).double().mean()),
            "reference": names[match.reference],
            "source": _hex(match.cluster),
            "styled": match.region in result.styled,
            "mine": match.region == result.content.region,
        }
        for match in result.matches
    ]
    text = environment.get_template("page.html.j2").render(
        name=result.content.name,
        warnings=list(warnings),
        content=_uri(image),
        result=_uri(result.image),
        regions=_uri(region_image(result.content, image)),
        references=[
            {
                "name": item.name,
                "picture": _uri(item.image),
                "regions": _uri(region_image(item)),
            }
            for item in result.references
        ],
        rows=rows,
        semantic=any(match.semantic is not None for match in result.matches),
        curve=loss_curve(result.losses) if result.losses else None,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def region_colour(label: int) -> tuple[float, float, float]:
    """A colour for a label from 1; consecutive labels have very different hues."""
    return colorsys.hsv_to_rgb((label - 1) * 0.618034 % 1, 0.75, 0.95)


def _hex(label: int) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in region_colour(label))


def region_image(picture: AnalysedImage, image: Tensor | None = None) -> Tensor:
    """The image with its regions tinted and numbered.

    Args:
        picture: the image with its labels.
        image: [3, H, W] to display in place of the working square.

    Returns:
        [3, h, w] in [0, 1].
    """
    image = _shown(picture.image if image is None else image)
    size = (image.shape[-2], image.shape[-1])
    labels = F.interpolate(picture.labels[None, None].double(), size)[0, 0].long()
    most = int(labels.max())
    colours = torch.tensor([(0.0, 0.0, 0.0), *(region_colour(n) for n in range(1, most + 1))])
    grey = image.mean(0, keepdim=True)
    tinted = to_pil(0.45 * grey + 0.55 * colours[labels].permute(2, 0, 1))
    pen, font = ImageDraw.Draw(tinted), ImageFont.load_default(28)
    for label in range(1, most + 1):
        if (labels == label).any():
            y, x = _inner_point(labels == label)
            pen.text(
                (x, y),
                str(label),
                (255, 255, 255),
                font,
                anchor="mm",
                stroke_width=3,
                stroke_fill=(0, 0, 0),
            )
    return torch.from_numpy(_array(tinted)).permute(2, 0, 1) / 255


def _array(image: Image.Image) -> Any:
    import numpy as np

    return np.array(image, dtype=np.float32)


def _inner_point(mask: Tensor) -> tuple[int, int]:
    """The cell of a mask [h, w] farthest from its edge."""
    from scipy.ndimage import distance_transform_edt

    distance = torch.from_numpy(distance_transform_edt(F.pad(mask, (1, 1, 1, 1)).numpy()))
    place = int(distance[1:-1, 1:-1].argmax())
    return place // mask.shape[1], place % mask.shape[1]


def loss_curve(losses: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Points of the three loss curves in a drawing of 720 x 200.

    Args:
        losses: rows of (total, style, content).
    """
    width, height = _CURVE
    top = max((max(row) for row in losses), default=0.0) or 1.0
    last = max(1, len(losses) - 1)
    lines = []
    for column, name in enumerate(("total", "regional style", "global content")):
        points = [
            f"{place * width / last:.1f},{height - row[column] * height / top:.1f}"
            for place, row in enumerate(losses)
        ]
        first, final = losses[0][column], losses[-1][column]
        lines.append({"name": name, "points": " ".join(points), "first": first, "last": final})
    return {"lines": lines, "top": top, "count": len(losses), "width": width, "height": height}


def _shown(image: Tensor) -> Tensor:
    longer = max(image.shape[-2:])
    size = [max(1, round(side * _SIDE / longer)) for side in image.shape[-2:]]
    mode = "nearest" if longer < _SIDE / 2 else "bilinear"
    options = {} if mode == "nearest" else {"antialias": True}
    return F.interpolate(image[None], size, mode=mode, **options)[0].clamp(0, 1)


def _uri(image: Tensor) -> str:
    shown = image if max(image.shape[-2:]) == _SIDE else _shown(image)
    buffer = io.BytesIO()
    to_pil(shown).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
