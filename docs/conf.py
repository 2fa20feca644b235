"""Settings of the site; `docs/requirements.txt` has the command that builds it."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # `experiments` is not installed, and `extension` lies here

import updcomp  # noqa: E402

project = "updcomp"
release = updcomp.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "extension"]
exclude_patterns = ["requirements.txt", "notebooks/*.md", "notebooks/*.py"]  # a notebook's text form is its twin

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# Notebooks run only where that is asked for, as CI does: UPDCOMP_NOTEBOOKS=force.
nb_execution_mode = os.environ.get("UPDCOMP_NOTEBOOKS", "off")
nb_execution_timeout = 300
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
autoclass_content = "both"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
# Types in signatures are linked where the reference has them: those of other packages would need the network, and some
# of this one serve its own modules alone. mypy checks that they are there.
nitpick_ignore_regex = [("py:(class|data|obj)", ".*"), ("py:exc", "(ValueError|TypeError|KeyError|BrokenPipeError)")]

html_theme = "furo"
html_title = "updcomp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
