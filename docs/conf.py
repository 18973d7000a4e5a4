"""How the documents become a site: `sphinx-build -W -c docs . build/docs` in the root of the project."""

from __future__ import annotations

import configparser
import posixpath
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
PACKAGE = "twisted_smtpguard"
MAP = "docs/README"
API = "docs/reference/api"

_metadata = configparser.ConfigParser()
_metadata.read(ROOT / "setup.cfg")

project = _metadata["metadata"]["name"]
version = release = _metadata["metadata"]["version"]
copyright = "the authors of twisted_smtpguard"  # noqa: A001 - Sphinx's name

extensions = ["myst_parser", "pydoctor.sphinx_ext.build_apidocs"]

# The root of the project is the source, so that a link from one document to another leads somewhere here as on GitHub.
root_doc = MAP
include_patterns = ["*.md", "docs/**.md", "benchmarks/*.md"]
exclude_patterns = [".*", "build", "dist", "**/*.egg-info", "**/node_modules", "tests", PACKAGE, "Maildir"]

html_theme = "alabaster"
html_theme_options = {"description": _metadata["metadata"]["description"], "fixed_sidebar": True}
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]
html_copy_source = False

# GitHub makes an anchor of each heading, and links lead there.
myst_heading_anchors = 4

# A test of the map of the documents is stricter: the notes beside an example need not be in it.
suppress_warnings = ["toc.not_included"]

pydoctor_args = [
    f"--project-name={project}",
    f"--project-url={posixpath.relpath(MAP, API)}.html",
    f"--project-base-dir={ROOT}",
    "--docformat=plaintext",
    f"--html-output={{outdir}}/{API}",
    str(ROOT / PACKAGE),
]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("doctree-resolved", link_to_api)


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the side bar of the map of the documents: a heading with its links becomes a part of it."""
    if docname != MAP:
        return
    parts = []
    for part in source[0].split("\n## ")[1:]:
        entries = "\n".join(re.findall(r"\]\(([^)#]+)\.md\)", part))
        if entries:
            caption = part.splitlines()[0]
            parts.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n")
    source[0] += "\n" + "\n".join(parts)


def link_to_api(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """A link to a module of the guard leads to its page of the API reference, on GitHub to its source."""
    for link in list(doctree.findall(addnodes.download_reference)):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(docname), link["reftarget"]))
        if path.startswith(f"{PACKAGE}/") and path.endswith(".py"):
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            target = posixpath.relpath(f"{API}/{module}.html", posixpath.dirname(docname))
            link.replace_self(nodes.reference("", "", *link.children, refuri=target, internal=True))
