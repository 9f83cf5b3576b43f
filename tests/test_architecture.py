"""The rules that keep the rooms apart, read from the source. Each rule has a small tree that breaks it.

One file because a rule, its exceptions and what breaks it are read together.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import pytest

import sparsify
from sparsify.methods import METHODS, WRAPPERS, base

ROOT = Path(__file__).parents[1]
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "files", "untrusted", "version"}),
    frozenset({"arguments", "figures", "pages", "reading", "registry", "runtime", "user_code"}),
    frozenset({"timing"}),
    frozenset({"parts"}),
    frozenset({"deployment", "tasks"}),
    frozenset({"heads"}),
    frozenset({"ir"}),
    frozenset({"passes"}),
    frozenset({"methods"}),
    frozenset({"loading", "training", "calibration", "evaluation", "exporters", "reports"}),
    frozenset({"contracts", "runs"}),
    frozenset({"terminal"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
OUTPUT = {"runs", "dist", "build", "site"}
"""Folders that commands write, at the root."""
EDITORS = {
    "sparsify/ir/surgery.py": "the room's right",
    "sparsify/ir/program.py": "copies whole graphs",
    "sparsify/ir/flattening.py": "builds graphs from those of torch.export",
    "sparsify/exporters/graphs.py": "edits graphs of onnx_ir",
    "sparsify/ir/phase.py": "makes the copy of a graph that is compiled",
    "sparsify/ir/tracing.py": "gives traced graphs their outputs",
    "sparsify/ir/serialization.py": "builds graphs from a file",
}
EDITS = {
    "create_node", "call_function", "call_module", "call_method", "placeholder", "erase_node", "node_copy", "graph_copy",
    "inserting_before", "inserting_after", "replace_all_uses_with", "replace_input_with", "eliminate_dead_code",
    "insert_arg", "update_arg", "update_kwarg", "add_submodule", "delete_all_unused_submodules",
}  # fmt: skip
NODE_FIELDS = {"args", "kwargs", "target", "op"}
POSITIONAL = {
    "sparsify/ir/traits.py": "gives arguments by name",
    "sparsify/ir/surgery.py": "writes them",
    "sparsify/passes/base.py": "those of an exception",
}
"""Files that may read arguments by their place."""
TRUSTED = {"sparsify/loading/weights.py": "loads pickled weights where the user says --trust-pickle"}
SPANNING = {"tests/passes/test_masks.py": "masks, lowering, taps and folding agree with each other"}
ACROSS = {"fuzz", "contracts", "properties", "end_to_end", "golden", "docs"}
COMMAND = ("sparsify/cli.py", "sparsify/terminal/")
"""Files that may print."""
PUBLIC = {"__version__", 
    "Method", "PerStep", "Pipeline", "Preprocessing", "Program", "SparseTrainer", "attach", "export", "methods", "trace",
}  # fmt: skip
TORCHLESS = ("figures", "pages", "reading", "runtime", "evaluation")
"""Rooms that run where torch is not installed."""
NEEDS_TORCH = {"torch", "onnxscript", "onnx_ir", "safetensors", "transformers"}
"""Packages that such rooms do not have: torch, and what is installed for its sake."""
LONGEST = 400
LONGEST_METHOD = 150
NO_METHODS = {"__init__", "base", "durations", "registry", "own"}
"""Files of `sparsify/methods` that implement none."""
ALSO_WORDS = {"dense", "set", "static", "averaged", "label_smoothing", "label-smoothing"}
"""Names of methods that are words of training as well."""

Rule = Callable[[Path], Iterator[str]]


def python_files(root: Path, folder: str) -> list[str]:
    """The path below the root of every Python file of a folder."""
    return [path.relative_to(root).as_posix() for path in sorted((root / folder).rglob("*.py"))]


def sources(root: Path, folder: str = "sparsify") -> Iterator[tuple[str, ast.Module]]:
    """(path below the root, syntax tree) of every Python file of a folder."""
    for path in python_files(root, folder):
        yield path, parsed((root / path).read_text())


@functools.cache
def parsed(text: str) -> ast.Module:
    """The syntax tree of a source; rules share it, and only read it."""
    return ast.parse(text)


def walk(tree: ast.AST) -> Sequence[ast.AST]:
    """All nodes of a tree, each before its children's children as in `ast.walk`; those of a whole file are listed once."""
    return listed(tree) if isinstance(tree, ast.Module) else list(ast.walk(tree))


