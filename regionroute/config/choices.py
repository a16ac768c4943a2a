"""Values that a setting may take, where several rooms name them.

Without torch, so that a command line knows them before anything is loaded.
"""

from typing import Literal, get_args

Mode = Literal["routed", "plain"]
MODES: tuple[Mode, ...] = get_args(Mode)
SparseQuality = Literal["fast", "balanced", "high"]
SPARSE_QUALITIES: tuple[SparseQuality, ...] = get_args(SparseQuality)
Instance = Literal["all", "largest", "leftmost", "rightmost", "topmost", "bottommost"]
INSTANCES: tuple[Instance, ...] = get_args(Instance)

Dtype = Literal["float32", "bfloat16", "float16"]  # of networks
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
FileDtype = Literal["float32", "bfloat16", "float16", "float8"]  # of experts' files
FILE_DTYPES: tuple[FileDtype, ...] = get_args(FileDtype)
Quantize = Literal["nf4", "fp8"]
QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)

Backend = Literal["auto", "cpu", "flash", "efficient", "cudnn", "xformers", "flex", "dense"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
# Which keys share the softmax: all, those of the text, or those of the phrase.
Norm = Literal["full", "text", "selected"]
NORMS: tuple[Norm, ...] = get_args(Norm)
FocusInput = Literal["ratio", "prob"]
CoverMode = Literal["logratio", "prob"]
Aggregate = Literal["layer", "map"]
Timesteps = Literal["uniform", "logit_normal"]
