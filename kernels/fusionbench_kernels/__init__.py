"""Triton kernels for fusing two modalities, usable in anyone's model: fused cross-attention and what belongs to it."""

from .concat_tokens import concat_tokens
from .cross_attention import attention_weights, choice, cross_attention

__all__ = ["attention_weights", "choice", "concat_tokens", "cross_attention"]
