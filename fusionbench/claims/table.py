"""The claims, as they are commonly made: data only, so that naming one wrong is answered before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import refuse_unknown
from ..ledger import Claim

# Where a claim was read: five texts that people learn multimodal fusion from.
_CONCAT = "a tutorial on concatenation and cross-attention"
_OVERVIEW = "an overview of cross-modal architectures"
_QWEN = "an article on the fusion stage of Qwen2.5-VL"
_VISION_TEXT = "an article on vision-text cross-attention"
_RASCHKA = "S. Raschka, Understanding Multimodal LLMs"

_ROWS = (
    ("C1", _QWEN, "Cross-attention is 18 % more accurate than concatenation in visual question answering.",
     "what both cost at the same width; their accuracy needs training at matched parameters and FLOPs"),
    ("C2", _QWEN, "A mismatch of feature dimensions lowers VQA accuracy by 15 to 20 %.",
     "hands unequal widths to the operations in which two modalities meet"),
    ("C3", _QWEN, "Bidirectional attention doubles the compute.",
     "closed forms, and the FLOPs that PyTorch counts in the real modules, at four published shapes; one timing"),
    ("C4", _QWEN, "The cosine of matched pairs is 0.1 at random initialisation and 0.85 after training.",
     "the mean |cos| of independent random features; the trained value needs training"),
    ("C5", _OVERVIEW, "INT8 quantisation and pruning lower inference latency.",
     "times one Linear layer against its int8, its masked and its truly smaller version"),
    ("C6", _RASCHKA, "A ViT's patch projection as a Linear layer equals a Conv2d with kernel = stride = patch.",
     "both on integers, where every sum is exact, with one weight in two shapes"),
    ("C7", _RASCHKA, "The inputs of cross-attention may differ in length, but their embedding dimensions must match.",
     "runs cross-attention at the unequal widths of three published models"),
    ("C8", _RASCHKA, "Cross-attention of a sequence with itself (x1 = x2) is self-attention.",
     "the same weights called both ways, and against PyTorch's nn.MultiheadAttention in fp64"),
    ("C9", _CONCAT, "Concatenated modalities do not interact in the fusion step.",
     "the gradient of the image outputs with respect to the text inputs"),
    ("C10", _CONCAT, "Cross-attention returns exactly the shape of its query and can stand in its place.",
     "both directions over ugly lengths, widths and head counts"),
    ("C11", _CONCAT, "Cross-attention is more efficient than concatenation, which leaves the work to what follows.",
     "FLOPs of one layer of each at four published shapes, each side asking and both; two timings"),
    ("C12", _CONCAT, "Mid-level fusion is the mainstream and the best choice.",
     "the work per pair that retrieval leaves over; quality needs training"),
    ("C13", _OVERVIEW, "Early fusion suits tightly coupled modalities, late fusion independent ones.",
     "which labels of two bits any sum of two logits can represent at all; real data needs training"),
    ("C14", _QWEN, "With 32 heads at width 4096, scores are divided by √4096.",
     "which divisor reproduces the attention that PyTorch and fusionbench compute"),
    ("C15", _QWEN, "Qwen2.5-VL projects by Linear 768→4096 + LayerNorm and fuses by bidirectional cross-attention.",
     "the weights of its patch merger and the modules of its published code"),
    ("C16", _VISION_TEXT, "ViLBERT fuses both modalities in a shared Transformer encoder.",
     "whether one layer could take both of its widths, and which weights its two streams share"),
    ("C17", _VISION_TEXT, "UNITER introduces cross-attention between its modalities.",
     "what queries and keys its attention is called with, and its parameters against those of a BERT layer"),
    ("C18", _VISION_TEXT, "Fused vision features are A·V, with queries from vision and keys from text.",
     "evaluates the formula at unequal lengths, and asks at equal ones whether the order of text tokens matters"),
    ("C19", _VISION_TEXT, "The fused representation is the concatenation H = [V; T].",
     "both axes, with unequal and with adjusted sizes"),
    ("C20", _VISION_TEXT, "Cross-modal attention is too heavy for real time.",
     "latency at batch 1 on one CPU thread against the 33.3 ms of a frame at 30 per second"),
    ("C21", _OVERVIEW, "LoRA lowers the cost of fine-tuning and of running a model.",
     "parameters, optimiser bytes, FLOPs and times of one layer with adapters of rank 8"),
    ("C22", _OVERVIEW, "FP16 and BF16 speed up training and lower its memory.",
     "bytes of one layer in closed form, and its training step timed against fp32"),
    ("C23", _OVERVIEW, "Co-attention takes the softmax of the raw affinity T·Iᵀ, without a scale.",
     "the entropy of that softmax over 64 random tokens as the width grows"),
    ("C24", _QWEN, "Sparse attention cuts the cost of bidirectional attention.",
     "masked, top-k and windowed attention timed against dense attention at two lengths"),
    ("C25", _OVERVIEW, "Modality-type embeddings let attention tell the modalities apart.",
     "whether exchanging the modalities of the tokens changes what attention returns, with and without"),
    ("C26", _RASCHKA, "Llama 3.2 is an example of the unified-embedding decoder.",
     "which layers of Llama 3.2 and of Llama 3.2 Vision attend across, and what both designs cost"),
    ("C27", _RASCHKA, "A patch of 16 × 16 pixels is a vector of 256 numbers, projected to 768.",
     "feeds patches of one-channel and of RGB images to that projection"),
    ("C28", _OVERVIEW, "The joint encoder-decoder MultiModalTransformer runs as it is printed.",
     "calls the printed module, and one whose decoder is given its memory"),
)  # fmt: skip

CLAIMS = {id_: Claim(id=id_, said=said, source=source, method=method) for id_, source, said, method in _ROWS}


def chosen(ids: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of these IDs (``c3`` is ``C3``) in the table's order, or all; raises UnknownNameError."""
    wanted = [name.upper() for name in ids] or list(CLAIMS)
    refuse_unknown("claim", wanted, CLAIMS)
    return tuple(claim for claim in CLAIMS.values() if claim.id in wanted)
