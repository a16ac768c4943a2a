"""Loads a base of any family and size, frozen."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import diffusers
import torch

from regionroute.config.choices import Quantize
from regionroute.errors import UserError
from regionroute.files import read_json, settings_hash
from regionroute.hub_names import commit_of, split_revision
from regionroute.models.backbone import Backbone
from regionroute.models.codec import PatchCodec
from regionroute.models.formats.packed import is_nf4, load_packed, plain_config
from regionroute.models.quantize import check_quantize, quantize_blocks
from regionroute.models.source import (
    default_settings,
    explained,
    family_in,
    find_index,
    is_distilled,
    read_index,
    read_settings,
    refuse_quantized,
    resolve,
)
from regionroute.pretrained import check_complete, quiet


def load_base(
    spec: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: Quantize | None = None,
    revision: str | None = None,
    *,
    skeleton: bool = False,
) -> Backbone:
    """Loads a base: every network frozen and in evaluation mode.

    Args:
        spec: ``nano``, a local folder in diffusers' layout of a known family's pipeline, or a hub
            id such as ``black-forest-labs/FLUX.1-Kontext-dev``, also ``owner/name@revision``. A
            folder wins over a hub id.
        dtype: of all networks, see :mod:`regionroute.models.quantize`.
        device: where they go.
        quantize: stores the transformer's blocks in fewer bits; a transformer that is stored in
            nf4 is loaded so in any case.
        revision: branch, tag or commit of a hub id, None: that of `spec`, or its main branch. All
            parts are loaded from the one commit that it names now, which is then
            `Backbone.revision`.
        skeleton: leaves the transformer's weights out: for encoding alone.

    Raises:
        UserError: no such base, of no known family, files missing or damaged, hub not reachable
            or not permitted, or stored in nf4 and to be quantized otherwise.
    """
    if quantize:
        check_quantize(quantize)
    source = resolve(spec)
    with explained(spec, source):
        found = commit_of(find_index(spec, source, revision))
        commit = found or revision or split_revision(spec)[1]
        if isinstance(source, Path):
            commit = None
        index = read_index(spec, source, commit)
        refuse_quantized(spec, source, (*family_in(index).networks, "vae"), commit)
    settings = read_settings(source) if isinstance(source, Path) else default_settings(index)
    with quiet() if isinstance(source, Path) else contextlib.nullcontext():
        parts, stored = _load_parts(spec, source, index, dtype, commit, skeleton)
    if stored and quantize not in (None, stored):
        raise UserError(
            f"base {spec}: its transformer is stored in {stored}, it cannot be {quantize}: leave "
            "base.quantize null or give the base in full precision"
        )
    backbone = Backbone(
        name=spec if isinstance(source, Path) else source,
        family=family_in(index),
        settings=settings,
        fingerprint=_fingerprint(spec, parts["transformer"], stored),
        distilled=is_distilled(index),
        semantic_channels=int(parts["vae"].config.get("semantic_channels", 0)),
        revision=commit,
        quantized=stored or quantize,
        **parts,
    )
    for network in backbone.networks():
        network.requires_grad_(False).eval()
    if quantize and not stored and not skeleton:
        quantize_blocks(backbone.transformer, quantize, device)
    return backbone.to(device)


def load_skeleton(spec: str) -> Any:
    """A base's transformer without its weights, for names, sizes and fingerprint.

    Args:
        spec: see `load_base`.

    Returns:
        The transformer on the meta device.

    Raises:
        UserError: see `load_base`.
    """
    source = resolve(spec)
    where: dict[str, Any] = {"local_files_only": isinstance(source, Path)}
    revision = split_revision(spec)[1]
    if revision is not None:
        where["revision"] = revision
    with explained(spec, source):
        kind = family_in(read_index(spec, source)).transformer
        config = kind.load_config(source, subfolder="transformer", **where)
        with torch.device("meta"):
            return kind.from_config(plain_config(config))


def _fingerprint(spec: str, transformer: Any, stored: Quantize | None) -> str:
    """Experts of a base that is stored in fewer bits are those of the plain one."""
    return fingerprint(load_skeleton(spec) if stored else transformer)


def fingerprint(transformer: Any) -> str:
    """Hash of a transformer's configuration and parameter count (not of its weights)."""
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    return settings_hash({"config": config, "parameters": transformer.num_parameters()})


def autoencoder_class(name: str) -> Any:
    """The autoencoder's class of this name in ``model_index.json``; diffusers' load lazily."""
    return PatchCodec if name == PatchCodec.__name__ else getattr(diffusers, name)


def _autoencoder(spec: str, index: dict[str, Any]) -> Any:
    """The autoencoder's class of a base, if its family knows it."""
    name, known = index["vae"][1], family_in(index).autoencoders
    if name not in known:
        raise UserError(f"base {spec}: its vae is a {name}, known are {' and '.join(known)}")
    return autoencoder_class(name)


def _load_parts(
    spec: str,
    source: Path | str,
    index: dict[str, Any],
    dtype: torch.dtype,
    revision: str | None,
    skeleton: bool,
) -> tuple[dict[str, Any], Quantize | None]:
    """All parts by their pipeline names, and how the transformer is stored."""
    where: dict[str, Any] = {"local_files_only": isinstance(source, Path)}
    if revision is not None:
        where["revision"] = revision
    family = family_in(index)
    parts: dict[str, Any] = {}
    stored: Quantize | None = None
    with explained(spec, source):
        kinds = dict(family.networks) | {"vae": _autoencoder(spec, index)}
        if isinstance(source, Path) and is_nf4(read_json(source / "transformer" / "config.json")):
            stored = "nf4"
        if skeleton:
            named = spec if isinstance(source, Path) or not revision else f"{source}@{revision}"
            parts["transformer"] = load_skeleton(named)
        elif stored and isinstance(source, Path):
            parts["transformer"] = load_packed(family.transformer, source / "transformer", dtype)
        for name, kind in family.small_parts.items():
            parts[name] = kind.from_pretrained(source, subfolder=name, **where)
        for name in [name for name in kinds if name not in parts]:
            parts[name], report = kinds[name].from_pretrained(
                source, subfolder=name, dtype=dtype, output_loading_info=True, **where
            )
            check_complete(f"base {spec}, {name}", report)
    return parts, stored
