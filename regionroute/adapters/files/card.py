"""The model card next to the weights: what they are, how they were trained, how to load them.

It is written from the registry alone, so it can be written again at any time. It reads these keys
of the registry's ``extra``: ``license`` (a name as on the hub), ``data`` (facts about the training
pairs by name), ``steps``, ``averaged`` (decay, if the weights are a moving average), ``losses``
(means at the end of training), ``metrics`` (numbers by name, each a number or
``{"mean", "low", "high"}``), ``slices`` (such metrics by slice of the samples), ``resolution``,
``max_text_length``, ``routing``, ``trained_rank`` (if the experts were cut to a lower one) and
``config``.
"""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from regionroute.adapters.files.registry import REGISTRY_FILE, ExpertRegistry, read_registry
from regionroute.errors import UserError
from regionroute.files import atomic_write, read_json, write_json
from regionroute.markdown import table

CARD_FILE = "README.md"
BESIDE_FILE = "README.regionroute.md"  # where another README.md is in the way
OUR_TAG = "regionroute"


def write_card(folder: Path, registry: ExpertRegistry) -> Path:
    """Write the model card into a folder of experts, atomically.

    Returns:
        Path of the file: ``README.md``, or `BESIDE_FILE` next to somebody else's ``README.md``.

    Raises:
        UserError: see `card`.
    """
    path = folder / CARD_FILE
    if path.exists() and not _is_ours(path):
        path = folder / BESIDE_FILE
    with atomic_write(path) as temporary:
        temporary.write_text(card(registry), encoding="utf-8")
    return path


