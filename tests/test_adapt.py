"""Adaptation and pruning: what is trained, what it costs exactly, and what is taken away."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from fusionbench import backends, prune
from fusionbench.adapt import LoraLinear
from fusionbench.inputs import make_inputs
from fusionbench.meters.flops import count_flops
from fusionbench.registry import Strategy, get, strategies
from fusionbench.spec import Case, Design, Job, Shape
from fusionbench.subject import build, closed_form, twin

from .test_costs import kept_bytes, total

SHAPE = Shape(batch=2, image=9, text=5, image_width=24, text_width=16, width=16, heads=4, depth=2, ffn=2)
TRAINING = Case(shape=SHAPE, mode="fwd_bwd")

# Learned queries stand before anything that has a gradient, so less runs behind frozen ones than the closed form says.
LEARNED_QUERIES = ("q_former", "perceiver", "attention_pooling", "bottleneck")


def adaptable(adapt: str) -> list[tuple[Strategy, Case]]:
    found = []
    for entry in strategies().values():
        for case in (TRAINING, SAME):
            asked = msgspec.structs.replace(case, adapt=adapt)
            if not entry.refusal(asked):
                found.append((entry, asked))
                break
    return found


SAME = Case(shape=msgspec.structs.replace(SHAPE, image_width=16), projector="identity", mode="fwd_bwd")
EARLY = Case(shape=msgspec.structs.replace(SHAPE, image_width=27), mode="fwd_bwd")
ADAPTED = [
    pytest.param(entry, case, id=f"{entry.name}-{adapt}")
    for adapt in ("full", "frozen", "lora:3")
    for entry, case in adaptable(adapt)
]


@pytest.mark.parametrize(("entry", "case"), ADAPTED)
def test_the_closed_form_knows_what_is_trained_and_what_that_costs(entry: Strategy, case: Case) -> None:
    torch.manual_seed(0)
    module, given = entry.module(case, "eager"), make_inputs(entry, case, 1, torch.float32, "cpu")
    expected = entry.costs(case, "eager")
    assert sum(p.numel() for p in module.parameters()) == expected.params
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == expected.trainable
    kept: list[torch.Tensor] = []
    assert count_flops(lambda: kept.append(total(module(*given.args())))).flops == expected.flops
    backward = count_flops(kept[0].backward).flops
    held = kept_bytes(module, given)
    if entry.name.startswith(LEARNED_QUERIES) and case.adapt != "full":
        assert backward <= expected.backward_flops
        assert held <= expected.activation_bytes(4)
    else:
        assert backward == expected.backward_flops
        assert held == expected.activation_bytes(4)


def test_every_strategy_with_linear_layers_can_be_frozen_and_adapted() -> None:
    frozen = {entry.name for entry, _ in adaptable("lora:3")}
    assert {"concat_attention", "cross_attention", "co_attention", "late", "mid", "hierarchical"} <= frozen
    reasons = {"early": "needs inputs with a gradient", "concat": "has none", "attention_core": "has none"}
    for name, words in reasons.items():
        assert name not in frozen
        case = msgspec.structs.replace(EARLY if name == "early" else SAME, adapt="lora:3")
        assert words in (get(name).refusal(case) or "")


def test_an_adapter_is_a_low_rank_product_beside_the_frozen_weights() -> None:
    torch.manual_seed(0)
    lora, x = LoraLinear(nn.Linear(6, 4), 2), torch.randn(3, 6)
    merged = lora.layer.weight + lora.up.weight @ lora.down.weight
    torch.testing.assert_close(lora(x), nn.functional.linear(x, merged, lora.layer.bias))


def test_adapters_add_their_flops_and_train_a_fraction_of_the_parameters() -> None:
    entry = get("concat_attention")
    full, lora = (entry.costs(msgspec.structs.replace(TRAINING, adapt=a), "sdpa") for a in ("full", "lora:1"))
    assert lora.flops > full.flops
    assert lora.trainable * 3 < full.trainable == full.params
    assert lora.activation_bytes(4) >= full.activation_bytes(4)


@pytest.mark.parametrize("adapt", ["full", "lora:2"])
def test_a_training_step_updates_what_is_trained_and_leaves_the_weights_what_they_were(adapt: str) -> None:
    case = msgspec.structs.replace(TRAINING, mode="step", adapt=adapt)
    job = Job(strategy="cross_attention", backend="sdpa", case=case)
    subject = build(job, "sdpa", backends.get("sdpa"), 0)
    before = [p.detach().clone() for p in subject.module.parameters()]
    gradients = subject.call()
    assert subject.optimizer is not None
    states = [s for state in subject.optimizer.state.values() for n, s in state.items() if n != "step"]
    costs = closed_form(job, "sdpa", None)
    assert sum(s.numel() * s.element_size() for s in states) == costs.optimizer_bytes
    assert costs.trainable_params == sum(p.numel() for p in subject.module.parameters() if p.requires_grad)
    assert all(torch.equal(a, b) for a, b in zip(before, subject.module.parameters(), strict=True))
    truth = twin(job, 0, torch.float64, subject.inputs)
    expected = truth.gradients(truth.outputs(), [c.double() for c in subject.cotangents])
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_steps_and_frozen_passes_that_make_no_sense_are_refused() -> None:
    step = msgspec.structs.replace(TRAINING, mode="step")
    assert get("cross_attention").refusal(msgspec.structs.replace(step, adapt="frozen")) is not None
    assert "may change" in (get("concat").refusal(msgspec.structs.replace(SAME, mode="step")) or "")
    forward = msgspec.structs.replace(TRAINING, mode="fwd", adapt="frozen")
    assert "backward" in (get("cross_attention").refusal(forward) or "")
    lora = msgspec.structs.replace(TRAINING, adapt="lora:2", mode="fwd")
    int8 = msgspec.structs.replace(lora, dtype="int8")
    assert "adapters" in (backends.refusal(get("cross_attention"), backends.get("int8"), int8) or "")
    assert backends.refusal(get("cross_attention"), backends.get("sdpa"), lora) is None


def test_two_of_every_four_inputs_stay_the_two_largest() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0]])
    assert prune.two_of_four(weight).int().tolist() == [
        [0, 1, 1, 0, *prune.two_of_four(weight)[0, 4:8].int().tolist(), 1, 1]
    ]
    many = prune.two_of_four(torch.randn(8, 64))
    assert (many.view(8, 16, 4).sum(-1) == 2).all()


@pytest.mark.parametrize(("pruned", "share"), [("unstructured:0.9", 0.9), ("2:4", 0.5)])
def test_masked_weights_are_zero_in_every_linear_and_cost_what_they_did(pruned: str, share: float) -> None:
    case = msgspec.structs.replace(SAME, prune=pruned)
    entry = get("cross_attention")
    torch.manual_seed(0)
    module = entry.module(case, "eager")
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            assert (layer.weight == 0).float().mean().item() == pytest.approx(share, abs=0.01)
    assert entry.costs(case, "eager") == entry.costs(SAME, "eager")


def test_structured_pruning_leaves_whole_heads_and_units_out() -> None:
    whole = get("cross_attention").costs(SAME, "sdpa")
    half = get("cross_attention").costs(msgspec.structs.replace(SAME, prune="structured:0.5"), "sdpa")
    assert half.flops * 2 == whole.flops
    module = get("cross_attention").module(msgspec.structs.replace(SAME, prune="structured:0.5"), "eager")
    assert sum(p.numel() for p in module.parameters()) == half.params
    assert module.layer.attention.attention.heads == 2


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (msgspec.structs.replace(TRAINING, prune="structured:0.5"), "narrows attention alone"),
        (msgspec.structs.replace(SAME, prune="structured:0.3"), "cannot take 30% of 4 heads (4 of keys)"),
        (msgspec.structs.replace(SAME, prune="structured:0.5", design=Design(kv_heads=1)), "cannot take 50% of 4 heads (1 of keys)"),
        (msgspec.structs.replace(SAME, prune="structured:0.75"), "feed-forward layer of 2 x width"),
    ],
)  # fmt: skip
def test_pruning_that_leaves_no_whole_parts_is_refused(case: Case, words: str) -> None:
    reason = get("cross_attention").refusal(case)
    assert reason is not None
    assert words in reason


def test_sparse_kernels_are_for_weights_that_were_pruned_for_them() -> None:
    entry, sparse = get("cross_attention"), backends.get("sparse")
    forward = msgspec.structs.replace(SAME, mode="fwd")
    assert "use prune '2:4'" in (backends.refusal(entry, sparse, forward) or "")
    two = msgspec.structs.replace(forward, prune="2:4")
    assert "NVIDIA" in (backends.refusal(entry, sparse, two) or "")
    assert backends.refusal(entry, sparse, msgspec.structs.replace(two, device="cuda", dtype="bf16")) is None


def test_a_treatment_is_a_candidate_of_the_same_question() -> None:
    lora = msgspec.structs.replace(SAME, adapt="lora:8", prune="2:4")
    assert lora.key == SAME.key
    assert Job(strategy="late", backend="sdpa", case=lora).key == f"late/sdpa/lora:8+2:4/{SAME.key}"