@functools.cache
def listed(tree: ast.Module) -> Sequence[ast.AST]:
    return list(ast.walk(tree))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything imported, inside functions too; a name imported from a module counts as a part of it."""
    for node in walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def dotted(node: ast.AST) -> str:
    """``torch.manual_seed`` of an attribute chain, or the empty text."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name of the callee, call)."""
    for node in walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def import_order(root: Path) -> Iterator[str]:
    """A room imports from rooms before it; rooms of one rank do not import each other."""
    for path, tree in sources(root):
        room = path.split("/")[1].removesuffix(".py")
        if room == "__init__":
            continue
        if room not in RANK:
            yield f"{path}: {room!r} is no room of the table in docs/architecture.md"
            continue
        for name, line in imported(tree):
            if name.startswith("."):
                yield f"{path}:{line}: relative import"
            if not name.startswith("sparsify.") or name == "sparsify.__version__":
                if name == "sparsify":
                    yield f"{path}:{line}: imports the whole package"
                continue
            other = name.split(".")[1]
            if other != room and RANK.get(other, len(LAYERS)) >= RANK[room]:
                yield f"{path}:{line}: {room} imports {other}"


def no_circles(root: Path) -> Iterator[str]:
    """No file imports another that imports it back, on whatever way, inside functions too; what only types need is not counted."""
    trees = {module_name(path): tree for path, tree in sources(root)}
    graph = {name: {found for found in read_at_run_time(tree, trees) if found != name} for name, tree in trees.items()}
    read = {name for needed in graph.values() for name in needed}
    while ends := [name for name, needed in graph.items() if name not in read or not needed & graph.keys()]:
        graph = {name: needed for name, needed in graph.items() if name not in ends}
        read = {name for needed in graph.values() for name in needed}
    yield from (
        f"{name}: is in a circle with {', '.join(sorted(graph[name] & graph.keys()))}" for name in sorted(graph)
    )


