"""Routing of experts that store none: the prompt that they know from training."""

import pytest

from regionroute.editing.expert_settings import stored_routing


@pytest.mark.parametrize(
    ("base", "prompt"),
    [
        ("black-forest-labs/FLUX.1-Kontext-dev", "object"),
        (None, "object"),
        ("nano", "image"),  # measured: the object prompt paints worse there
        ("nano-photos", "image"),
    ],
)
def test_experts_without_stored_routing_get_the_prompt_of_their_base(base, prompt):
    routing = stored_routing({}, "experts", base)
    assert (routing.branch, routing.prompt) == ("expert", prompt)


def test_what_is_stored_holds_for_every_base():
    extra = {"routing": {"prompt": "image"}}
    assert stored_routing(extra, "experts", "some/base").prompt == "image"
    # As stored before the setting existed: its default then.
    assert stored_routing({"routing": {}}, "experts", "some/base").prompt == "image"
