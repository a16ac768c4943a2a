"""COCO's outlines as masks and its instance files as labelled photos."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pseudo_labels.segment import Box
from regionroute.errors import UserError
from regionroute.files import read_json


def outline_mask(outline: Any, size: tuple[int, int]) -> Tensor:
    """A mask from a COCO "segmentation".

    Args:
        outline: polygons [[x, y, x, y, ...], ...] in pixels, or run lengths
            {"size": [H, W], "counts": list or text}.
        size: (height, width) of the picture.

    Returns:
        Mask [1, H, W] in {0, 1}.

    Raises:
        UserError: it is neither, or belongs to a picture of another size.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise UserError(
            "outlines in COCO's form need the package pycocotools: pip install 'regionroute[label]'"
        ) from error
    height, width = size
    if isinstance(outline, Mapping) and list(outline.get("size", size)) != [height, width]:
        raise UserError(
            f"the run lengths are of a picture of {outline['size'][::-1]} pixels, not "
            f"[{width}, {height}]"
        )
    try:
        if isinstance(outline, Mapping) and not isinstance(outline["counts"], list):
            runs = {"size": [height, width], "counts": outline["counts"]}
        elif isinstance(outline, Mapping):
            runs = coco_mask.frPyObjects(dict(outline, size=[height, width]), height, width)
        else:
            runs = coco_mask.merge(coco_mask.frPyObjects(_polygons(outline), height, width))
        return torch.from_numpy(coco_mask.decode(runs).astype(np.float32))[None]
    # What the C library raises on anything that is not an outline.
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            "'segmentation' must be polygons [[x, y, x, y, ...]] or run lengths with 'size' and "
            "'counts', as in COCO"
        ) from error


def _polygons(outline: Any) -> list[list[float]]:
    """Polygons with at least three corners each."""
    polygons = [[float(value) for value in polygon] for polygon in outline]
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs three corners")
    return polygons


def corner_box(bbox: Any) -> Box:
    """COCO's [x, y, width, height] as (y0, x0, y1, x1) in whole pixels.

    Raises:
        UserError: not four numbers, or nothing inside.
    """
    numbers = isinstance(bbox, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in bbox
    )
    if not numbers or len(bbox) != 4 or bbox[2] < 1 or bbox[3] < 1:
        raise UserError("'bbox' must be [x, y, width, height] in pixels, as in COCO")
    x, y, width, height = bbox
    return round(y), round(x), round(y + height), round(x + width)


def coco_rows(path: Path) -> list[dict[str, Any]]:
    """An instances file of COCO as rows of a labels file, in the order of its pictures.

    Crowds are left out: their outline is that of many objects at once.

    Args:
        path: JSON with "images", "annotations" and "categories".

    Returns:
        Rows {"image": ..., "objects": [{"word", "segmentation"}, ...]}; pictures without objects
        have none.

    Raises:
        UserError: it is not such a file.
    """
    content = read_json(path)
    try:
        words = {item["id"]: item["name"] for item in content["categories"]}
        licences = {item["id"]: item.get("name") for item in content.get("licenses", [])}
        objects = defaultdict(list)
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                entry = {"word": words[item["category_id"]], "segmentation": item["segmentation"]}
                objects[item["image_id"]].append(entry)
        rows = []
        for item in content["images"]:
            row = {
                "image": item["file_name"],
                "objects": objects[item["id"]],
                "mask_source": "coco",
            }
            if item.get("license") in licences:
                row["licence"] = licences[item["license"]]
            if row["objects"]:
                rows.append(row)
        return rows
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: this is no instances file of COCO, it lacks {error}; a labels file of one "
            "JSON row a line ends in .jsonl"
        ) from error
