"""The parts of pages that are made of the code and its data: ``<!-- generated: NAME -->`` becomes such a text."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).parents[1]
NO_LIMIT = "  [1<=x<=2147483647]"
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)

# What a suite's keys mean; a key without a line here fails the build.
AXES = {
    "presets": "Systems whose sizes and layers are taken; what the sweep names itself replaces theirs.",
    "extent": "Of a preset: one fusion `layer`, or the whole `stack`.",
    "scale": "Of a preset: its sizes divided, as `1/8`.",
    "strategies": "How two modalities become one.",
    "backends": "What runs the strategy: an attention, and what is done to the module around it.",
    "batch": "Samples in a call.",
    "image": "Image tokens.",
    "text": "Text tokens.",
    "image_width": "Width of the image's features as they come in.",
    "text_width": "Width of the text's features as they come in.",
    "width": "Inner width of attention: heads × head dim.",
    "heads": "Attention heads.",
    "depth": "Layers, where a strategy stacks them.",
    "ffn": "Feed-forward width as a multiple of the stream's; 0 for the attention alone.",
    "projectors": "What brings the features to the widths that the strategy works in.",
    "type_embedding": "Whether a learned vector tells image tokens from text tokens.",
    "padding": "The largest share of a sample's tokens that is padding; 0 means no mask.",
    "dtypes": "Number formats.",
    "devices": "`cpu`, `cuda` or `cuda:N`.",
    "modes": "Forward, with backward, a training step, or one of three modes of generation.",
    "adapt": "What is trained: all weights, none, or LoRA adapters of a rank, as `lora:8`.",
    "prune": "Which weights are taken away, as `structured:0.5` or `2:4`.",
    "match": "Give every strategy the `params` or `flops` of the sweep's first one.",
    "include": "Tables of axes and values: keep only the cases that match one of them.",
    "exclude": "Tables of axes and values: drop the cases that match one of them.",
}
BUDGET = {
    "measure_s": "Seconds of sampling per job.",
    "warmup_s": "Seconds of untimed calls before.",
    "min_samples": "Samples to take at least.",
    "max_samples": "Samples to take at most.",
    "ci": "Stop when the 95 % interval of the median is this narrow, as a share.",
    "timeout_s": "Seconds after which a job is killed.",
    "threads": "CPU threads of a job.",
    "rounds": "Processes that share the sampling; from 6 on the interval is theirs.",
    "timers": "What times a call on CUDA; the first one is ranked.",
    "energy_s": "Seconds of calls back to back for the energy counter; 0: none.",
    "seed": "Seed of weights and inputs.",
    "int8_rel_l2": "Relative L2 error up to which an int8 result is right.",
    "int8_cosine": "Cosine from which on an int8 result is right.",
}


# --- the command line ------------------------------------------------------------------------------------------------


def verbs() -> str:
    """A section for each verb, from the parser itself."""
    import typer

    from fusionbench.cli import EPILOG, app

    group: Any = typer.main.get_command(app)
    return "\n".join([*_group("fusionbench", group), EPILOG.replace("Exit codes: ", "## Exit codes\n\n", 1)])


def _group(name: str, group: Any) -> Iterator[str]:
    for verb, command in sorted(group.commands.items()):
        whole = f"{name} {verb}"
        if hasattr(command, "commands"):
            yield from _group(whole, command)
        else:
            yield from _verb(whole, command)


def _verb(name: str, command: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    yield f"## {name.removeprefix('fusionbench ')}\n\n{command.help}\n"
    yield f"```text\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```\n"
    rows = [each.get_help_record(context) for each in command.params]
    told = [(code(name.replace(" range>", ">")), text.replace(NO_LIMIT, "")) for name, text in filter(None, rows)]
    yield table(("argument or option", "what it does"), told)


# --- what there is to measure ----------------------------------------------------------------------------------------


def strategies() -> str:
    """The registered strategies; variants follow their strategy."""
    from fusionbench.registry import strategies as registered

    rows = []
    for each in registered().values():
        options = ", ".join(code(f"{key}={value}") for key, value in each.options.items())
        told = each.summary + (f" With {options}." if options else "")
        rows.append((code(each.name), f"{told}<br>Impls: {', '.join(map(code, each.impls))}"))
    return table(("strategy", "what it does"), rows)


def backends() -> str:
    from fusionbench.backends import BACKENDS

    rows = [(code(each.name), each.summary, code(each.impl)) for each in BACKENDS.values()]
    return table(("backend", "what it is", "impl"), rows)


def suites() -> str:
    """A section for each shipped suite, in its own words."""
    from fusionbench.suite import read, shipped

    found = [read(str(path)) for path in shipped().values()]
    return "\n".join(
        f"### {each.name}\n\n{each.question}\n\n{each.analysis.strip()}\n\n{each.count} cases in "
        f"{len(each.sweeps)} sweeps.\n"
        for each in found
    )


def axes() -> str:
    from msgspec.structs import fields

    from fusionbench.suite import DEFAULTS, PRESETS_DEFAULTS, REQUIRED, Sweep

    rows = []
    for field in fields(Sweep):
        usual = DEFAULTS.get(field.name) or PRESETS_DEFAULTS.get(field.name) or field.default
        default = "needed" if field.required or field.name in REQUIRED else _default(usual)
        rows.append((code(field.name), AXES[field.name], default))
    return table(("key", "what it is", "if not named"), rows)


def budget() -> str:
    from fusionbench.spec import Budget

    plain = Budget()
    rows = [(code(name), BUDGET[name], _default(getattr(plain, name))) for name in Budget.__struct_fields__]
    return table(("key", "what it is", "if not named"), rows)


def _default(value: Any) -> str:
    if value in (None, (), ""):
        return "none"
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(code(str(each).lower() if isinstance(each, bool) else str(each)) for each in values)


def presets() -> str:
    """A section for each system: its parts, and where its numbers stand."""
    from fusionbench.presets import parts
    from fusionbench.presets import presets as named

    texts = []
    for name, preset in named().items():
        inner = "\n".join(f"- {code(label)}: {part.summary}" for label, part in parts([name]))
        texts.append(f"### {name}\n\n{preset.title}\n\n{inner}\n\nSource: {preset.source}\n")
    return "\n".join(texts)


def encoders() -> str:
    from fusionbench.presets import encoders as named

    rows = [(code(name), str(each.tokens), str(each.width), each.source) for name, each in named().items()]
    return table(("encoder", "tokens", "width", "where its numbers stand"), rows)


# --- the gallery -----------------------------------------------------------------------------------------------------


def pages() -> str:
    """Links to the reports that the build makes of the committed results."""
    rows = [
        (f'<a href="reports/{_page(path)}">{path.parent.name}: {path.stem}</a>', code(str(path.relative_to(ROOT))))
        for path in _sealed()
    ]
    return table(("page", "made of"), rows)


def pictures() -> str:
    """The committed pictures of reports, under the words that the README has for them."""
    told = {path: words for words, path in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", (ROOT / "README.md").read_text())}
    found = [f"reports/{path.name}" for path in sorted((ROOT / "reports").glob("*.png"))]
    return "\n".join(f"{told.get(path, path)}:\n\n![{told.get(path, path)}](../{path})\n" for path in found)


def _sealed() -> list[Path]:
    return sorted(path for path in (ROOT / "results").glob("*/*.parquet") if path.parent.name != "runs")


def _page(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}.html"


def _write_pages(app: Sphinx, failed: Exception | None) -> None:
    from fusionbench import present

    if failed or app.builder.format != "html":
        return
    for path in _sealed():
        target = Path(app.outdir) / "reports" / _page(path)
        target.parent.mkdir(exist_ok=True)
        present.write_page([present.read(path, path.parent)], target)


# --- the study of scale ----------------------------------------------------------------------------------------------


def scale() -> str:
    """What the simulation of many slots has found, with what it was fed and where that was measured."""
    found = json.loads((ROOT / "results" / "scale" / "epyc-2core.json").read_text())
    head = ("sweep", "how", *(f"at {slots} slots" for slots in ("100", "1,000")), "half is lost at", "mostly to")
    rows = [
        (_sweep(found["sweeps"][name], int(count)), way, *_at(curve), _half(curve["knee"]), curve["knee"]["bottleneck"])
        for name, ways in found["curves"].items()
        for count in next(iter(ways.values()))
        for way, curve in ((way, counts[count]) for way, counts in ways.items())
    ]
    made = (
        f"Simulated with the costs of CPU jobs, not measured on GPUs: {found['machine']}, commit {found['commit']}, "
        f"{found['date']}, under load {found['load']:.1f}, Ray {found['costs']['ray']}, by {code(found['command'])}. "
        "Efficiency is the time spent measuring by the time of all slots; in brackets the least and the most of five "
        "sweeps."
    )
    return f"{table(head, rows)}\n{made}\n"


def _sweep(sweep: dict[str, Any], count: int) -> str:
    hours = sweep["hours_of_1000"] * count / 1000
    return f"{count:,} jobs of {sweep['mean_s']:.1f} s, {hours:,.1f} h on one machine"


def _at(curve: dict[str, Any]) -> list[str]:
    bands = [curve["efficiency"][slots] for slots in ("100", "1000")]
    return [f"{100 * middle:.0f} % [{100 * low:.0f}, {100 * high:.0f}]" for low, middle, high in bands]


def _half(knee: dict[str, Any]) -> str:
    middle = knee["slots"][1]
    return f"{float(f'{middle:.2g}'):,.0f} slots" if middle else "more than 3,000 slots"


# --- Markdown --------------------------------------------------------------------------------------------------------


def code(text: str) -> str:
    return f"`{text}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


_MAKERS = (verbs, strategies, backends, suites, axes, budget, presets, encoders, pages, pictures, scale)
TEXTS: dict[str, Callable[[], str]] = {each.__name__: each for each in _MAKERS}


def filled(text: str) -> str:
    """A page with its markers replaced; raises ExtensionError for one that nothing here makes."""

    def made(found: re.Match[str]) -> str:
        if found[1] not in TEXTS:
            raise ExtensionError(f"nothing generates '{found[1]}' (has: {', '.join(TEXTS)})")
        return TEXTS[found[1]]()

    return MARKER.sub(made, text)


def _fill(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = filled(source[0])


def _plain(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: outside of ``code`` their signs are no markup."""
    lines[:] = ["".join(_escaped(part) for part in re.split(r"(``.*?``)", line)) for line in lines]


def _bare(app: Sphinx, what: str, name: str, item: object, options: object, args: str, returns: str) -> object:
    """A record's fields by name and default: their types are bounds for a reader of files, longer than the names."""
    if not (isinstance(item, type) and issubclass(item, Struct)):
        return None
    signature = inspect.signature(item)
    plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty)), ""


def _escaped(text: str) -> str:
    return text if text.startswith("``") else re.sub(r"([*|]|_(?=\W|$))", r"\\\1", text)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _plain)
    app.connect("autodoc-process-signature", _bare)
    app.connect("build-finished", _write_pages)
    return {"parallel_read_safe": True}
