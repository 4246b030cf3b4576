"""The agent's tools: full-text search, a file reader, an HTTP call."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
from langchain_core.tools import BaseTool, StructuredTool

DOCUMENTS = Path(__file__).with_name("documents")


def build_index(database: Path) -> int:
    """Index every paragraph of the documents; return how many there are."""
    rows = [
        (path.name, " ".join(paragraph.split()))
        for path in sorted(DOCUMENTS.glob("*.md"))
        for paragraph in path.read_text(encoding="utf-8").split("\n\n")
        if not paragraph.startswith("#")
    ]
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "CREATE VIRTUAL TABLE passages USING fts5(document, text, tokenize=porter)"
        )
        connection.executemany("INSERT INTO passages VALUES (?, ?)", rows)
    return len(rows)


def build_tools(database: Path) -> list[BaseTool]:
    """Return the tools, each usable from sync and from async graphs."""

    def search_documents(query: str) -> str:
        """Return the passage that matches best, after the name of its document."""
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        # A connection per call: tools run side by side, in different threads.
        with closing(sqlite3.connect(database)) as connection:
            found = connection.execute(
                "SELECT document, text FROM passages WHERE passages MATCH ? "
                "ORDER BY rank LIMIT 1",
                [words],
            ).fetchone()
        return f"{found[0]}: {found[1]}" if found else "nothing found"

    def read_document(name: str) -> str:
        """Return the whole text of one of the documents."""
        known = {path.name: path for path in DOCUMENTS.glob("*.md")}
        if name not in known:  # also keeps paths out that lead elsewhere
            return f"there is no {name!r}; there are: {', '.join(sorted(known))}"
        return known[name].read_text(encoding="utf-8")

    def fetch_url(url: str) -> str:
        """Return what an HTTP service answers."""
        return httpx.get(url, timeout=None).raise_for_status().text

    async def afetch_url(url: str) -> str:
        async with httpx.AsyncClient(timeout=None) as client:
            return (await client.get(url)).raise_for_status().text

    return [
        StructuredTool.from_function(search_documents),
        StructuredTool.from_function(read_document),
        # It sets no limit of its own: the run's deadline is the only one.
        StructuredTool.from_function(fetch_url, afetch_url),
    ]
