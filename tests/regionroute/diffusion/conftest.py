"""A random FLUX.2-klein pipeline, as our loader and as the stock pipeline see it."""

import pytest
from diffusers import Flux2KleinPipeline

from regionroute.models.loading import load_base
from regionroute.models.tiny_klein import build_tiny_klein
from regionroute.pretrained import quiet


@pytest.fixture
def klein(tiny_klein):
    """Freshly loaded, so that a test may change it."""
    return load_base(str(tiny_klein))


@pytest.fixture
def stock_klein(tiny_klein):
    return load_stock_klein(tiny_klein)


@pytest.fixture(scope="session")
def distilled_folder(tmp_path_factory):
    """As `tiny_klein`, but said to be distilled; read only."""
    return build_tiny_klein(tmp_path_factory.mktemp("distilled") / "tiny", distilled=True)


@pytest.fixture
def load_stock():
    return load_stock_klein


def load_stock_klein(folder):
    """The pipeline as any user of diffusers would load it, without bars."""
    with quiet():
        pipeline = Flux2KleinPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
