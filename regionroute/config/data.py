"""The settings of the training pairs, see `regionroute.config.run`."""

from typing import Annotated

from pydantic import Field, field_validator

from regionroute.config.base import Count, CountOrZero, Name, Positive, Section


class DataConfig(Section):
    """The training pairs."""

    manifest: Name = Field(
        "data/scenes/manifest.jsonl",
        description="manifest.jsonl of the pairs, its folder, or a pattern such as "
        "manifest-*.jsonl",
    )
    split: Name = Field("train", description="split of the manifest to train on")
    whole_targets: bool = Field(
        False,
        description="train each object's sample on its wholly restyled photo (label --whole), so "
        "that experts paint under the object prompt and gates keep the rest (routing.prompt "
        "object); the mask supervises the attention only",
    )
    resolution: Annotated[int, Field(ge=16)] | None = Field(
        None,
        description="images are resized to the area of a square with this side in pixels; null: "
        "the base's default",
    )
    buckets: bool = Field(
        True,
        description="group images of different aspect ratios into sizes of equal area, one size "
        "per batch; false: crop all images to one size",
    )
    cache: str | None = Field(
        None,
        description="folder of cached latents and embeddings, or a URL such as s3://bucket/cache, "
        "from which they are streamed; null: <output>/cache",
    )
    stream_memory: Positive = Field(
        4.0, description="GB of a streamed cache's files that each process keeps in memory"
    )
    shuffle_block: CountOrZero = Field(
        0,
        description="for a streamed cache: shuffle blocks of so many neighbouring pairs, then the "
        "pairs of shuffle_window blocks among each other; 0: shuffle all pairs at once",
    )
    shuffle_window: Count = Field(8, description="blocks that are mixed with each other")
    shuffle_lanes: Count = Field(
        1,
        description="parts of the global batch that read different blocks: the number of nodes; "
        "must divide global_batch",
    )
    workers: CountOrZero = Field(
        0, description="processes that load pairs; 0: load them in the training process"
    )

    @field_validator("manifest")
    @classmethod
    def _manifest_is_a_path(cls, manifest: str) -> str:
        if "://" in manifest:
            raise ValueError(
                "be a folder: only data.cache may be a URL, mount the bucket or copy the manifest"
            )
        return manifest
