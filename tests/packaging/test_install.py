"""The project as its users get it: from a wheel, editable, and straight from a checkout.

No registry is asked: each fresh environment gets links to exactly the packages that `dependencies` declares, and what
those need in turn. So these tests also show that compiling needs no torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DATA = [
    path.relative_to(ROOT).as_posix()
    for top in ("grammar", "templates", "backends")
    for path in sorted((ROOT / top).rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
]
WHERE = """
import rnnc
from importlib.metadata import entry_points
from importlib.resources import files
print(rnnc.__file__)
print(files("rnnc.grammar").joinpath("rnn.lark").is_file())
print(*sorted(e.name for e in entry_points(group="rnnc.backends")))
"""


def run(*command: str | Path, **env: str) -> str:
    """Standard output of a command that must succeed, run outside the checkout with a clean Python environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd="/", env=clean | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def needed(requirements: list[str], found: dict[str, Path] | None = None) -> dict[str, Path]:
    """Name in site-packages → path, of installed requirements and all that they need."""
    found = {} if found is None else found
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        dist = distribution(requirement.name)
        tops = {f.parts[0] for f in dist.files or () if f.parts[0] not in ("..", "__pycache__")}
        fresh = {top: Path(str(dist.locate_file(top))) for top in tops if top not in found}
        if fresh:
            found |= fresh
            needed(dist.requires or [], found)
    return found


@pytest.fixture(scope="module")
def make_venv(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes fresh environments with rnnc's dependencies in them, and nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    dependencies = needed(project["dependencies"])

    def make() -> Path:
        venv = tmp_path_factory.mktemp("venv")
        run(sys.executable, "-m", "venv", "--without-pip", venv)
        (packages,) = venv.glob("lib/python3*/site-packages")
        for name, path in dependencies.items():
            (packages / name).symlink_to(path)
        return venv

    return make


def install(venv: Path, wheel: Path) -> None:
    flags = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", *flags, wheel)


def editable_wheel(out: Path) -> Path:
    """What `pip install --editable` builds and installs."""
    code = "import os, sys, hatchling.build as b; os.chdir(sys.argv[1]); print(b.build_editable(sys.argv[2]))"
    return out / run(sys.executable, "-c", code, ROOT, out).strip()


@pytest.fixture(scope="module")
def dists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def from_checkout(make_venv: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the compiler writes when it runs straight from the checkout, with nothing installed."""
    python = make_venv() / "bin" / "python"
    assert run(python, "-c", WHERE, PYTHONPATH=str(ROOT)).startswith(f"{ROOT}/rnnc/__init__.py\nTrue\n")
    module = tmp_path_factory.mktemp("bare") / "mingru.py"
    run(python, "-m", "rnnc", "compile", ROOT / "examples" / "mingru.rnn", "-o", module, PYTHONPATH=str(ROOT))
    return module.read_bytes()


def test_sdist_and_wheel_hold_the_data(dists: tuple[Path, Path]) -> None:
    sdist, wheel = dists
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    assert "grammar/rnn.lark" in DATA
    assert not set(DATA) - in_sdist
    assert not {f"rnnc/{name}" for name in DATA} - in_wheel
    assert not {name for name in in_wheel if not name.startswith(("rnnc/", "rnnc-"))}


@pytest.mark.parametrize("way", ["wheel", "editable"])
def test_installed_compiler(
    way: str, dists: tuple[Path, Path], make_venv: Callable[[], Path], from_checkout: bytes, tmp_path: Path
) -> None:
    venv = make_venv()
    install(venv, dists[1] if way == "wheel" else editable_wheel(tmp_path))
    place, grammar, backends = run(venv / "bin" / "python", "-c", WHERE).splitlines()
    assert Path(place).is_relative_to(venv if way == "wheel" else ROOT)
    assert grammar == "True"
    assert backends == "reference torch triton"
    module = tmp_path / "mingru.py"
    run(venv / "bin" / "rnnc", "compile", ROOT / "examples" / "mingru.rnn", "-o", module)
    assert module.read_bytes() == from_checkout


def test_compiled_module_needs_no_rnnc(from_checkout: bytes, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "mingru.py").write_bytes(from_checkout)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch
from mingru import MinGRU
cell = MinGRU(D=4)
y, state = cell(torch.zeros(2, 3, 4))
print(tuple(y.shape), tuple(state.h.shape), any(m.partition(".")[0] == "rnnc" for m in sys.modules))
"""
    assert run(sys.executable, "-c", code) == "(2, 3, 4) (2, 4) False\n"
