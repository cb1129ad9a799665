"""The block for commands that the tests do not run: it says in the page what they need."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.directives.code import CodeBlock

# What a command may need that a test has not; tests/test_docs_pages.py refuses any other.
NEEDS = {
    "bucket": "With a bucket of yours in an object store",
    "gpu": "On a machine with an NVIDIA GPU",
    "github": "In a repository on GitHub",
    "install": "Installs packages on your machine",
    "long": "Takes hours, or many runs",
    "server": "Runs until you stop it",
    "slurm": "On a cluster with Slurm",
}


class Elsewhere(CodeBlock):
    """A code block under a line that names the need: ``{elsewhere} gpu``, and a language if it is no console."""

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = False

    def run(self) -> list[nodes.Node]:
        need, *language = self.arguments
        if need not in NEEDS:
            raise self.error(f"no need named '{need}' (has: {', '.join(NEEDS)})")
        self.arguments = language or ["console"]
        self.options["caption"] = NEEDS[need]
        return super().run()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("elsewhere", Elsewhere)
    return {"parallel_read_safe": True}
