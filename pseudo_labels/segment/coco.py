"""Instance files of COCO (also of CVAT, Roboflow, Label Studio, ...) as rows of a labels file."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regionroute.errors import UserError
from regionroute.files import read_json

Row = Mapping[str, Any]


def coco_rows(path: Path) -> Iterator[Row | UserError]:
    """The images of an instances file, in its order, and what of it cannot be used.

    Annotations with ``iscrowd: 1`` are taken like others: some programs write every run-length
    mask so. One bad annotation costs that annotation alone.

    Args:
        path: JSON with "images", "annotations" and "categories".

    Yields:
        Rows {"image", "objects": [{"word", "segmentation", "bbox"}, ...], "width", "height"}; an
        error for each annotation and each image that cannot be used.

    Raises:
        UserError: it is no such file.
    """
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f"{path}: this is no instances file of COCO, it lacks the list {key!r}; a labels "
                "file of one JSON row a line ends in .jsonl"
            )
    words = {
        _key(item.get("id")): item.get("name")
        for item in content["categories"]
        if isinstance(item, dict)
    }
    known = {_key(item.get("id")) for item in content["images"] if isinstance(item, dict)}
    objects: dict[str, list[Row]] = defaultdict(list)
    broken: set[str] = set()
    for number, item in enumerate(content["annotations"], start=1):
        try:
            image, entry = _annotation(item, known, words)
            objects[image].append(entry)
        except UserError as error:
            if isinstance(item, dict):
                broken.add(_key(item.get("image_id")))
            yield UserError(f"{path}: {_name('annotation', number, item)}: {error}")
    yield from _images(path, content, objects, broken)


def _annotation(item: Any, known: set[str], words: Mapping[str, Any]) -> tuple[str, Row]:
    """The image an annotation belongs to, and the object it describes."""
    if not isinstance(item, dict):
        raise UserError("it must be an object {...}")
    for key in ("image_id", "category_id"):
        if key not in item:
            raise UserError(f"it has no {key!r}")
    image, category = _key(item["image_id"]), _key(item["category_id"])
    if image not in known:
        raise UserError(f"its image_id {image} is not among the 'images'")
    if category not in words:
        raise UserError(f"its category_id {category} is not among the 'categories'")
    word = words[category]
    if not isinstance(word, str) or not word.strip():
        raise UserError(f"its category {category} has no 'name'")
    entry = {"word": word} | {key: item[key] for key in ("segmentation", "bbox") if item.get(key)}
    if len(entry) == 1:
        raise UserError("it has neither 'segmentation' nor 'bbox', the object's place is not known")
    return image, entry


def _images(
    path: Path, content: Row, objects: Mapping[str, list[Row]], broken: set[str]
) -> Iterator[Row | UserError]:
    given = content.get("licenses")
    licences = {
        _key(item.get("id")): item.get("name")
        for item in (given if isinstance(given, list) else [])
        if isinstance(item, dict)
    }
    seen: set[str] = set()
    for number, item in enumerate(content["images"], start=1):
        name = f"{path}: {_name('image', number, item)}"
        if not isinstance(item, dict) or not isinstance(item.get("file_name"), str):
            yield UserError(f"{name}: it has no 'file_name'")
            continue
        key = _key(item.get("id"))
        if key in seen:
            yield UserError(f"{name}: its id is that of an image before")
        elif key in objects:
            row = {"image": item["file_name"], "objects": objects[key], "mask_source": "coco"}
            row |= {side: item[side] for side in ("width", "height") if item.get(side) is not None}
            licence = _key(item["license"]) if "license" in item else None
            yield row | ({"licence": licences[licence]} if licence in licences else {})
        elif key not in broken:  # whose annotations were named already
            yield UserError(f"{name}: {item['file_name']} has no annotation")
        seen.add(key)


def _key(value: Any) -> str:
    """An id as text: files mix 7 and "7"."""
    return str(value)[:100]


def _name(kind: str, number: int, item: Any) -> str:
    known = isinstance(item, dict) and "id" in item
    return f"{kind} {_key(item['id'])}" if known else f"{kind} number {number}"
