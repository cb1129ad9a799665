"""What a strategy must cost, in closed form: FLOPs, parameters, bytes moved, activations kept.

A strategy's cost is the sum of the primitives below, written beside its module. Only matrix products count as
FLOPs (2 per multiply-add), as in ``torch.utils.flop_counter``; only matrix products, attention and copies move
bytes: norms and elementwise ops are taken to be fused into their neighbours, and ids and masks to be too small
to count. Everything is counted in elements of the compute dtype; sizes that do not follow it are bytes.
"""

from __future__ import annotations

from operator import add

from msgspec import Struct
from msgspec.structs import astuple


class Cost(Struct, frozen=True, kw_only=True):
    """The cost of one forward pass, and of the backward pass where it differs from twice the forward."""

    flops: int = 0
    backward_flops: int = 0
    params: int = 0
    weights_read: int = 0  # elements of weights that one forward pass reads
    activations_moved: int = 0  # elements that each product reads and writes, nothing fused across products
    saved: int = 0  # elements that autograd keeps for the backward pass
    saved_bytes: int = 0  # what it keeps in a dtype of its own: fp32 statistics, int64 ids
    cached: int = 0  # elements of keys and values that it is given, of all layers
    trainable: int = 0  # of the parameters; set where it is known what is trained
    # What adaptation needs to know. Of Linear layers: FLOPs, elements kept only for the gradients of their weights,
    # the sums of rows, of in + out, and of rows x (in + out). Of other parameters: FLOPs and elements for gradients.
    linear_flops: int = 0
    linear_inputs: int = 0
    linear_rows: int = 0
    linear_sides: int = 0
    linear_traffic: int = 0
    other_flops: int = 0
    other_inputs: int = 0

    def __add__(self, other: Cost) -> Cost:
        # A plan adds hundreds per job: by getattr it takes 8 us, so 3.
        sums = map(add, astuple(self), astuple(other))
        return Cost(**dict(zip(self.__struct_fields__, sums, strict=True)))

    def __mul__(self, times: int) -> Cost:
        return Cost(**{name: getattr(self, name) * times for name in self.__struct_fields__})

    def min_bytes(self, itemsize: int, weight_itemsize: int | None = None) -> int:
        """Bytes that a forward pass must move when every product reads and writes each operand once."""
        return self.activations_moved * itemsize + self.weights_read * (weight_itemsize or itemsize)

    def idle(self) -> Cost:
        """What is left of it where it does not run: its parameters, which nobody reads."""
        return Cost(params=self.params)

    def activation_bytes(self, itemsize: int) -> int:
        """Bytes that autograd keeps between the forward and the backward pass, weights not counted."""
        return self.saved * itemsize + self.saved_bytes


def linear(
    rows: int, inputs: int, outputs: int, *, bias: bool = True, saves_input: bool = True, input_gradient: bool = True
) -> Cost:
    """``rows`` vectors through ``nn.Linear``.

    ``saves_input`` is False where another op keeps that tensor, ``input_gradient`` where the input is data.
    """
    flops = 2 * rows * inputs * outputs
    weights = inputs * outputs + (outputs if bias else 0)
    return Cost(
        flops=flops,
        backward_flops=(2 if input_gradient else 1) * flops,
        params=weights,
        weights_read=weights,
        activations_moved=rows * (inputs + outputs),
        saved=rows * inputs if saves_input else 0,
        linear_flops=flops,
        linear_inputs=rows * inputs if saves_input else 0,
        linear_rows=rows,
        linear_sides=inputs + outputs,
        linear_traffic=rows * (inputs + outputs),
    )


def layer_norm(rows: int, width: int, *, saves_input: bool = True, affine: bool = True) -> Cost:
    """LayerNorm, with weights and biases if ``affine``; autograd keeps its input, and mean and 1/std in fp32."""
    weights = 2 * width if affine else 0
    return Cost(
        params=weights,
        weights_read=weights,
        saved=rows * width if saves_input else 0,
        saved_bytes=8 * rows,
    )


def rms_norm(rows: int, width: int) -> Cost:
    """RMSNorm with affine weights, as the fused kernel of CUDA keeps it: its input, and 1/rms in fp32."""
    return Cost(params=width, weights_read=width, saved=rows * width, saved_bytes=4 * rows)


def product(batch: int, rows: int, inner: int, columns: int) -> Cost:
    """``batch`` products [rows, inner] x [inner, columns] of activations; who keeps the operands is the caller's."""
    flops = 2 * batch * rows * inner * columns
    moved = batch * (rows * inner + inner * columns + rows * columns)
    return Cost(flops=flops, backward_flops=2 * flops, activations_moved=moved)


def copy(elements: int) -> Cost:
    """A ``torch.cat``, or a write into a cache: every element is read and written, nothing is computed or kept."""
    return Cost(activations_moved=2 * elements)


def embedding(rows: int, vocabulary: int, width: int) -> Cost:
    """``rows`` look-ups in a table: one row of weights read and written per id; autograd keeps the int64 ids."""
    return Cost(
        params=vocabulary * width,
        weights_read=rows * width,
        activations_moved=rows * width,
        saved_bytes=8 * rows,
    )


def attention(
    batch: int, queries: int, keys: int, width: int, heads: int, impl: str, kv_width: int | None = None
) -> Cost:
    """softmax(QKᵀ/√d)V over ``heads`` heads of ``width`` together, without its projections.

    ``eager`` writes scores and probabilities to memory and keeps the probabilities; every other
    impl is counted as flash attention: only Q, K, V, the output and a log-sum-exp per row. ``kv_width`` is the
    width of keys and of values where groups of heads share them. Causal attention counts as dense.
    """
    q, kv = batch * queries * width, 2 * batch * keys * (kv_width or width)
    scores = batch * heads * queries * keys
    flops = 4 * batch * queries * keys * width
    eager = impl == "eager"
    return Cost(
        flops=flops,
        backward_flops=2 * flops,
        activations_moved=q + kv + q + (4 * scores if eager else 0),
        saved=q + kv + q + (scores if eager else 0),
        saved_bytes=0 if eager else 4 * batch * heads * queries,
    )


def projected_attention(batch: int, queries: int, keys: int, width: int, inner: int) -> Cost:
    """Attention with the projections of its queries and outputs in one kernel, which keeps x, k and v.

    Counted as that kernel; where the widths do not allow it, fewer steps are fused and more is moved.
    """
    rows, kv = batch * queries, 2 * batch * keys * inner
    flops = 2 * rows * width * inner * 2 + 4 * rows * keys * inner
    weights = 2 * width * inner + inner + width
    return Cost(
        flops=flops,
        backward_flops=2 * flops,
        params=weights,
        weights_read=weights,
        activations_moved=2 * rows * width + kv,
        saved=rows * width + kv,
    )


def absorbed_attention(batch: int, queries: int, keys: int, width: int, inner: int, heads: int) -> Cost:
    """Both projections multiplied into keys and values, [B, H, Lk, D] each, then one kernel; inference only."""
    rows, absorbed = batch * queries, 2 * batch * heads * keys * width
    weights = 2 * width * inner + inner + width
    by_bias = 2 * batch * keys * inner  # the queries' bias through the keys
    return Cost(
        flops=4 * batch * keys * inner * width + by_bias + 4 * rows * heads * keys * width,
        params=weights,
        weights_read=weights,
        activations_moved=2 * batch * keys * inner + 2 * absorbed + 2 * rows * width,
    )
