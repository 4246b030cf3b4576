"""The layout is one-way, and what must stand in one module stands there alone."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import langgraph_deadline

PACKAGE = Path(langgraph_deadline.__file__).parent

# From the top; a module imports only from rows above its own. A module that is missing
# here, or here and no more, is a failure: the table is part of the design.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "_clock",
        "_display",
        "_langchain",
        "_langgraph",
        "_open_calls",
        "_pace",
        "_process_pickle",
        "_stand_ins",
        "_text",
        "errors",
    ),
    (
        "_alarm",
        "_partial",
        "_process_target",
        "_record",
        "_threads",
        "deadline",
        "report",
    ),
    ("_saved", "_scope", "_usage", "events", "limits", "summary"),
    (
        "_backlog",
        "_cut",
        "_event_stream",
        "_handing_up",
        "_ledger",
        "_subagents",
        "policy",
        "runs",
    ),
    ("_fallback", "_measured", "_seen"),
    ("_journal",),
    ("_stragglers",),
    ("_run",),
    ("_channels", "_charges", "_ending", "_guard", "_verdict", "control"),
    ("_admission", "_resume", "callbacks"),
    ("_begin", "_calls", "_sequence", "_tasks", "_views"),
    ("_fence", "_notes", "_streams", "_tool_call"),
    ("_compensation", "_drive", "_process_serve", "_runnables", "nodes"),
    ("_connections", "_process_worker", "_tool_guard"),
    ("_vendors", "process"),
    ("models", "tools"),
    ("_tool_node", "agents"),
    ("_bounded",),
    ("graph",),
    ("__init__",),
    (
        "_cli_load",
        "_gauge",
        "_middleware_retries",
        "_middleware_time",
        "_observing",
        "_rows",
        "_scene",
        "_shares",
        "_sleepers",
    ),
    (
        "_charts",
        "_cli_files",
        "_cli_run",
        "_middleware_run",
        "_page",
        "_signals",
        "_timeline",
        "live",
        "testing",
    ),
    ("_middleware_pace", "_middleware_watch", "_span_attributes", "cli"),
    ("_middleware_models", "_middleware_tools"),
)
# Imported by nothing.
BESIDE = (
    "__main__",
    "aggregate",
    "faults",
    "fixtures",
    "middleware",
    "notebook",
    "otel",
    "prometheus",
)
# An optional dependency has one module that imports it, and its extra bears its name.
OPTIONAL = {
    "aggregate": "ddsketch",
    "cli": "typer",
    "fixtures": "pytest",
    "live": "rich",
    "middleware": "langchain",
    "notebook": "matplotlib",
    "otel": "opentelemetry",
    "prometheus": "prometheus_client",
}

# What finds modules by name: pictures, what crosses to a process, graphs, versions.
LOADING = ("_display", "_process_pickle", "_cli_load", "cli")

LAYER = {name: number for number, row in enumerate(LAYERS) for name in row}
PATHS = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
modules = pytest.mark.parametrize("module", PATHS)


def tree(module: str) -> ast.Module:
    """Return the syntax tree of one of our modules."""
    return ast.parse(PATHS[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Yield what a module imports, wherever it does: a module's full name and a name.

    Our own modules begin with a dot.
    """
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                if base == ".":
                    yield f".{alias.name}", ""
                else:
                    yield base, alias.name


def own(module: str) -> set[str]:
    """Return which of our modules a module imports."""
    found = set()
    for name, _ in imports(module):
        if name.startswith("."):
            found.add(name[1:].split(".")[0])
        elif name.split(".")[0] == "langgraph_deadline":
            found.add([*name.split("."), "__init__"][1])
    return found


# Layers.


def test_every_module_has_a_layer() -> None:
    """And every entry of the table is a module."""
    assert set(PATHS) == set(LAYER) | set(BESIDE)
    assert len(LAYER) == sum(len(row) for row in LAYERS), "a module stands there twice"


@modules
def test_a_module_imports_only_from_layers_above_it(module: str) -> None:
    """Data flows one way; there are no cycles, not even inside functions."""
    mine = LAYER.get(module, len(LAYERS))
    for other in own(module):
        assert other in LAYER, f"{module} imports {other}, which stands beside"
        assert LAYER[other] < mine, f"{module} imports {other}, which is not above it"


def test_the_package_is_flat() -> None:
    """No module hides in a folder."""
    assert [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE] == []


@pytest.mark.parametrize("module", ["testing", "_threads", "_run"])
def test_a_module_can_be_imported_first(module: str) -> None:
    """In a process of its own, whatever the order of imports."""
    code = f"import langgraph_deadline.{module}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# One place for each of these.


def is_private(module: str, name: str) -> bool:
    """Whether LangGraph does not promise to keep what is imported."""
    parts = [part for part in (*module.split("."), name) if part]
    return parts[0] == "langgraph" and any(part.startswith("_") for part in parts)


@modules
def test_only_one_module_touches_langgraphs_private_parts(module: str) -> None:
    """A new release of LangGraph is a matter of `_langgraph` alone."""
    found = [found for found in imports(module) if is_private(*found)]
    if module == "_langgraph":
        assert found
    else:
        assert found == []


