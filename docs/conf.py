"""The web site of the documentation: `make docs`."""

from __future__ import annotations

import pneumoscope

project = "pneumoscope"
copyright = "2026, the pneumoscope developers"
version = release = pneumoscope.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # the changelog and other included pages begin with a heading of their own

myst_heading_anchors = 3

default_role = "code"  # docstrings write `code` as Markdown does
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"pneumoscope {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"light_css_variables": {"font-stack": "system-ui, sans-serif"}}

linkcheck_timeout = 20