def module_name(path: str) -> str:
    """``sparsify.ir.nodes`` of ``sparsify/ir/nodes.py``; a package is called after its folder."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def read_at_run_time(tree: ast.Module, known: Container[str]) -> Iterator[str]:
    """The modules that are imported outside ``if TYPE_CHECKING``."""
    typed = {
        id(inner)
        for node in walk(tree)
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
        for inner in walk(node)
    }
    for node in walk(tree):
        if id(node) in typed or not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        for name, _ in imported(ast.Module([node], [])):
            owner = name.rpartition(".")[0]
            yield from (found for found in [name if name in known else owner] if found in known)


def runs_without_torch(root: Path) -> Iterator[str]:
    """The rooms of `TORCHLESS` import no torch, on whatever way: `sparsify evaluate` runs where torch is not installed."""
    trees = {module_name(path): (path, tree) for path, tree in sources(root)}
    for start, (path, _) in trees.items():
        if start.split(".")[1:2] not in [[room] for room in TORCHLESS]:
            continue
        seen, waiting = {start}, [(start, path)]
        while waiting:
            name, way = waiting.pop()
            for found, line in imported(trees[name][1]):
                if found.split(".")[0] in NEEDS_TORCH:
                    yield f"{path}: imports {found}, by {way}:{line}"
            for found in read_at_run_time(trees[name][1], trees):
                packages = [found.rpartition(".")[0]] if found.count(".") > 1 else []
                for needed in (found, *(package for package in packages if package in trees)):
                    if needed not in seen:
                        seen.add(needed)
                        waiting.append((needed, trees[needed][0]))


def parts_are_pure(root: Path) -> Iterator[str]:
    """Parts touch no modules, graphs, optimizers, files, or global random state."""
    modules = {"torch.nn", "torch.fx", "torch.optim", "torch.onnx", "torch.export", "os", "io", "pathlib", "shutil",
               "tempfile", "random", "secrets", "numpy.random"}  # fmt: skip
    global_rng = {"torch.manual_seed", "torch.seed", "torch.random.set_rng_state", "torch.random.fork_rng"}
    drawn = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal"}
    for path, tree in sources(root):
        if not path.startswith("sparsify/parts/"):
            continue
        for name, line in imported(tree):
            if _within(name, modules):
                yield f"{path}:{line}: imports {name}"
        for name, call in calls(tree):
            where = f"{path}:{call.lineno}"
            if name == "open" or name.startswith(("torch.save", "torch.load", "np.load", "np.save", "np.random")):
                yield f"{where}: touches a file or global random state: {name}"
            if name in global_rng:
                yield f"{where}: changes the global random state: {name}"
            given = {keyword.arg for keyword in call.keywords}
            if name.startswith("torch.") and name.removeprefix("torch.") in drawn and "generator" not in given:
                yield f"{where}: {name} without a generator"
        for node in walk(tree):
            if isinstance(node, ast.Attribute) and dotted(node).count(".") >= 2 and _within(dotted(node), modules):
                yield f"{path}:{node.lineno}: reads {dotted(node)}"


def _within(name: str, modules: set[str]) -> bool:
    """Whether a dotted name lies in one of the modules; ``torch.nn.functional`` is pure and may be used."""
    pure = name == "torch.nn.functional" or name.startswith("torch.nn.functional.")
    return not pure and any(name == module or name.startswith(f"{module}.") for module in modules)


def file_length(root: Path) -> Iterator[str]:
    """A longer file says on top why it is one: its docstring holds the words "One file because"."""
    for folder in ("sparsify", "tests", "benchmarks", "examples"):
        for path in python_files(root, folder):
            text = (root / path).read_text()
            lines = len(text.splitlines())
            if lines > LONGEST and "One file because" not in (ast.get_docstring(parsed(text)) or ""):
                yield f"{path}: {lines} lines and no reason in its docstring"


def graph_surgery(root: Path) -> Iterator[str]:
    """Graphs are edited in `ir/surgery.py`, and built in the few files of `EDITORS`."""
    for path, tree in sources(root):
        if path in EDITORS:
            continue
        for node in walk(tree):
            callee = node.func if isinstance(node, ast.Call) else None
            if isinstance(callee, ast.Attribute) and callee.attr in EDITS and dotted(callee.value) != "surgery":
                yield f"{path}:{callee.lineno}: calls .{callee.attr}()"
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr in NODE_FIELDS:
                    yield f"{path}:{target.lineno}: assigns .{target.attr}"


def arguments_by_name(root: Path) -> Iterator[str]:
    """Arguments of nodes are read by name (`sparsify.ir.traits.argument`): one may be given by name, or left out for its default."""
    for path, tree in sources(root):
        if path in POSITIONAL:
            continue
        for node in walk(tree):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "args":
                yield f"{path}:{node.lineno}: reads {dotted(node.value)}[{ast.unparse(node.slice)}]; use argument(node, name)"


def printing(root: Path) -> Iterator[str]:
    """Only the command prints: `sparsify/cli.py` and what it shows."""
    for path, tree in sources(root):
        for name, call in calls(tree):
            if name in ("print", "sys.stdout.write", "sys.stderr.write") and not path.startswith(COMMAND):
                yield f"{path}:{call.lineno}: calls {name}"


def unpickling(root: Path) -> Iterator[str]:
    """Nothing unpickles: ``torch.load`` says ``weights_only=True``, ``numpy.load`` says ``allow_pickle=False``."""
    needed = {
        "torch.load": ("weights_only", True),
        "np.load": ("allow_pickle", False),
        "numpy.load": ("allow_pickle", False),
    }
    for path, tree in sources(root):
        if path in TRUSTED:
            continue
        for name, line in imported(tree):
            if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"):
                yield f"{path}:{line}: imports {name}"
        for name, call in calls(tree):
            if name in needed:
                keyword, value = needed[name]
                given = {k.arg: k.value for k in call.keywords}.get(keyword)
                if not (isinstance(given, ast.Constant) and given.value is value):
                    yield f"{path}:{call.lineno}: {name} without {keyword}={value}"


def mirrored_tests(root: Path) -> Iterator[str]:
    """``tests/room/test_file.py`` tests ``sparsify/room/file.py``; ``test_file_more.py`` does too."""
    for path in python_files(root, "tests"):
        *folders, file = path.split("/")[1:]
        if not file.startswith("test_") or path in SPANNING or path == "tests/test_architecture.py":
            continue
        if folders and folders[0] in ACROSS:
            continue
        package, stem = root.joinpath("sparsify", *folders), file.removeprefix("test_").removesuffix(".py")
        names = {p.stem for p in package.glob("*.py")} if package.is_dir() else set()
        if not any(stem == name or stem.startswith(f"{name}_") for name in names):
            yield f"{path}: no file {package.relative_to(root).as_posix()}/{stem}.py"


def machine_paths(root: Path) -> Iterator[str]:
    """No path of somebody's machine and no package-registry host in a file that is kept."""
    folders = r"(?<![\w./}])/(?:work|tmp|root|home|mnt|Users)/"
    words = re.compile(folders + r"|\bpypi\.org|pythonhosted\.org|conda\.anaconda\.org")
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if any(part.startswith(".") or part == "__pycache__" for part in relative.parts) or relative.parts[0] in OUTPUT:
            continue
        if path.suffix not in (".py", ".md", ".toml", ".txt", ".yml", ".yaml", "") or not path.is_file():
            continue
        if relative.as_posix() == "tests/test_architecture.py" or ".egg-info" in str(relative):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := words.search(line):
                yield f"{relative.as_posix()}:{number}: {match[0]}"


