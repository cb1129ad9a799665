"""Triton kernels for fusing two modalities, usable in anyone's model: fused cross-attention and what belongs to it."""

from .cross_attention import attention_weights, choice, cross_attention

__all__ = ["attention_weights", "choice", "cross_attention"]
