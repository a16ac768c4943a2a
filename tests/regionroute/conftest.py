"""A random Kontext pipeline on disk, as our loader and as the stock pipeline see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline

from regionroute.adapters import adapter_layers, inject, save_experts
from regionroute.data.manifest import StyleSpec
from regionroute.models.backbone import Backbone
from regionroute.models.loading import load_base
from regionroute.models.tiny import build_tiny
from regionroute.pretrained import quiet


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_base` without a guidance embedding, as nano is; read only."""
    return build_tiny(tmp_path_factory.mktemp("plain") / "base", guidance_embeds=False)


@pytest.fixture(scope="session")
def tiny_experts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random experts for `tiny_base` whose effect can be seen; read only."""
    folder = tmp_path_factory.mktemp("experts")
    return _write_experts(folder, load_base(str(tiny_base)))


@pytest.fixture(scope="session")
def write_experts() -> Callable[..., Path]:
    """Gives ``write(folder, freshly loaded base, **extra)``."""
    return _write_experts


def _write_experts(folder: Path, base: Backbone, **extra: Any) -> Path:
    """Random experts for two styles, the second with a phrase of its own."""
    inject(base.transformer, "regionroute", num_experts=2, rank=2, alpha=4.0)
    generator = torch.Generator().manual_seed(5)
    for layer in adapter_layers(base.transformer).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator) * 0.3
    save_experts(
        folder,
        base.transformer,
        [StyleSpec("pixel-art"), StyleSpec("lines", "line-art")],
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        extra=extra,
    )
    return folder


@pytest.fixture
def tiny_backbone(tiny_base: Path) -> Backbone:
    """Freshly loaded, so that a test may change it."""
    return load_base(str(tiny_base))


@pytest.fixture
def tiny_plain(plain_folder: Path) -> Backbone:
    return load_base(str(plain_folder))


@pytest.fixture
def stock(tiny_base: Path) -> FluxKontextPipeline:
    return load_stock(tiny_base)


@pytest.fixture
def stock_plain(plain_folder: Path) -> FluxKontextPipeline:
    return load_stock(plain_folder)


def load_stock(folder: Path) -> FluxKontextPipeline:
    """The pipeline as any user of diffusers would load it, without bars."""
    with quiet():
        pipeline = FluxKontextPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def spy() -> Iterator[Callable[[torch.nn.Module], list[dict[str, Any]]]]:
    """Gives a function that lists the keyword arguments of a module's coming calls."""
    handles = []

    def watch(module: torch.nn.Module) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def keep(module: torch.nn.Module, args: tuple[()], kwargs: dict[str, Any]) -> None:
            calls.append(dict(kwargs))

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        return calls

    yield watch
    for handle in handles:
        handle.remove()
