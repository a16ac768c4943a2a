"""The tables of ``docs/measured``, drawn from ``bench/results``: ``make measured``.

A page holds its table between ``<!-- table: NAME -->`` and ``<!-- end of table -->``, followed by
the command that measures it again. Building the site draws the tables too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from measured_moe import moe_photos, moe_photos_cost
from measured_rest import (
    masks,
    rehearsals,
    sparse_levels,
    sparse_quality,
    sparse_speed,
    speed,
    studio,
    taught,
    wrong_edits,
)
from measured_stylizers import (
    gallery_clusters,
    gallery_matching,
    gallery_protocol,
    gallery_protocol_paired,
    gallery_speed,
    mamba,
    mamba_bank,
    mamba_bank_paired,
    restyle_speed,
)
from table_text import REPOSITORY, Column, by_columns, cell, number, result, table

PAGES = REPOSITORY / "docs"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.S)

# Columns that several results share.
PHOTOS: list[Column] = [
    ("coverage", "coverage", "%"),
    ("leak", "leak", "%.1"),
    ("LPIPS, background", "lpips_bg", ".3"),
    ("LPIPS left", "lpips_ratio", "%"),
    ("residual error", "in_mask_ratio", "%"),
    ("success", "success", "%"),
    ("map IoU", "map_iou", ".2"),
]
SCENES: list[Column] = [
    ("residual error", "error left", "%"),
    ("success", "success", "%"),
    ("background error", "background", ".4"),
    ("leak", "leak", "%.1"),
    ("map IoU", "map IoU", ".2"),
]
# Rows of bench/photos.py by what the page calls them, and who paints inside the gates.
PHOTO_ROWS = {
    "routed, with": ("**routed**", "expert"),
    "base paints, routed": ("routed, base paints", "base"),
    "routed, image prompt": ("routed, image prompt", "expert"),
    "routed by the true mask": ("true mask", "expert"),
    "base paints, true mask": ("true mask, base paints", "base"),
    "true mask, image prompt": ("true mask, image prompt", "expert"),
    "plain, with": ("plain", "expert"),
    "base, plain": ("base, plain", "base"),
}
SCENE_ROWS = {
    "plain, unsupervised": ("plain, unsupervised", "expert"),
    "plain, supervised": ("plain, supervised", "expert"),
    "routed, unsupervised": ("routed, unsupervised", "base"),
    "routed, supervised": ("**routed, supervised**", "base"),
    "expert's branch, told the image": ("routed, supervised, image prompt", "expert"),
    "expert's branch, told the object": ("routed, supervised, object prompt", "expert"),
    "base's branch, told the object": ("routed, supervised, object prompt", "base"),
    "gate off": ("gate always open", "base"),
    "true mask": ("true mask instead of the map", "base"),
    "another object's mask": ("true mask of another scene", "base"),
    "object word of the base": ("map of the base's object word (training-free)", "base"),
    "pixel composite": ("base's global restyle, composited by the same gates", "base"),
}


def supervision() -> str:
    """What supervision and routing change, paired."""
    data = result("supervision")
    rows = {
        "supervision, plain edits": data["supervision, plain"]["single"],
        "supervision, routed edits": data["supervision, routed"]["single"],
        "routing, supervised¹": data["routing, with supervision"]["single"],
    }
    columns = [
        ("residual error, points", "in_mask_ratio", "%.1"),
        ("success, points", "success", "%.1"),
        ("background error", "mse_bg", ".4"),
        ("leak, points", "leak", "%.1"),
        ("map IoU", "attention_iou", ".4"),
    ]
    return by_columns(rows, columns, heads=("difference by",), signed=True)


def scenes() -> str:
    """Each part of a routed edit of a drawn scene."""
    rows = dict(result("controls")["slices"]["single"])
    base = result("study")["methods"]["zero-shot"]["flag:single"]
    keys = {"in_mask_relative": "error left", "mse_bg": "background", "attention_iou": "map IoU"}
    rows["zero-shot"] = {keys.get(key, key): value[0] for key, value in base.items()}
    names = {"zero-shot": ("base, plain (zero-shot)", "base"), **SCENE_ROWS}
    return by_columns(rows, SCENES, names, ("", "painted by"))


def hard_scenes() -> str:
    """Slices of the controls."""
    kinds = ("several", "touching", "occluded", "small")
    shown = ("routed, supervised", "plain, supervised", "true mask", "object word of the base")
    slices, body = result("controls")["slices"], []
    for kind in kinds:
        rows = slices[kind]
        pairs = [
            f"{cell(rows[name]['error left'], '%')} / {cell(rows[name]['background'], '.4')}"
            for name in shown
        ]
        body.append([kind, *pairs, cell(rows["routed, supervised"]["map IoU"], ".2")])
    heads = ["", "routed", "plain", "true mask", "training-free map", "map IoU, routed"]
    return table(heads, body)


def whole_images() -> str:
    """Experts trained with and without whole images."""
    body = []
    for title, name in (
        ("restyled objects only", "controls"),
        ("and whole scenes", "whole_pictures"),
    ):
        rows, whole = result(name)["slices"]["single"], result(name)["style on whole pictures"]
        expert = rows["expert's branch, told the image"]["error left"]
        body.append(
            [
                title,
                cell(expert, "%"),
                cell(rows["routed, supervised"]["error left"], "%"),
                number(whole["supervised"], "%"),
                f"{whole['ratio']:.2f} x",
            ]
        )
    heads = ["experts trained on", "residual error, expert paints", "base paints"]
    return table([*heads, "expert, whole images", "cost of supervision there"], body)


def style_image() -> str:
    """Style by image against style by name."""
    edits, body = result("style_image")["edits"]["single"], []
    for title, key, kind in (
        ("in-mask error", "in_mask_error", ".3"),
        ("residual error", "in_mask_ratio", "%"),
        ("success", "success", "%"),
        ("leak", "leak", "%.1"),
    ):
        row = edits[key]
        fine = kind if kind.startswith("%") else ".4"
        difference = cell({k: row[k] for k in ("difference", "low", "high")}, fine, signed=True)
        body.append([title, number(row["shown"], kind), number(row["name"], kind), difference])
    return table(["", "example image", "name", "difference"], body)


def several_styles() -> str:
    """Two and three objects in one edit."""
    columns = [("nearer", "all nearer", "%"), ("right", "all right", "%")]
    columns.append(("background error", "background error", ".4"))
    parts = []
    for title, name in (("two objects", "two_styles"), ("three objects", "three_styles")):
        parts.append(by_columns(result(name)["methods"], columns, heads=(title,)))
    return "\n\n".join(parts)


def absent() -> str:
    """Warnings of absent objects."""
    body = []
    for title, name in (("scenes", "absent_words"), ("photos", "absent_words_photos")):
        data = result(name)
        warned = [cell(data[f"warned, {which}"], "%") for which in ("absent", "present")]
        area = f"{data['area under the curve']:.2f}"
        body.append([f"{title}, {data['pictures']}", *warned, area])
    return table(["", "warned, absent word", "warned, present word", "area under the curve"], body)


def photos() -> str:
    """The shipped experts on photos."""
    rows = {name: row["all"] for name, row in result("photos_who_paints")["methods"].items()}
    return by_columns(rows, PHOTOS, PHOTO_ROWS, ("", "painted by"))


def photo_slices() -> str:
    """The shipped experts by slice."""
    rows = result("photos_who_paints")["methods"]["routed, with"]
    names = {name: (name, str(row["n"])) for name, row in rows.items()}
    keys = ("lpips_ratio", "success", "leak", "map_iou")
    columns = [column for column in PHOTOS if column[1] in keys]
    return by_columns(rows, columns, names, ("routed", "edits"))


def photos_earlier() -> str:
    """Supervision on photos, three seeds, the base before."""
    names = {
        "plain, without": ("plain, unsupervised", "expert"),
        "plain, with": ("plain, supervised", "expert"),
        "routed, without": ("routed, unsupervised", "base"),
        "routed, with": ("**routed, supervised**", "base"),
        "routed by the true mask": ("routed by the true mask", "base"),
    }
    rows = {name: row["all"] for name, row in result("photos")["methods"].items()}
    columns = [column for column in PHOTOS if column[1] != "success"]
    return by_columns(rows, columns, names, ("", "painted by"))


def crowded(file: str = "crowded") -> str:
    """Photos of several objects."""
    columns = [
        ("IoU of the change", "iou", ".2"),
        ("peak on the object", "peak", "%"),
        ("overlap of two words", "overlap", ".2"),
        ("leak", "leak", "%"),
        ("coverage", "coverage", "%"),
        ("AUC present/absent", "auc", ".2"),
        ("absent words change", "absent changes", "%"),
    ]
    rows, names = {}, {}
    kinds = {"photo": "photos", "outlined": "outlined photos", "mosaic": "mosaics"}
    for kind, title in kinds.items():
        for method, parts in result(file)["methods"].items():
            if kind in parts:
                rows[f"{kind} {method}"] = parts[kind]
                names[f"{kind} {method}"] = (f"{title}, {parts[kind]['n']}", method)
    return by_columns(rows, columns, names, ("", ""))


def presence() -> str:
    """Absent and present words by what is taken off the scores of trained words."""
    groups = result("presence")["groups"]
    chosen = str(result("presence")["seen"])
    body = []
    for title, group in groups.items():
        cells = [
            cell(group["values"][value][which], "%")
            for value in ("0.0", chosen)
            for which in ("pass", "refused")
        ]
        body.append([title, str(group["objects"]), *cells])
    heads = ["absent words pass", "present ones refused"]
    old = [f"{head}, nothing more off trained words" for head in heads]
    return table(["", "objects", *old, *heads], body)


def gates(name: str) -> Callable[[], str]:
    """What cuts the edit out."""
    columns = [
        ("LPIPS left", "lpips_ratio", "%.1"),
        ("pixel IoU", "pixel_iou", ".3"),
        ("coverage", "coverage", "%"),
        ("leak", "leak", "%.1"),
    ]
    return lambda: by_columns(result(name)["cut out by"], columns, heads=("composited by",))


TABLES: dict[str, Callable[[], str]] = {
    "supervision": supervision,
    "scenes": scenes,
    "hard-scenes": hard_scenes,
    "whole-images": whole_images,
    "style-image": style_image,
    "moe-photos": moe_photos,
    "moe-photos-cost": moe_photos_cost,
    "several-styles": several_styles,
    "absent": absent,
    "photos": photos,
    "photo-slices": photo_slices,
    "photos-earlier": photos_earlier,
    "crowded": crowded,
    "crowded-supervision": lambda: crowded("crowded_supervision"),
    "presence": presence,
    "taught": taught,
    "gates": gates("gates"),
    "gates-fresh": gates("gates_fresh"),
    "wrong-edits": wrong_edits,
    "masks": masks,
    "mamba": mamba,
    "mamba-bank": mamba_bank,
    "mamba-bank-paired": mamba_bank_paired,
    "gallery-protocol": gallery_protocol,
    "gallery-protocol-paired": gallery_protocol_paired,
    "gallery-speed": gallery_speed,
    "gallery-clusters": gallery_clusters,
    "gallery-matching": gallery_matching,
    "restyle-speed": restyle_speed,
    "speed": speed,
    "rehearsal": rehearsals,
    "sparse-speed": sparse_speed,
    "sparse-quality": sparse_quality,
    "sparse-levels": sparse_levels,
    "studio": studio,
}


def redrawn(text: str) -> str:
    """A page with its tables drawn anew."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> int:
    """Draws all tables; prints the pages that changed."""
    for page in sorted(PAGES.glob("[!_]*/*.md")):
        old = page.read_text(encoding="utf-8")
        new = redrawn(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
