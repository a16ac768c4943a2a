"""The libraries of an edit, imported as quickly as can be."""

import importlib

from regionroute.cli import start
from regionroute.models.devices import quiet_libraries

# What diffusers and transformers import wherever it is installed: for models in 4 bits, for other
# schedulers, for the compiler, with torchvision's transforms, for training detectors. (ndimage is
# ours.) What the compiler is told by decorators, a process that edits need not know.
UNUSED = (
    "bitsandbytes",
    "scipy.integrate",
    "scipy.ndimage",
    "scipy.stats",
    "torch._dynamo:@allow_in_graph,@assume_constant_result,@disable",
    "torch._dynamo._trace_wrapped_higher_order_op:TransformGetItemToIndex",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.ops.boxes:box_iou",
    "transformers.loss.loss_d_fine:DFineForObjectDetectionLoss",
    "transformers.loss.loss_deformable_detr:DeformableDetrForObjectDetectionLoss,"
    "DeformableDetrForSegmentationLoss",
    "transformers.loss.loss_deimv2:Deimv2ForObjectDetectionLoss",
    "transformers.loss.loss_for_object_detection:ForObjectDetectionLoss,ForSegmentationLoss",
    "transformers.loss.loss_grounding_dino:GroundingDinoForObjectDetectionLoss",
    "transformers.loss.loss_lw_detr:LwDetrForObjectDetectionLoss",
    "transformers.loss.loss_rf_detr:RfDetrForSegmentationLoss",
    "transformers.loss.loss_rt_detr:RTDetrForObjectDetectionLoss",
)


def import_libraries() -> None:
    """Imports them without their chatter, and of them only what an edit needs."""
    quiet_libraries()
    with start.put_off(*UNUSED):
        importlib.import_module("regionroute.pipeline")
    start.collect_as_usual()