@modules
def test_private_parts_are_not_reached_by_name_either(module: str) -> None:
    """No `import_module`, no dotted path through `langgraph.pregel._...`."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.match(r"langgraph\.(_|[a-z.]+\._)", node.value), node.value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "__import__"
    if module not in LOADING:
        assert "importlib" not in {name.split(".")[0] for name, _ in imports(module)}


@modules
def test_only_the_clock_reads_time(module: str) -> None:
    """Neither `time` nor `datetime.now`, nor a loop's own clock."""
    if module == "_clock":
        return
    assert "time" not in {name for name, _ in imports(module)}
    clocks = {"monotonic", "perf_counter", "time_ns", "monotonic_ns", "now", "utcnow"}
    clocks |= {"today", "time"}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = ast.unparse(node.func.value)
            virtual = module == "testing" and of in ("self._virtual", "self.clock")
            allowed = of == "_clock" or virtual
            assert node.func.attr not in clocks or allowed, ast.unparse(node)


@modules
def test_the_clock_is_asked_through_its_module(module: str) -> None:
    """`from ._clock import now` would miss a replaced clock."""
    assert [name for base, name in imports(module) if base == "._clock" and name] == []


@modules
def test_nothing_beside_the_standard_library_and_the_three_is_imported(
    module: str,
) -> None:
    """Optional dependencies come with modules of their own."""
    allowed = {"langgraph", "langchain_core", "pydantic", "__future__"}
    allowed.add(OPTIONAL.get(module, ""))
    if module == "live":
        allowed.add("IPython")  # wherever there is a notebook
    for name, _ in imports(module):
        root = name.split(".")[0]
        assert not root or root in allowed or root in sys.stdlib_module_names, name


def test_an_optional_dependency_has_an_extra_named_like_its_module() -> None:
    path = PACKAGE.parent / "pyproject.toml"
    extras = tomllib.loads(path.read_text())["project"]["optional-dependencies"]
    for module, dependency in OPTIONAL.items():
        requirement, *others = extras[module]
        assert re.match(dependency, requirement, re.IGNORECASE)
        assert all(other.startswith("langgraph-deadline[") for other in others)


# What is public.


def test_all_is_a_short_sorted_tuple_of_what_is_there() -> None:
    """About twenty names, each importable, none of machinery."""
    names = langgraph_deadline.__all__
    assert isinstance(names, tuple)
    assert list(names) == sorted(names)
    assert len(set(names)) == len(names) <= 22
    for name in names:
        assert hasattr(langgraph_deadline, name)
        assert not name.startswith("_")


def test_what_is_imported_into_the_root_is_exported() -> None:
    """And nothing else is."""
    imported = {name for base, name in imports("__init__") if base.startswith(".")}
    assert imported == set(langgraph_deadline.__all__)


PUBLIC = {
    "DeadlineExceeded",
    "DeadlineHandler",
    "DeadlinePolicy",
    "Deadline",
    "RemainingTime",
    "RunControl",
    "RunReport",
    "StateGraph",
    "StepBudget",
    "check",
    "collect_runs",
    "current_deadline",
    "detach",
    "fail_after",
    "move_on_after",
    "remaining",
    "shield",
    "with_deadline",
}


def test_the_promised_names_are_there() -> None:
    """As far as the core goes."""
    assert set(langgraph_deadline.__all__) >= PUBLIC


@pytest.mark.parametrize("name", langgraph_deadline.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    """By a docstring of its own; what is no class or function by the text after it."""
    thing = getattr(langgraph_deadline, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        text = thing.__doc__
    else:
        text = text_after(name)
    assert text, f"{name} has no documentation"
    assert len(text.strip().splitlines()[0]) > 20
    assert text.strip().splitlines()[0].endswith((".", ":"))


def text_after(name: str) -> str | None:
    """Return the string below an assignment, which is how a value is documented."""
    (source,) = [base[1:] for base, what in imports("__init__") if what == name]
    body = tree(source).body
    for statement, following in pairwise(body):
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if [ast.unparse(target) for target in targets] == [name] and isinstance(
            following, ast.Expr
        ):
            value = following.value
            return value.value if isinstance(value, ast.Constant) else None  # type: ignore[return-value]
    return None


@pytest.mark.parametrize("name", langgraph_deadline.__all__)
def test_every_public_method_is_documented(name: str) -> None:
    """Of the classes that are ours."""
    thing = getattr(langgraph_deadline, name)
    if not inspect.isclass(thing):
        return
    for attribute, member in vars(thing).items():
        if attribute.startswith("_") or not (
            inspect.isfunction(member) or isinstance(member, (property, classmethod))
        ):
            continue
        assert inspect.getdoc(getattr(thing, attribute)), f"{name}.{attribute}"


@modules
def test_every_module_says_what_it_is_for(module: str) -> None:
    """In its first line."""
    assert ast.get_docstring(tree(module))


@modules
def test_every_all_is_a_tuple_of_names_that_are_there(module: str) -> None:
    """Where a module has one."""
    name = "langgraph_deadline" + ("" if module == "__init__" else f".{module}")
    loaded = importlib.import_module(name)
    names = getattr(loaded, "__all__", ())
    assert isinstance(names, tuple)
    assert [missing for missing in names if not hasattr(loaded, missing)] == []


def test_the_package_is_typed() -> None:
    """Type checkers look for the marker."""
    assert (PACKAGE / "py.typed").is_file()
