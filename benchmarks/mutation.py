"""Mutation testing: of small changes of the code, how many the tests notice.

    pip install mutmut==3.8.1
    python benchmarks/mutation.py cifar_resnet/fields --sample 300 [--seed 0] [--minutes 30]

Draws a random sample of the changes ("mutants") that mutmut makes of the files, and runs for each
the tests that reach the changed statement, the quickest first, until one fails. mutmut's own run
leaves out decorated functions (properties, cached ones) and tables; here they are changed like
anything else. What is left out: annotations, the text of errors, and what mutmut never changes.

Works on a copy of the repository in a temporary folder, in one process at a time: each mutant is a
fork of a process that has PyTorch loaded. Appends a JSON line to benchmarks/results/mutation.jsonl,
with each survivor. A survivor that was read and found to do the same as the original goes into
--equivalent, a file of JSON lines {"mutant": ..., "reason": ...}; it then stays known from the
results. `--survivors` tries those of the last line for the same files and seed again.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before anything starts threads, which no fork would have

from machine import RESULTS, ROOT, append, machine

# Which tests concern a file, by the beginning of its name. The random networks are not among them,
# as they take longer than all others together: --tests tries what survives against them.
TESTS = {
    "cifar_resnet/fields/": (
        "tests/test_receptive_field.py",
        "tests/test_receptive_field_rules.py",
        "tests/test_receptive_field_writing.py",
        "tests/test_effective_field.py",
        "tests/test_arguments.py",
        "cifar_resnet/fields",
    ),
    "cifar_resnet/data/augment.py": ("tests/test_augment.py",),
    "cifar_resnet/data/": (
        "tests/test_sources.py",
        "tests/test_download.py",
        "tests/test_data_faults.py",
    ),
}
MEMORY = 6 * 2**30  # bytes that a mutant may take beyond the process it is forked from
NOT_A_RESULT = 70  # exit code of a mutant that could not be tried


@dataclass(frozen=True)
class Mutant:
    """One change of one node.

    Attributes:
        name: File, function, what was changed into what, and its number among equal ones.
        lines: First and last line of the statement that it is in.
        code: Makes the changed file.
    """

    file: str
    name: str
    lines: tuple[int, int]
    code: Callable[[], str]


@dataclass(frozen=True)
class Baseline:
    """What the unchanged code does.

    Attributes:
        seconds: Of each test.
        reached: For each file and line, the tests that reach it.
        modules: What they load of other packages.
        covered: Lines and branches of the files that they reach, in %.
    """

    seconds: dict[str, float]
    reached: dict[str, dict[int, set[str]]]
    modules: list[str]
    covered: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="files or folders, relative to the repository")
    parser.add_argument("--tests", nargs="+", default=None, help="instead of those in TESTS")
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="no mutant is begun after that")
    parser.add_argument("--equivalent", type=Path, default=None, help="survivors read, as above")
    parser.add_argument("--survivors", action="store_true", help="only those of before")
    parser.add_argument("--results", type=Path, default=RESULTS / "mutation.jsonl")
    args = parser.parse_args()

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repository"
        copied(root)
        files = sorted(
            str(path.relative_to(root))
            for name in args.files
            for path in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))
        )
        tests = args.tests or tests_of(files)
        mutants = [mutant for file in files for mutant in mutants_of(file, root / file)]
        known = {line["mutant"]: line["reason"] for line in equivalents(args)}
        chosen = drawn(mutants, args.seed, args.sample)
        if args.survivors:
            again = survivors_of_before(args.results, args.files, args.seed)
            chosen = [mutant for mutant in mutants if mutant.name in again]
        print(f"{len(chosen)} of {len(mutants)} mutants of {len(files)} files", flush=True)
        base = baseline(root, files, tests)
        print(f"{len(base.seconds)} tests pass; they cover {base.covered:.1f} %", flush=True)
        load(base.modules)
        outcomes: dict[str, str] = {}
        for mutant in chosen:
            if time.monotonic() - begin > args.minutes * 60:
                break
            outcome = known.get(mutant.name) and "equivalent"
            outcomes[mutant.name] = outcome or tried(root, mutant, base)
            print(f"{outcomes[mutant.name]:11} {mutant.name}", flush=True)
    counts = Counter(outcomes.values())
    noticed = counts["killed"] + counts["timed out"]
    score = noticed / max(1, len(outcomes) - counts["equivalent"])
    line = {
        "benchmark": "mutation",
        "files": args.files,
        "tests": tests,
        "seed": args.seed,
        "lines_and_branches_covered": round(base.covered / 100, 4),
        "mutants": len(mutants),
        "sampled": len(chosen),
        "only": "SURVIVORS" if args.survivors else None,
        "tested": len(outcomes),
        "killed": counts["killed"],
        "timed_out": counts["timed out"],
        "survived": counts["survived"],
        "not_reached": counts["not reached"],
        "equivalent": [
            {"mutant": name, "reason": known[name]}
            for name, outcome in outcomes.items()
            if outcome == "equivalent"
        ],
        "score": round(score, 4),
        "survivors": [n for n, outcome in outcomes.items() if outcome in _ALIVE],
        "seconds": round(time.monotonic() - begin),
        "cpu_seconds": round(sum(os.times()[:4])),
    }
    line |= machine(threads=1)
    line["versions"] |= versions_of_tools()
    append(args.results, line)
    print(
        f"{noticed} of {len(outcomes) - counts['equivalent']} noticed ({100 * score:.1f} %), "
        f"{counts['survived']} survived, {counts['not reached']} reached by no test, "
        f"{counts['equivalent']} do the same as the original"
    )


_ALIVE = ("survived", "not reached")


def copied(root: Path) -> None:
    """What the tests need of the repository, without compiled files."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("benchmarks", "cifar_resnet", "examples", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", root)


