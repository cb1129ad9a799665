"""How `make docs` builds the site: MyST pages, the furo theme, references made of the code and its data."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(Path(__file__).parent)]

import fusionbench  # noqa: E402

project = "fusionbench"
author = "the fusionbench authors"
release = fusionbench.__version__
html_title = f"fusionbench {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "elsewhere", "generated", "offline"]
nitpicky = True
# What signatures name and nothing here documents: other packages' types and names for unions of texts.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|pandas|pathlib|collections|typing|Tensor|Path|nn\.|fusionbench).*|[A-Z]\w+")
]

python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
