"""A random Kontext pipeline on disk, as our loader and as the stock pipeline see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline

from regionroute.backbones.kontext import Backbone, load_backbone, quiet
from regionroute.backbones.tiny import build_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guidance-distilled random base in diffusers' layout; read only."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a guidance embedding, as nano is."""
    return build_tiny(tmp_path_factory.mktemp("plain") / "base", guidance_embeds=False)


@pytest.fixture
def tiny_backbone(tiny_folder: Path) -> Backbone:
    """Freshly loaded, so that a test may change it."""
    return load_backbone(str(tiny_folder))


@pytest.fixture
def tiny_plain(plain_folder: Path) -> Backbone:
    return load_backbone(str(plain_folder))


@pytest.fixture
def stock(tiny_folder: Path) -> FluxKontextPipeline:
    return load_stock(tiny_folder)


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
