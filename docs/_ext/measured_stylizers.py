"""Tables of docs/measured about StyleMamba and StyleGallery."""

from __future__ import annotations

from table_text import by_columns, cell, result, table

PAINTERS = (
    "bank",
    "arbitrary-style network",
    "network of 26 paintings",
    "optimised pixels",
    "unedited photo",
)
SEEDS = "banks of other seeds"


def mamba() -> str:
    """Losses of StyleMamba's fits."""
    data = result("mamba_fit")
    names = {
        "full": "ours",
        "no second order": "without the second-order term",
        "CLIPstyler": "a small network as in CLIPstyler",
    }
    parts = ("loss at 40 steps", "ssim at 40 steps")
    body = [[names[name], *(cell(data[part][name], ".2") for part in parts)] for name in names]
    return table(["", "held-out directional loss, 40 steps", "SSIM"], body)


QUALITY = [("Style", "match", ".2"), ("Gram", "gram", ".2"), ("LPIPS", "lpips", ".2")]


def mamba_bank() -> str:
    """The packaged style bank and other painters, each on the pairs that it painted."""
    data = result("mamba_bank")["scores"]["found"]["means"]
    painters = [PAINTERS[0], *([SEEDS] if SEEDS in data else []), *PAINTERS[1:]]
    body = [
        [
            name,
            str(data[name]["gram"]["n"]),
            *(cell(data[name][key], kind) for _, key, kind in QUALITY),
        ]
        for name in painters
    ]
    return table(["", "pairs", *(head for head, _, _ in QUALITY)], body)


def mamba_bank_paired() -> str:
    """The packaged style bank minus other painters, on the pairs that both painted."""
    rows = result("mamba_bank")["scores"]["found"]["paired"]
    names = {name: (f"bank − {name}",) for name in PAINTERS[1:-1]}
    seeds = f"{SEEDS} minus {PAINTERS[1]}"
    names |= {seeds: (seeds.replace("minus", "−"),)} if seeds in rows else {}
    return by_columns(rows, QUALITY, names, signed=True)


PROTOCOL = {
    "stylegallery": "`gallery`, offline",
    "painting": "arbitrary-style network, whole image",
    "numbered": "network of 26 paintings, the nearest",
    "optimised": "optimised pixels (Gatys)",
}
PROTOCOL_COLUMNS = [
    ("Style", "style", ".2"),
    ("Gram", "gram", ".2"),
    ("LPIPS", "lpips", ".2"),
    ("VGG content", "content", ".0"),
]


def gallery_protocol() -> str:
    """StyleGallery's benchmark: ours offline, and painters that need no diffusion model."""
    data = result("stylegallery_protocol")
    rows = {
        title: data[name]["scores"] | {"seconds": data[name]["seconds"]["mean"]}
        for name, title in PROTOCOL.items()
    }
    rows["unedited photos"] = data["stylegallery"]["unedited"]
    names = {title: (title, str(row["lpips"]["n"])) for title, row in rows.items()}
    columns = [*PROTOCOL_COLUMNS, ("processor seconds", "seconds", ".1")]
    return by_columns(rows, columns, names, ["", "pairs"])


def gallery_protocol_paired() -> str:
    """StyleGallery offline minus other painters, on the pairs that both painted."""
    data = result("stylegallery_protocol")
    rows = {
        title: data[name]["stylegallery minus this"]
        for name, title in PROTOCOL.items()
        if name != "stylegallery"
    }
    return by_columns(rows, PROTOCOL_COLUMNS, heads=["`gallery` minus"], signed=True)


def gallery_matching() -> str:
    """How often an object is matched with an object of the same word."""
    rows = result("gallery_matching")["features"]
    columns = [("same object", "object", "%"), ("same photo", "photo", "%")]
    return by_columns(rows, columns, heads=["features"])


def restyle_speed() -> str:
    """Seconds of the two commands."""
    rows = result("restyle")["speed"]["found"]["commands"]
    columns = [("processor seconds", "processor", ".0"), ("seconds", "wall", ".0")]
    return by_columns(rows, columns, heads=["command"])


def gallery_speed() -> str:
    """Steps of StyleGallery's energy against the published scheme."""
    names = {
        "ours, masking=multiply": "ours, masking as published (equal loss)",
        "ours": "ours",
        "ours, steps in pairs": "`--preset pairs`",
        "ours, warm": "references' keys kept for further photos",
    }
    columns = [
        ("times faster", "times faster", ".2"),
        ("times fewer operations at full size", "times fewer operations", ".2"),
    ]
    rows = result("stylegallery")["steps"]
    return by_columns(rows, columns, {name: (title,) for name, title in names.items()})


def gallery_clusters() -> str:
    """Whether clusters find objects."""
    kinds = ("features", "K-means, colour", "K-means, colour and place", "SLIC")
    parts = result("stylegallery_clusters")["partitions"]
    body = []
    for title, count, key in (
        ("best region, as many as the silhouette chooses", "chosen", "best cluster IoU"),
        ("union of regions, of eight", "8", "union IoU"),
    ):
        body.append([title, *(cell(parts[f"{count}: {kind}"][key], ".2") for kind in kinds)])
    return table(["mean IoU", *kinds], body)
