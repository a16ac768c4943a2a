"""Tables of docs/measured/moe-photos.md."""

from __future__ import annotations

from table_text import cell, number, result, table

ARMS = {
    "mixture": "mixture, example image",
    "mixture, by name": "mixture, mean embedding",
    "one LoRA per style": "one LoRA per style",
}
MEASURES = (("lpips_ratio", "%"), ("in_mask_ratio", "%"), ("success", "%"))


def moe_photos() -> str:
    """A mixture routed by an example image against one LoRA per style."""
    found, body = result("moe_photos"), []
    groups = dict.fromkeys(group for arm in found["groups"].values() for group in arm["all"])
    for group in groups:
        for arm, title in ARMS.items():
            row = found["groups"][arm]["all"].get(group)
            if row is None:
                continue
            if arm == "one LoRA per style" and group not in ("named",):
                title = "one LoRA per style, the nearest"
            body.append([group, title, str(row["n"]), *(cell(row[m], k) for m, k in MEASURES)])
    return table(["styles", "experts", "edits", "LPIPS left", "residual error", "success"], body)


def moe_photos_cost() -> str:
    """Parameters, files, time, and the edits as a user gets them."""
    found, body = result("moe_photos"), []
    for arm in ("mixture", "one LoRA per style"):
        routed, blends = found["routed"][arm], found["blends"][arm]
        body.append(
            [
                arm,
                f"{found['parameters'][arm] / 1e6:.2f} M",
                f"{found['megabytes'][arm]:.1f} MB",
                number(found["seconds_per_edit"][arm], ".2") + " s",
                cell(routed["lpips_ratio"], "%"),
                cell(routed["success"], "%"),
                cell(blends["position"], ".2"),
                cell(blends["between"], "%"),
            ]
        )
    heads = ["", "parameters", "files", "an edit", "routed: LPIPS left", "routed: success"]
    return table([*heads, "blend: position", "blend: between"], body)
