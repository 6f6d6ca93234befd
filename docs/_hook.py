"""What mkdocs does before it builds: pages made of the code and of the committed results join those written here.

Pages written here say `{{ name }}` where a part of theirs is made: see `_pages.parts`.
"""

from __future__ import annotations

import re

from _pages import methods, parts, results
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

POLICIES, MEASURED = "Policies", "Measurements"  # sections of mkdocs.yml that are filled here


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for section in config.nav:
        if POLICIES in section:
            section[POLICIES] = methods.nav()
        if MEASURED in section:
            section[MEASURED] = results.nav()
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for path, text in {**methods.pages(), **results.pages()}.items():
        files.append(File.generated(config, path, content=text))
    for path, source in results.pictures().items():
        files.append(File.generated(config, path, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    def made(found: re.Match) -> str:
        if found[1] not in parts.PARTS:
            raise PluginError(f"{page.file.src_path}: {found[0]} is none of {', '.join(sorted(parts.PARTS))}.")
        return parts.PARTS[found[1]]()

    return re.sub(r"\{\{ *([\w-]+) *\}\}", made, markdown)
