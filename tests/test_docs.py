"""The web site of the documentation builds, asks nothing of the network, and says of the code what is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pneumoscope"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built web site."""
    pytest.importorskip("sphinx", reason='sphinx is not installed: pip install "pneumoscope[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page_and_public_name(site: Path) -> None:
    import pneumoscope

    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {path.relative_to(site) for path in site.rglob("*.html")} >= pages
    reference = (site / "reference.html").read_text(encoding="utf-8")
    missing = [name for name in pneumoscope.__all__ if f'id="pneumoscope.{name}"' not in reference]
    assert missing == ["__version__"]


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=["'](?:https?:)?//[^"']+""")
    for page in site.rglob("*.html"):
        fetched = [tag for tag in loads.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in tag]
        assert not fetched, page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_tree_of_the_architecture_page_matches_the_package() -> None:
    (tree,) = re.findall(
        r"```text\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL
    )
    listed = [line.split(maxsplit=1) for line in tree.splitlines() if line]
    assert all(len(parts) == 2 for parts in listed), "each line has a path and what it is for"
    modules = {path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")}
    packages = {f"{path.parent.as_posix()}/" for path in modules if path.name == "__init__.py" and path.parent.name}
    files = {path.as_posix() for path in modules if path.name != "__init__.py" or not path.parent.name}
    assert sorted(path for path, _ in listed) == sorted(packages | files)


def test_results_stay_readable() -> None:
    assert len((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split()) < 4000


def test_the_citation_names_this_version() -> None:
    import yaml

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
