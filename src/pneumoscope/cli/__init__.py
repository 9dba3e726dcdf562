"""The command line.

Modules with commands do without `from __future__ import annotations`: Typer would evaluate the annotations of every
command from text at each start, even for the help.
"""