def public_names(root: Path) -> Iterator[str]:
    """``sparsify/__init__.py`` exports what `PUBLIC` lists, each in the spelling that marks a re-export."""
    found: set[str] = set()
    for node in walk(ast.parse((root / "sparsify/__init__.py").read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("sparsify"):
                continue
            for alias in node.names:
                found.add(alias.asname or alias.name)
                if alias.asname != alias.name:
                    yield f"sparsify/__init__.py:{node.lineno}: write 'import {alias.name} as {alias.name}'"
    yield from (f"sparsify/__init__.py: {name!r} is not listed in the test" for name in sorted(found - PUBLIC))
    yield from (f"sparsify/__init__.py: {name!r} is missing" for name in sorted(PUBLIC - found))


def errors_speak(root: Path) -> Iterator[str]:
    """No bare ``except``, no broad one that only passes, and no ``raise Exception``."""
    for path, tree in sources(root):
        for node in walk(tree):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or dotted(node.type) in ("Exception", "BaseException")
                if node.type is None or (broad and all(isinstance(statement, ast.Pass) for statement in node.body)):
                    yield f"{path}:{node.lineno}: swallows every error"
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and dotted(node.exc.func) == "Exception":
                yield f"{path}:{node.lineno}: raises Exception; raise one of sparsify.errors"


def files_say_what_they_are(root: Path) -> Iterator[str]:
    """Every file of the package begins with a docstring and is called after what it defines."""
    empty = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers", "handler", "handlers"}
    for path, tree in sources(root):
        if ast.get_docstring(tree) is None:
            yield f"{path}: begins without a docstring"
        if empty & set(path.removesuffix(".py").split("/")):
            yield f"{path}: a name that says nothing"


def folders_of_tests(root: Path) -> Iterator[str]:
    """Every folder with tests is a package, so that two files of one name do not collide."""
    for folder in sorted({path.parent for path in (root / "tests").rglob("test_*.py")}):
        if not (folder / "__init__.py").is_file():
            yield f"{folder.relative_to(root).as_posix()}: has no __init__.py"


def methods_are_short(root: Path) -> Iterator[str]:
    """A method is a composition in one file; what makes it longer is a part."""
    for path in python_files(root, "sparsify/methods"):
        lines = len((root / path).read_text().splitlines())
        if Path(path).stem not in NO_METHODS and lines > LONGEST_METHOD:
            yield f"{path}: {lines} lines; move a part of it to sparsify/parts"


def methods_are_values(root: Path) -> Iterator[str]:
    """No method subclasses another: nothing derives from `Method`, or from a class of a method's file."""
    trees = list(sources(root, "sparsify/methods"))
    classes = {"Method", *(n.name for _, tree in trees for n in walk(tree) if isinstance(n, ast.ClassDef))}
    for path, tree in sources(root):
        for node in walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            for name in map(dotted, node.bases):
                if name.split(".")[-1] in classes and (path.startswith("sparsify/methods/") or name.endswith("Method")):
                    yield f"{path}:{node.lineno}: subclasses {name}"


def training_knows_no_method(root: Path) -> Iterator[str]:
    """Training reads the slots of a `Method`: it imports no method, names none outside examples, and does not ask for a name."""
    stems = {path.stem for path in (root / "sparsify/methods").glob("*.py")} - NO_METHODS
    names = {name for stem in stems for name in (stem, stem.replace("_", "-"))} | {*METHODS, *WRAPPERS}
    words = re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(map(re.escape, names - ALSO_WORDS)))})(?![\w-])", re.IGNORECASE)
    for path, tree in sources(root, "sparsify/training"):
        for name, line in imported(tree):
            room = name.removeprefix("sparsify.methods.").split(".")[0]
            if name.startswith("sparsify.methods.") and room != "base" and not hasattr(base, room):
                yield f"{path}:{line}: imports {name}"
        for number, line in enumerate((root / path).read_text().splitlines(), 1):
            example = line.lstrip().startswith(">>> ")
            if not example and (match := words.search(line)):
                yield f"{path}:{number}: names {match[0]!r}"
        for node in walk(tree):
            asked = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            asked += [node.func.value] if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else []
            if any(re.search(r"(?:^|[._])method\.name$", dotted(part)) for part in asked):
                yield f"{path}:{getattr(node, 'lineno', 0)}: asks for a method's name"