def _is_ours(path: Path) -> bool:
    """Whether a file is a model card by us: its YAML header has our tag."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    start, header, _ = [*text.split("---\n", 2), "", ""][:3]
    return not start and f"- {OUR_TAG}\n" in header


def card(registry: ExpertRegistry) -> str:
    """Return the model card: Markdown with the hub's YAML header.

    Raises:
        UserError: a value in the registry's ``extra`` that is not what this module says.
    """
    header = yaml.safe_dump(_header(registry), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{header}---",
        f"# Style experts for {_base(registry)}",
        _introduction(registry),
        _styles(registry),
        _loading(registry),
        _intended(registry),
        _settings(registry),
        _measured(registry),
        _slices(registry),
        _licence(registry),
        _configuration(registry),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(registry: ExpertRegistry) -> dict[str, Any]:
    licence = registry.extra.get("license")
    header: dict[str, Any] = {"license": licence or "other"}
    if not licence:
        header["license_name"] = "not-stated"
    if registry.base.count("/") == 1 and not PurePath(registry.base).is_absolute():
        header["base_model"] = registry.base  # looks like a hub id
    return header | {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "tags": ["lora", "flux", "regional-style-transfer", OUR_TAG],
    }


def _base(registry: ExpertRegistry) -> str:
    path = PurePath(registry.base)
    # A local path means nothing elsewhere.
    return path.name if path.is_absolute() else registry.base


def _introduction(registry: ExpertRegistry) -> str:
    count = len(registry.experts)
    experts = "1 LoRA expert" if count == 1 else f"{count} LoRA experts"
    if registry.learned:
        router = registry.router
        assert router is not None
        text = (
            f"{experts} of rank {registry.rank}; in each layer the style embedding of "
            f"an example image selects {router.top_k} of them."
        )
        if styles := registry.trained_styles:
            text += f" Trained on: {', '.join(styles)}."
    else:
        text = f"{experts} of rank {registry.rank}, one per style, selected by name."
    if registry.shared_rank:
        text += (
            f" A shared expert of rank {registry.shared_rank}, used by all samples, is part of "
            "each LoRA file."
        )
    if registry.facts("routing").get("branch") == "base":
        text += (
            "\n\nIn routed edits the base paints inside the gates and these experts provide the "
            "attention map only (`routing.branch: base`); in plain edits and blends they paint."
        )
    return text


def _styles(registry: ExpertRegistry) -> str:
    if registry.learned:
        return table(("expert", "file"), [(e.style, f"`{e.file}`") for e in registry.experts])
    rows = [
        (style.name, style.words, f"`{entry.file}`")
        for style, entry in zip(registry.styles, registry.experts, strict=True)
    ]
    return table(("style", "phrase in the prompt", "file"), rows)


def _loading(registry: ExpertRegistry) -> str:
    first = registry.experts[0]
    asked = "--style-image example.png" if registry.learned else f"--style {_quoted(first.style)}"
    lines = [
        "## Use",
        "",
        "```bash",
        f"regionroute edit photo.png --object dog {asked} --experts THIS_FOLDER --out out.png",
        "```",
        "",
    ]
    if not registry.learned:
        prompt = f"make the dog in {registry.styles[0].words} style, keep other area unchanged"
        lines += [f'Prompt: "{prompt}".', ""]
    folder = PurePath(first.file).parent
    lines += [
        "Each file is an ordinary LoRA: load it with "
        f"`pipeline.load_lora_weights({str(folder)!r})` in "
        "diffusers; `regionroute experts export THIS_FOLDER --format comfyui --out LORAS` "
        "converts it for ComfyUI, `--format peft` for PEFT.",
    ]
    return "\n".join(lines)


def _intended(registry: ExpertRegistry) -> str:
    """What the experts are for, and what follows from how they were trained."""
    extra = registry.extra
    lines = [
        "## Intended use",
        "",
        f"Restyle a named object in an image, with {_base(registry)} and no other base: the "
        "fingerprint is checked. For research and for creative work on images that one may "
        "change. Not for edits that pass as photographs of what happened.",
        "",
        "## Limits",
        "",
        "- The object is found by the attention of the prompt. A word that the base does not know, "
        "or an object that is absent, small or next to one of its kind, may restyle the wrong "
        "place; look at the region map.",
    ]
    if extra.get("resolution"):
        lines.append(
            f"- Trained at {extra['resolution']} pixels: finer lines than that size shows are lost."
        )
    lines.append(
        "- An image in another style than those of the training is painted in the nearest of "
        "them, or in a mixture."
        if registry.learned
        else "- Only the styles of the table; others are the base's, without an expert."
    )
    if not (extra.get("metrics") or extra.get("slices")):
        lines.append("- Edits have not been scored; see below.")
    return "\n".join(lines)


def _slices(registry: ExpertRegistry) -> str:
    slices = registry.facts("slices")
    scores = {name: dict(_numbers(values, f"slices.{name}")) for name, values in slices.items()}
    heads = dict.fromkeys(head for values in scores.values() for head in values)
    rows = [(name, *(values.get(head, "") for head in heads)) for name, values in scores.items()]
    return "## Scores by slice\n\n" + table(("slice", *heads), rows) if rows else ""


def _settings(registry: ExpertRegistry) -> str:
    extra, router = registry.extra, registry.router
    targets, averaged = registry.targets, extra.get("averaged")
    rows = [
        ("base", f"{_base(registry)} (fingerprint {registry.fingerprint})"),
        ("rank, alpha", f"{registry.rank}, {registry.alpha:g}"),
        ("rank in training", extra.get("trained_rank")),
        ("layers", targets if isinstance(targets, str) else ", ".join(targets)),
        ("steps", extra.get("steps")),
        ("weights", averaged and f"moving average, decay {averaged}"),
        ("resolution", extra.get("resolution")),
        ("text tokens", extra.get("max_text_length")),
        ("style embedding", router.style_dim if router else None),
    ]
    rows += [(f"data: {name}", value) for name, value in registry.facts("data").items()]
    return "## Training\n\n" + table(
        ("", ""), [(name, str(value)) for name, value in rows if value is not None]
    )


def _measured(registry: ExpertRegistry) -> str:
    losses = _numbers(registry.facts("losses"), "losses")
    metrics = _numbers(registry.facts("metrics"), "metrics")
    lines = ["## Measured", ""]
    if losses:
        lines += [table(("at the end of training", "mean"), losses), ""]
    if metrics:
        lines.append(table(("score", "mean (95% interval)"), metrics))
    else:
        lines.append(
            "Edits with these experts have not been scored. `regionroute score` scores edits; "
            "`regionroute experts card THIS_FOLDER --scores summary.json` adds the scores here."
        )
    return "\n".join(lines)


def _numbers(values: Any, key: str) -> list[tuple[str, str]]:
    try:
        return [(name, _number(value)) for name, value in values.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        told = f"{REGISTRY_FILE}: extra.{key} must be numbers by name, fix or remove it"
        raise UserError(told) from error


def _number(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['mean']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    return f"{value:.4g}"


def _licence(registry: ExpertRegistry) -> str:
    licence = registry.extra.get("license")
    if licence:
        return f"## Licence\n\n{licence}. The base's own licence also applies to derivatives."
    return (
        "## Licence\n\nNot stated. The base's licence applies to derivatives, and the owners of "
        "the training images may have rights; "
        "`regionroute experts card THIS_FOLDER --license NAME` states one."
    )


def _configuration(registry: ExpertRegistry) -> str:
    config = registry.extra.get("config")
    if not config:
        return ""
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return f"<details><summary>Configuration</summary>\n\n```yaml\n{text}```\n\n</details>"


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text


def update_card(
    folder: Path, scores: Path | None = None, method: str | None = None, license: str | None = None
) -> Path:
    """Write a folder's model card again, with scores or a licence that it lacked.

    Args:
        folder: holds experts.json, which keeps what is added.
        scores: summary.json of `regionroute score`.
        method: whose scores, if the summary has several methods.
        license: of the experts, as the hub names it.

    Returns:
        The card.

    Raises:
        UserError: no experts, no such summary or method, or see `card`.
    """
    registry = read_registry(folder)
    extra = dict(registry.extra)
    if scores is not None:
        summary = read_json(scores)
        extra["metrics"] = card_scores(summary, scores, method)
        extra["slices"] = {
            name: card_scores(summary, scores, method, name)
            for name in slice_names(summary, method)
        }
    elif method:
        raise UserError("--method: it says whose scores, give the summary with --scores")
    if license:
        extra["license"] = license
    registry = registry.model_copy(update={"extra": extra})
    path = write_card(folder, registry)
    write_json(folder / REGISTRY_FILE, registry.model_dump(by_alias=True))
    return path


def slice_names(summary: Any, method: str | None) -> list[str]:
    """Slices of the samples that a checked summary has scores for, without "all"."""
    names = [name for name in summary["methods"] if name not in ("floor", "ceiling")]
    return [name for name in summary["methods"][method or names[0]]["slices"] if name != "all"]


def card_scores(
    summary: Any, path: Path, method: str | None, part: str = "all"
) -> dict[str, dict[str, float]]:
    """The mean scores of one method over a slice of the samples, by the metrics' labels.

    Args:
        summary: content of the summary.json of `regionroute score`.
        path: of the summary, for errors.
        method: whose; None: the only one that is an edit.
        part: slice, "all" for every sample.

    Returns:
        "mean", "low" and "high" of every score that could be computed.

    Raises:
        UserError: not such a summary, or the method is not in it or not clear.
    """
    try:
        methods, metrics = summary["methods"], summary["metrics"]
        named = [name for name in methods if name not in ("floor", "ceiling")]
        if method is None and len(named) == 1:
            method = named[0]
        if method not in methods:
            raise UserError(f"{path}: name one of its methods with --method: {', '.join(methods)}")
        rows = methods[method]["slices"][part]
        return {
            metrics[name]["label"]: {key: float(row[key]) for key in ("mean", "low", "high")}
            for name, row in rows.items()
            if name in metrics and None not in (row["mean"], row["low"], row["high"])
        }
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: this is not a summary.json of `regionroute score` ({error})"
        ) from error
