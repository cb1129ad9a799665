"""Triton kernels for fusing two modalities, usable in anyone's model: fused cross-attention and what belongs to it."""

from .absorbed import AbsorbedContext, absorb, absorbed_cross_attention, absorption_pays
from .co_attention import co_attention, co_attention_choice
from .concat_linear import concat_linear, concat_projected, project_into
from .concat_tokens import concat_tokens
from .cross_attention import attention_weights, choice, cross_attention
from .int8_attention import QuantizedKV, int8_attention, quantize_kv
from .int8_linear import Int8Weight, int8_linear
from .projected import projected_choice, projected_cross_attention

__all__ = [
    "AbsorbedContext",
    "Int8Weight",
    "QuantizedKV",
    "absorb",
    "absorbed_cross_attention",
    "absorption_pays",
    "attention_weights",
    "choice",
    "co_attention",
    "co_attention_choice",
    "concat_linear",
    "concat_projected",
    "concat_tokens",
    "cross_attention",
    "int8_attention",
    "int8_linear",
    "project_into",
    "projected_choice",
    "projected_cross_attention",
    "quantize_kv",
]