RULES: tuple[Rule, ...] = (
    import_order,
    no_circles,
    runs_without_torch,
    parts_are_pure,
    file_length,
    graph_surgery,
    arguments_by_name,
    printing,
    unpickling,
    mirrored_tests,
    machine_paths,
    public_names,
    errors_speak,
    files_say_what_they_are,
    folders_of_tests,
    methods_are_short,
    methods_are_values,
    training_knows_no_method,
)

BREAKERS: dict[str, list[tuple[str, str]]] = {
    "import_order": [
        ("sparsify/parts/a.py", "from sparsify.ir import trace"),
        ("sparsify/training/a.py", "def f():\n    import sparsify.loading.data"),
        ("sparsify/ir/a.py", "from sparsify import methods"),
        ("sparsify/ir/a.py", "from . import nodes"),
        ("sparsify/utils.py", ""),
    ],
    "no_circles": [
        ("sparsify/parts/b.py", "def f():\n    from sparsify.ir.b import f"),
        ("sparsify/parts/b.py", "import sparsify.ir.b"),
    ],
    "runs_without_torch": [
        ("sparsify/figures/a.py", "import torch"),
        ("sparsify/figures/a.py", "def f():\n    from torch import nn"),
        ("sparsify/figures/a.py", "from sparsify.parts.b import f"),
        ("sparsify/figures/a.py", "from sparsify.ir.b import f"),
        ("sparsify/figures/a.py", "import onnx_ir as ir"),
    ],
    "parts_are_pure": [
        ("sparsify/parts/a.py", "from torch import nn"),
        ("sparsify/parts/a.py", "import torch\ndef f(x): return torch.nn.Linear(2, 2)(x)"),
        ("sparsify/parts/a.py", "from pathlib import Path"),
        ("sparsify/parts/a.py", "def f(): return open('x')"),
        ("sparsify/parts/a.py", "import torch\ndef f(): return torch.rand(3)"),
        ("sparsify/parts/a.py", "import torch\ntorch.manual_seed(0)"),
    ],
    "file_length": [("sparsify/ir/a.py", "x = 1\n" * (LONGEST + 1)), ("tests/ir/test_a.py", "x = 1\n" * (LONGEST + 1))],
    "graph_surgery": [
        ("sparsify/passes/a.py", "def f(graph, node): graph.erase_node(node)"),
        ("sparsify/passes/a.py", "def f(node): node.args = ()"),
        ("sparsify/ir/a.py", "def f(node, other): node.replace_all_uses_with(other)"),
    ],
    "arguments_by_name": [
        ("sparsify/passes/a.py", "def f(node): return node.args[1]"),
        ("sparsify/passes/a.py", "def f(node): return node.args[2:4]"),
        ("sparsify/exporters/a.py", "def f(node, i): return node.args[i] if len(node.args) > i else None"),
    ],
    "printing": [("sparsify/ir/a.py", "print('x')"), ("sparsify/training/a.py", "import sys\nsys.stderr.write('x')")],
    "unpickling": [
        ("sparsify/training/a.py", "import torch\ntorch.load('x')"),
        ("sparsify/training/a.py", "import torch\ntorch.load('x', weights_only=False)"),
        ("sparsify/training/a.py", "import torch\ndef f(ok): return torch.load('x', weights_only=ok)"),
        ("sparsify/training/a.py", "import numpy as np\nnp.load('x')"),
        ("sparsify/training/a.py", "from pickle import loads"),
    ],
    "mirrored_tests": [("tests/ir/test_nothing.py", ""), ("tests/nowhere/test_program.py", "")],
    "machine_paths": [("docs/a.md", "see /home/me/file"), ("recipes/a.toml", 'data = "/tmp/x.npz"')],
    "public_names": [
        ("sparsify/__init__.py", "from sparsify.ir import Program as Program"),
        ("sparsify/__init__.py", "from sparsify.ir import trace, hidden as hidden"),
    ],
    "errors_speak": [
        ("sparsify/ir/a.py", "try:\n    f()\nexcept:\n    g()"),
        ("sparsify/ir/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
        ("sparsify/ir/a.py", "raise Exception('no')"),
    ],
    "files_say_what_they_are": [("sparsify/ir/a.py", "x = 1"), ("sparsify/ir/utils.py", '"""Things."""')],
    "folders_of_tests": [("tests/parts/test_a.py", "")],
    "methods_are_short": [("sparsify/methods/a.py", "x = 1\n" * (LONGEST_METHOD + 1))],
    "methods_are_values": [
        ("sparsify/methods/a.py", "from sparsify.methods.base import Method\nclass A(Method): ..."),
        ("sparsify/methods/a.py", "class A: ...\nclass B(A): ..."),
        ("sparsify/training/a.py", "import sparsify.methods.base as base\nclass A(base.Method): ..."),
    ],
    "training_knows_no_method": [
        ("sparsify/training/a.py", "from sparsify.methods.rigl import rigl"),
        ("sparsify/training/a.py", "from sparsify.methods import METHODS"),
        ("sparsify/training/a.py", "def f(kind): return kind == 'dst-ee'"),
        ("sparsify/training/a.py", "# AGENT corrects here"),
        ("sparsify/training/a.py", "def f(self): return self.method.name == x"),
        ("sparsify/training/a.py", "def f(method): return method.name.startswith(x)"),
    ],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule: Rule) -> None:
    assert list(rule(ROOT)) == []


def test_every_rule_has_a_failing_example() -> None:
    assert set(BREAKERS) == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [(name, path, text) for name, examples in BREAKERS.items() for path, text in examples],
    ids=[f"{name}-{i}" for name, examples in BREAKERS.items() for i in range(len(examples))],
)
def test_a_broken_rule_is_found(name: str, path: str, text: str, tmp_path: Path) -> None:
    good = {
        "sparsify/__init__.py": "\n".join(f"from sparsify.ir import {n} as {n}" for n in sorted(PUBLIC)),
        "sparsify/parts/b.py": "import torch\ndef f(g): return torch.rand(3, generator=g)",
        "sparsify/ir/b.py": "from sparsify.parts.b import f",
        "sparsify/training/b.py": "import torch\ndef f(): return torch.load('x', weights_only=True)",
        "tests/ir/__init__.py": "",
        "tests/ir/test_b.py": "",
    }
    rule = next(rule for rule in RULES if rule.__name__ == name)
    for where, content in good.items():
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where).write_text(f'"""Good."""\n{content}')
    assert list(rule(tmp_path)) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    assert list(rule(tmp_path))


@pytest.mark.parametrize(
    "table", [EDITORS, POSITIONAL, TRUSTED, SPANNING], ids=["editors", "positional", "trusted", "spanning"]
)
def test_exceptions_exist(table: dict[str, str]) -> None:
    assert [path for path in table if not (ROOT / path).is_file()] == []


def test_public_names_are_there() -> None:
    assert [name for name in sorted(PUBLIC) if not hasattr(sparsify, name)] == []
