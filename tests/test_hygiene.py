"""What belongs to the project, not the package: releases, workflows, advice to contributors."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import cifar_resnet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TEMPLATES = sorted(set((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))

NEXT = "1.2.3"
CHANGELOG = "# Changelog\n\n## [{version}] - {date}\n\n## [0.0.1] - 2020-01-01\n"


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def check_release(tag: str, root: Path = ROOT) -> list[str]:
    spec = importlib.util.spec_from_file_location("check_release", ROOT / ".ci/check_release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    problems: list[str] = module.problems(tag, root)
    return problems


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The files of a version that may be released."""
    (tmp_path / "cifar_resnet").mkdir()
    (tmp_path / "cifar_resnet/__init__.py").write_text(f'x = 1\n\n__version__ = "{NEXT}"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG.format(version=NEXT, date="2030-01-31"))
    (tmp_path / "CITATION.cff").write_text(
        f"cff-version: 1.2.0\nversion: {NEXT}\ndate-released: 2030-01-31\n"
    )
    (tmp_path / "docs/snippets").mkdir(parents=True)
    for name in ("README.md", "docs/snippets/install.md"):
        (tmp_path / name).write_text("pip install cifar-resnet\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://a.example"\nDocumentation = "https://b.example"\n'
    )
    return tmp_path


# --- versions ------------------------------------------------------------------------------------


def test_version_changelog_and_citation_agree() -> None:
    found = check_release(f"v{cifar_resnet.__version__}")
    # Before a release, the newest entry may be without a date, and installing may need a clone.
    open_until_then = ("has no date", "installs from a clone", "has no address")
    assert [p for p in found if not any(words in p for words in open_until_then)] == []
    if found:
        assert "date-released" not in parsed(ROOT / "CITATION.cff")


def test_the_citation_says_what_the_project_says() -> None:
    citation = parsed(ROOT / "CITATION.cff")
    about = PROJECT["project"]
    assert citation["title"] == about["name"]
    assert citation["license"] == about["license"]
    assert citation["authors"] == about["authors"]
    assert citation["keywords"] == about["keywords"]


def test_a_release_that_agrees_has_no_problem(release: Path) -> None:
    assert check_release(f"v{NEXT}", release) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "cifar_resnet/__init__.py",
            NEXT,
            "1.2.2",
            "__init__.py says 1.2.2, but the tag is v1.2.3",
        ),
        ("CITATION.cff", f": {NEXT}", ": 1.2.4", "CITATION.cff says 1.2.4, but the tag is v1.2.3"),
        ("CHANGELOG.md", f"[{NEXT}]", "[1.2.30]", "CHANGELOG.md says 1.2.30, but the tag is"),
        ("CHANGELOG.md", "2030-01-31", "unreleased", "CHANGELOG.md has no date"),
        ("CHANGELOG.md", "2030-01-31", "31.1.2030", "CHANGELOG.md has no date"),
        (
            "CITATION.cff",
            "2030-01-31",
            "2030-02-01",
            "is 2030-02-01, but CHANGELOG.md says 2030-01",
        ),
        ("CITATION.cff", "date-released: 2030-01-31", "", "date-released in CITATION.cff is None"),
        ("README.md", "install cifar-resnet", "install .", "README.md installs from a clone"),
        ("pyproject.toml", "Repository", "Source", "no address of the repository: add Repository"),
        (
            "docs/snippets/install.md",
            "install cifar-resnet",
            'install ".[app]"',
            "docs/snippets/install.md installs from a clone",
        ),
    ],
)
def test_a_release_that_disagrees_is_named(
    release: Path, file: str, old: str, new: str, message: str
) -> None:
    path = release / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    (problem,) = check_release(f"v{NEXT}", release)
    assert message in problem


def test_a_tag_of_another_form_is_refused(release: Path) -> None:
    assert check_release(NEXT, release) == ["A release's tag starts with v, but got '1.2.3'."]
    command = [sys.executable, str(ROOT / ".ci/check_release.py"), "v999.0.0"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "but the tag is v999.0.0" in result.stderr


def test_the_package_works_as_the_release_tries_it(tmp_path: Path) -> None:
    command = [sys.executable, "-I", str(ROOT / ".ci/try_wheel.py")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"cifar-resnet {cifar_resnet.__version__} in " in result.stdout


# --- tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ['"execution_count": 3', '"output_type": "stream"'])
def test_pre_commit_finds_outputs_in_a_notebook(stored: str) -> None:
    local = parsed(ROOT / ".pre-commit-config.yaml")["repos"][-1]["hooks"]
    (hook,) = [hook for hook in local if hook["id"] == "notebook-without-outputs"]
    assert re.search(hook["entry"], f"   {stored},\n")
    assert not re.search(hook["entry"], '   "execution_count": null,\n   "outputs": []\n')
    for path in (ROOT / "examples").rglob("*.ipynb"):
        assert re.search(hook["files"], path.name)
        assert not re.search(hook["entry"], path.read_text())


def test_the_tests_run_on_every_python_that_is_supported() -> None:
    job = parsed(ROOT / ".github/workflows/test.yml")["jobs"]["test"]
    stated = re.findall(
        r"Python :: (\d\.\d+)$", "\n".join(PROJECT["project"]["classifiers"]), re.MULTILINE
    )
    assert job["strategy"]["matrix"]["python"] == stated
    assert PROJECT["project"]["requires-python"] == f">={stated[0]}"
    assert job["steps"][-1]["run"] == ".ci/run"


def test_only_the_publishing_job_may_speak_for_the_project() -> None:
    jobs = parsed(ROOT / ".github/workflows/release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "build"
    assert "permissions" not in jobs["build"]
    # nothing of the checkout runs beside that right
    assert all("run" not in step for step in jobs["publish"]["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_read_and_end(path: Path) -> None:
    workflow = parsed(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
    for script in re.findall(r"\.ci/[\w.]+", path.read_text()):
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_issue_forms_are_complete(path: Path) -> None:
    form = parsed(path)
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": False}
        return
    assert form["name"]
    assert form["description"]
    fields = form["body"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


# --- advice --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "examples/README.md"])
def test_advice_names_what_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in re.findall(r"\bmake ([a-z ]+?)(?=`|$|  | ARGS)", text, re.MULTILINE):
        assert set(line.split()) <= targets
    for path in re.findall(
        r"(?<![\w/])(?:\.ci|benchmarks|cifar_resnet|docs|examples|tests)/[\w./]*", text
    ):
        assert (ROOT / path.rstrip(".")).exists(), path
    for cited in re.findall(r"`([A-Z]+\.(?:md|cff)|\w+\.toml)`", text):
        assert (ROOT / cited).is_file(), cited


def test_every_example_is_listed() -> None:
    listed = (ROOT / "examples/README.md").read_text()
    for path in [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.ipynb")]:
        assert f"`{path.name}`" in listed
