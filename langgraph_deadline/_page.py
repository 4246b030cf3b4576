"""Pictures in HTML: pages that need nothing else, and fragments for notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Literal

from ._scene import DARK, LIGHT

Theme = Literal["auto", "light", "dark"]
_THEMES: tuple[Theme, ...] = ("auto", "light", "dark")

_NAMED = {colour: f"var(--lgd-{role}, {colour})" for role, colour in LIGHT.items()}
_FONTS = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, 'DejaVu Sans', sans-serif"

_LAYOUT = f"""
.lgd {{ background: var(--lgd-background); color: var(--lgd-ink); margin: 0 0 1em;
  max-width: 60rem; font: 14px/1.45 {_FONTS}; }}
.lgd svg {{ display: block; width: 100%; height: auto; }}
.lgd svg text {{ font-family: {_FONTS} !important; }}
.lgd details {{ padding: 0 16px 8px; }}
.lgd summary {{ cursor: pointer; color: var(--lgd-muted); }}
.lgd pre {{ overflow-x: auto; color: inherit; background: none; font-size: 12px;
  line-height: 1.35; }}
.lgd p {{ margin: 0; padding: 16px; }}
@media print {{ .lgd {{ break-inside: avoid; }} .lgd details {{ display: none; }} }}
"""

# Hosts that say which theme they show are believed before the system's preference:
# JupyterLab and Notebook, VS Code, Colab, and documentation themes.
_HOSTS_LIGHT = (
    'body[data-jp-theme-light="true"]',
    "body.vscode-light",
    "html[theme=light]",
    "html[data-theme=light]",
)
_HOSTS_DARK = (
    'body[data-jp-theme-light="false"]',
    "body.vscode-dark",
    "html[theme=dark]",
    "html[data-theme=dark]",
)


def checked_theme(theme: str) -> Theme:
    """Return `theme`.

    Raises:
        ValueError: If there is no such theme.
    """
    for known in _THEMES:
        if theme == known:
            return known
    msg = f"theme must be one of {', '.join(_THEMES)}, got {theme!r}"
    raise ValueError(msg)


def style(theme: Theme) -> str:
    """Return the style sheet of pictures in `theme`."""
    of = f".lgd-{theme}"
    rules = [_rule((of,), DARK if theme == "dark" else LIGHT)]
    if theme == "auto":
        dark = _rule((of,), DARK)
        rules.append(f"@media screen and (prefers-color-scheme: dark) {{ {dark} }}")
        rules.append(_rule([f"{host} {of}" for host in _HOSTS_LIGHT], LIGHT))
        rules.append(_rule([f"{host} {of}" for host in _HOSTS_DARK], DARK))
    return "<style>" + "\n".join(rules) + _LAYOUT + "</style>"


def _rule(selectors: Iterable[str], colours: Mapping[str, str]) -> str:
    values = " ".join(f"--lgd-{role}: {colour};" for role, colour in colours.items())
    return f"{', '.join(selectors)} {{ {values} }}"


def inline(svg: str, token: str, title: str, text: str) -> str:
    """Return `svg`, drawn in the light palette, as part of a page.

    Args:
        svg: As matplotlib writes it.
        token: What makes its ids unique in whatever it becomes a part of.
        title: Its name, for those who cannot see it.
        text: What it shows, likewise.
    """
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="[^"]*"', body)
    drawn = body[body.index(">") + 1 :]
    drawn = re.sub(r"<metadata>.*?</metadata>\s*", "", drawn, flags=re.DOTALL)
    # Only in tags: names of steps may look like anything.
    drawn = re.sub(r"<[^>]*>", lambda tag: _themed(tag[0], token), drawn)
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view[0] if view else ""} xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-labelledby="{token}-title {token}-text">'
        f'<title id="{token}-title">{escape(title)}</title>'
        f'<desc id="{token}-text">{escape(text)}</desc>'
    )
    return head + drawn


def _themed(tag: str, token: str) -> str:
    """Return a tag of an SVG with ids that are unique, and the theme's colours."""
    tag = re.sub(r'^<g id="[^"]*">', "<g>", tag)  # these ids name nothing
    tag = re.sub(r' id="([^"]*)"', rf' id="{token}-\1"', tag)
    tag = re.sub(r'href="#([^"]*)"', rf'href="#{token}-\1"', tag)
    tag = re.sub(r"url\(#([^)]*)\)", rf"url(#{token}-\1)", tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r'fill="(#\w{6})"', r'style="fill: \1"', tag)
    return re.sub(r"#\w{6}\b", lambda colour: _NAMED.get(colour[0], colour[0]), tag)


def figure(svg: str, text: str, theme: Theme) -> str:
    """Return a drawn picture, and what it shows as text below it."""
    return (
        f'<figure class="lgd lgd-{theme}">{svg}<details><summary>As text</summary>'
        f"<pre>{escape(text)}</pre></details></figure>"
    )


def sentence(text: str, theme: Theme) -> str:
    """Return what stands in the place of an empty picture."""
    return f'<div class="lgd lgd-{theme}" role="note"><p>{escape(text)}</p></div>'


def page(title: str, body: str, theme: Theme) -> str:
    """Return a page that needs nothing beside itself."""
    scheme = "light dark" if theme == "auto" else theme
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="{scheme}">\n'
        f"<title>{escape(title)}</title>\n{style(theme)}\n"
        f"<style>body {{ margin: 0 auto; padding: 1rem; max-width: 60rem; }} "
        f"{_page_colours(theme)}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _page_colours(theme: Theme) -> str:
    colours = DARK if theme == "dark" else LIGHT
    rule = f"body {{ background: {colours['background']}; }}"
    if theme != "auto":
        return rule
    dark = f"body {{ background: {DARK['background']}; }}"
    return f"{rule} @media screen and (prefers-color-scheme: dark) {{ {dark} }}"
