"""Routing of experts that store none: the prompt that they know from training."""

from regionroute.editing.expert_settings import stored_routing


def test_experts_without_stored_routing_get_the_object_prompt():
    routing = stored_routing({}, "experts")
    assert (routing.branch, routing.prompt) == ("expert", "object")


def test_stored_routing_is_kept():
    assert stored_routing({"routing": {"prompt": "image"}}, "experts").prompt == "image"
    # As stored before the setting existed: its default then.
    assert stored_routing({"routing": {}}, "experts").prompt == "image"
