"""Comparisons and judgements without measuring anything."""

from __future__ import annotations

import itertools
import random
from typing import Any

from fusionbench.delta import Change, Comparison, Delta, Judgement, Ruling, Side
from tests.hostile import TEXTS

CONDITIONS = "b1-i{image}x768-t{text}x768-w512-h8-n1-f4/linear/fp32/cpu/fwd"
LLAMA = (
    "gated_cross_attention/sdpa/llama-3.2-11b-vision/b1-i64x7680-t64x4096-w4096-h32-n1-u14336/norm=rms,activation=swiglu,"
    "kv_heads=8,qk_norm=rms,gated=1,qkv_bias=0,out_bias=0,ffn_bias=0,projects=image/linear/bf16/cuda/fwd"
)
BASE = Side(name="main", machine="epyc-2core", environment="e1", commit="177743f0aa", suite="smoke", jobs=54)
HEAD = Side(name="HEAD", machine="epyc-2core", environment="e1", commit="338854a1bb", suite="smoke", jobs=54)


def key(strategy: str = "cross_attention", backend: str = "sdpa", image: int = 196, text: int = 32) -> str:
    return f"{strategy}/{backend}/{CONDITIONS.format(image=image, text=text)}"


def delta(name: str = "", verdict: str = "same", ratio: float = 1.0, **fields: Any) -> Delta:
    """A timed job; ``ratio`` is what it says."""
    known = {
        "base_ns": 1.234e6,
        "head_ns": 1.234e6 * ratio,
        "ratio": ratio,
        "low": ratio * 0.985,
        "high": ratio * 1.015,
        "detectable": 0.021,
        "rounds": 7,
    }
    return Delta(key=name or key(), verdict=verdict, **(known | fields))  # type: ignore[arg-type]


def untimed(name: str, verdict: str, reason: str = "", **fields: Any) -> Delta:
    return Delta(key=name, verdict=verdict, reason=reason, **fields)  # type: ignore[arg-type]


def change(fact: str = "flops", base: int | str = 1_234_567, head: int | str = 1_300_000, worse: bool = True) -> Change:
    return Change(fact=fact, base=base, head=head, worse=worse)


def comparison(*deltas: Delta, **fields: Any) -> Comparison:
    known: dict[str, Any] = {"method": "paired", "base": BASE, "head": HEAD}
    return Comparison(deltas=deltas, **(known | fields))


def judged(of: Comparison, exit_code: int | None = None, **fields: Any) -> Judgement:
    """As a check of both gates would rule; other rulings by ``rulings``."""
    slow = tuple((d.key, f"slower by {d.ratio:.3f}") for d in of.deltas if d.verdict == "slower")
    worse = tuple((d.key, c.fact) for d in of.deltas for c in d.changes if c.worse)
    jobs = len(of.deltas)
    rulings = tuple(
        Ruling(gate=gate, outcome="failed" if failures else "passed", judged=jobs, failures=failures)  # type: ignore[arg-type]
        for gate, failures in (("deterministic", worse), ("timing", slow))
    )
    code = int(bool(slow or worse)) if exit_code is None else exit_code
    return Judgement(comparison=of, **({"rulings": rulings, "exit_code": code} | fields))


def mixed() -> Comparison:
    """One of everything, on several shapes, and a preset's long key."""
    return comparison(
        delta(key(), "slower", 1.123, stage="confirm", p=0.0004),
        delta(key("co_attention"), "slower", 1.31, changes=(change(), change("peak_bytes", 1_048_576, 2_097_152))),
        delta(key("concat_attention"), "same", changes=(change("kernels", "flash", "math"),)),
        untimed(key("film", "eager"), "broken", "oom in time: CUDA out of memory: tried to allocate 12.00 GiB (GPU 0 has 3.10 GiB free)"),
        delta(key("late"), "faster", 0.81),
        delta(LLAMA, "faster", 0.9, changes=(change("launches", 12, 11, worse=False),)),
        untimed(key("mid"), "fixed", "was wrong", head_ns=3.2e6),
        delta(key("gmu", "eager"), "same", changes=(change("kernels", "a", "b", worse=False),)),
        untimed(key("mmdit"), "new", head_ns=7.5e6),
        untimed(key("vilbert"), "missing", "not in the suite any more", base_ns=7.5e6),
        *(delta(key("early", text=2**n), "same", 1.002) for n in range(12)),
        *(delta(key("early", image=2**n), "unclear", 1.02, reason="the interval holds both 1 and a change that matters") for n in range(5)),
    )  # fmt: skip


def many(jobs: int, seed: int = 0) -> Comparison:
    """``jobs`` jobs with long keys, a fifth of them slower."""
    rng = random.Random(seed)
    verdicts = ("slower", "same", "same", "unclear", "faster")
    deltas = [
        delta(f"{LLAMA}-{number}", verdict, {"slower": 1.2, "faster": 0.8}.get(verdict, 1.0) * rng.uniform(0.99, 1.01))
        for number, verdict in zip(range(jobs), itertools.cycle(verdicts), strict=False)
    ]
    return comparison(*deltas)


MARKDOWN = (
    "a | b",
    "`code` ``more`` ```fence",
    "@everyone cc @torvalds",
    "#123 GH-1 owner/repo#5",
    "[click](javascript:alert(1)) ![x](http://evil.invalid/x.png)",
    "http://evil.invalid www.evil.invalid evil@evil.invalid",
    "&amp; &lt;b&gt; <b>bold</b> <!-- --> </details>",
    "line\nbreak\n\n# heading\n- item",
    "back\\slash\\",
    "*bold* _em_ ~~gone~~ $x$ :tada:",
)
COMMANDS = (
    "::error::owned",
    "x\n::set-output name=a::b",
    "x%0A::error::y",
    "a\r::warning::b",
    "##[error]owned",
    "title,file=x::y",
)
HOSTILE = (*TEXTS, *MARKDOWN, *COMMANDS)


def hostile() -> Judgement:
    """Every text that comes from outside tries to break out of where it is shown."""
    verdicts = itertools.cycle(("slower", "broken", "faster", "fixed", "new", "missing", "unclear", "same"))
    deltas = []
    for number, (text, verdict) in enumerate(itertools.product(HOSTILE, ("slower", "broken"))):
        text = text[:9000]
        facts = (change(text, text, text), change("flops", worse=bool(number % 2)))
        deltas.append(delta(f"{text}{number}", verdict, 1.2, reason=text, changes=facts))
        deltas.append(delta(f"a/{text}{number}/c/d", next(verdicts), 1.2, reason=text))
    texts = tuple(text[:9000] for text in HOSTILE)
    side = Side(
        name=texts[0], machine=texts[1], environment=texts[2], commit=texts[3], suite=texts[4], measured_at=texts[5]
    )
    of = comparison(*deltas, base=side, head=side, differences=texts, notes=texts)
    ruling = Ruling(gate="timing", outcome="not judged", reason=texts[2], failures=tuple((t, t) for t in texts))
    failed = Ruling(
        gate="deterministic", outcome="failed", judged=3, reason=texts[3], failures=tuple((t, t) for t in texts)
    )
    return Judgement(comparison=of, rulings=(failed, ruling), exit_code=1)