def tests_of(files: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for file in files:
        prefix = next((prefix for prefix in TESTS if file.startswith(prefix)), None)
        if prefix is None:
            raise SystemExit(f"Which tests concern {file}? Name them with --tests.")
        found |= dict.fromkeys(TESTS[prefix])
    return list(found)


def equivalents(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Those of earlier runs and those given."""
    if args.results.exists():
        for line in args.results.read_text().splitlines():
            yield from json.loads(line)["equivalent"]
    if args.equivalent is not None:
        yield from (json.loads(line) for line in args.equivalent.read_text().splitlines())


def survivors_of_before(results: Path, files: Sequence[str], seed: int) -> set[str]:
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    mine = [line for line in lines if (line["files"], line["seed"]) == (list(files), seed)]
    if not mine:
        raise SystemExit(f"{results} has no line for these files and seed {seed}.")
    return set(mine[-1]["survivors"])


# -- the changes ----------------------------------------------------------------------------------


def mutants_of(file: str, path: Path) -> list[Mutant]:
    cst, metadata = tool("libcst"), tool("libcst.metadata")
    module = cst.parse_module(path.read_text())
    wrapper = metadata.MetadataWrapper(module, unsafe_skip_copy=True)
    positions = wrapper.resolve(metadata.PositionProvider)
    operators = tool("mutmut.mutation.mutators").mutation_operators
    found: list[Mutant] = []
    numbers: Counter[str] = Counter()

    def visit(node: Any, where: str, lines: tuple[int, int], in_raise: bool) -> None:
        if left_out(node):
            return
        if isinstance(node, cst.SimpleStatementLine):
            lines = positions[node].start.line, positions[node].end.line
        elif isinstance(node, cst.BaseCompoundStatement):  # its head alone
            start = positions[node].start.line
            lines = start, max(start, positions[node.body].start.line - 1)
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            where = f"{where}.{node.name.value}" if where else node.name.value
        in_raise = in_raise or isinstance(node, cst.Raise) or is_told(node)
        for kind, operator in operators:
            if not isinstance(node, kind) or (in_raise and isinstance(node, cst.BaseString)):
                continue
            for changed in operator(node):
                if is_strict_zip(node) and not is_strict_zip(changed):
                    continue
                before, after = (" ".join(module.code_for_node(n).split()) for n in (node, changed))
                name = f"{file} {where or 'module'}: {before} -> {after}"
                numbers[name] += 1
                if numbers[name] > 1:
                    name += f" #{numbers[name]}"

                def code(old: Any = node, new: Any = changed) -> str:
                    changed_module: Any = module.deep_replace(old, new)
                    text: str = changed_module.code
                    return text

                found.append(Mutant(file, name, lines, code))
        for child in node.children:
            visit(child, where, lines, in_raise)

    visit(module, "", (1, 1), False)
    return found


def tool(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise SystemExit(f"This needs {name}: pip install mutmut==3.8.1") from None


def left_out(node: Any) -> bool:
    """Nodes that are not changed, nor anything inside."""
    cst = tool("libcst")
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom):
        return True
    if isinstance(node, cst.If):
        return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
    if isinstance(node, cst.Assign):
        target = node.targets[0].target
        return isinstance(target, cst.Name) and target.value == "__all__"
    if isinstance(node, cst.Call):  # as mutmut does: a change there breaks everything
        return isinstance(node.func, cst.Name) and node.func.value in ("isinstance", "len")
    return isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "strict"


def is_told(node: Any) -> bool:
    """Whether it is the text of an error, put together before it is raised."""
    cst = tool("libcst")
    if not isinstance(node, cst.Assign):
        return False
    target = node.targets[0].target
    return isinstance(target, cst.Name) and target.value == "told"


def is_strict_zip(node: Any) -> bool:
    """Whether it is a call of zip with strict=True, which asserts and does nothing else."""
    cst = tool("libcst")
    if not (isinstance(node, cst.Call) and isinstance(node.func, cst.Name)):
        return False
    options = [arg for arg in node.args if arg.keyword is not None]
    return node.func.value == "zip" and any(
        arg.keyword.value == "strict" and isinstance(arg.value, cst.Name)
        and arg.value.value == "True"
        for arg in options
    )  # fmt: skip


def drawn(mutants: Sequence[Mutant], seed: int, number: int) -> list[Mutant]:
    """A random sample by the hash of each name, which changes elsewhere in the code leave alone."""

    def order(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {mutant.name}".encode()).digest()

    chosen: list[Mutant] = []
    for mutant in sorted(mutants, key=order):
        if number and len(chosen) == number:
            break
        try:
            compile(mutant.code(), mutant.file, "exec", dont_inherit=True)
        except SyntaxError:  # no change that anyone could make
            continue
        chosen.append(mutant)
    return chosen


# -- running the tests ----------------------------------------------------------------------------


def forked(run: Callable[[], int], log: Path) -> int:
    """The exit status of a function that runs in a fork, as `os.waitpid` gives it."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = NOT_A_RESULT
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_pytest(root: Path, tests: Collection[str], plugin: Any) -> int:
    import hypothesis
    import pytest

    os.chdir(root)
    sys.path.insert(0, str(root))
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure is not made smaller
    hypothesis.settings.register_profile("mutation", database=None, derandomize=True, phases=phases)
    hypothesis.settings.load_profile("mutation")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins are loaded already
    return int(pytest.main([*options, *sorted(tests)], plugins=[plugin]))


def baseline(root: Path, files: Sequence[str], tests: Sequence[str]) -> Baseline:
    """Run all tests once and note for each line which of them reach it."""
    answer = root / "baseline.json"

    def run() -> int:
        import coverage

        measured = coverage.Coverage(
            data_file=None,
            branch=True,
            include=[str(root / file) for file in files],
            config_file=False,
        )
        recorder = Recorder(measured)
        measured.start()
        code = run_pytest(root, tests, recorder)
        measured.stop()
        data = measured.get_data()
        reached = {file: data.contexts_by_lineno(str(root / file)) for file in files}
        modules = [name for name, module in sys.modules.items() if is_installed(module)]
        measured.exclude("if TYPE_CHECKING:")
        covered = measured.report(file=io.StringIO())
        answer.write_text(json.dumps([recorder.seconds, reached, modules, covered]))
        return code

    log = root / "baseline.log"
    if forked(run, log):
        raise SystemExit(f"The tests fail on the unchanged code:\n{log.read_text()[-3000:]}")
    seconds, reached, modules, covered = json.loads(answer.read_text())
    by_line: dict[str, dict[int, set[str]]] = {}
    for file, contexts in reached.items():
        by_line[file] = {}
        for line, names in contexts.items():
            by_line[file][int(line)] = {test for name in names for test in concerned(name, seconds)}
    return Baseline(seconds, by_line, modules, covered)


class Recorder:
    """Notes in the coverage data which test runs. What a fixture does may serve all tests of its
    file; and what one test leaves in a cache must not hide that others would reach it."""

    def __init__(self, measured: Any) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("cifar_resnet"):
                for value in list(vars(module).values()):
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()
        self.measured.switch_context(f"setup {item.nodeid.partition('::')[0]}")

    def pytest_runtest_call(self, item: Any) -> None:
        self.measured.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.when == "call":
            self.measured.switch_context("after")


def concerned(context: str, tests: Collection[str]) -> list[str]:
    if context.startswith("setup "):
        return [test for test in tests if test.startswith(context.removeprefix("setup ") + "::")]
    return [context] if context in tests else []


def is_installed(module: Any) -> bool:
    return "site-packages" in str(getattr(module, "__file__", ""))


def load(modules: Sequence[str]) -> None:
    """Import here what each fork would import again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            if not name.startswith("cifar_resnet"):
                try:
                    importlib.import_module(name)
                except Exception as error:
                    print(f"not loaded: {name} ({type(error).__name__})", flush=True)
    gc.collect()
    gc.freeze()  # or each fork would look through all of it, and copy the memory on the way


def tried(root: Path, mutant: Mutant, base: Baseline) -> str:
    """What becomes of a mutant."""
    lines = base.reached[mutant.file]
    first, last = mutant.lines
    tests = set().union(*(lines.get(line, set()) for line in range(first, last + 1)))
    if not tests and any(line in lines for line in range(first, last + 1)):
        tests = set().union(*lines.values())  # reached by the import: whoever uses the file
    if not tests:
        return "not reached"
    path = root / mutant.file
    original = path.read_text()
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()

    def run() -> int:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        names = {test.partition("::")[0] for test in tests}
        return run_pytest(root, names, Chosen({test: base.seconds[test] for test in tests}))

    try:
        path.write_text(mutant.code())
        status = forked(run, root / "mutant.log")
    finally:
        path.write_text(original)
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
        return "timed out" if late else "killed"
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "survived"
    if code in (1, 2):  # a test fails, or a file cannot be imported
        return "killed"
    log = (root / "mutant.log").read_text()[-3000:]
    raise SystemExit(f"{mutant.name} could not be tried (exit code {code}):\n{log}")


class Chosen:
    """The tests chosen alone, the quickest first; each ends the process when it takes far longer
    than it did, in processor time, which the load of the machine does not change, or waiting."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        chosen = [item for item in items if item.nodeid in self.seconds]
        items[:] = sorted(chosen, key=lambda item: self.seconds[item.nodeid])

    def pytest_runtest_setup(self, item: Any) -> None:
        seconds = self.seconds[item.nodeid]
        signal.setitimer(signal.ITIMER_PROF, 5 + 5 * seconds)
        signal.setitimer(signal.ITIMER_REAL, 60 + 20 * seconds)


def versions_of_tools() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("mutmut", "pytest", "coverage", "hypothesis")}


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # without what the libraries loaded for the forks have to say at the end
