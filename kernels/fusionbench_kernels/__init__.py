"""Triton kernels for fusing two modalities, usable in anyone's model: fused cross-attention and what belongs to it."""

from .co_attention import co_attention, co_attention_choice
from .concat_tokens import concat_tokens
from .cross_attention import attention_weights, choice, cross_attention

__all__ = [
    "attention_weights",
    "choice",
    "co_attention",
    "co_attention_choice",
    "concat_tokens",
    "cross_attention",
]
