"""What a user gets: one abi3 wheel, the same from the sdist, that needs NumPy and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "horovod", "cupy", "mpi4py", "sklearn", "matplotlib")
IMPORT = f"import sys, mpisign; print(*[m for m in {HEAVY} if m in sys.modules])"
VOTE = """
import mpisign, numpy as np
votes = np.array([[1, -2, 3, -4, 5, 6, -7, 8, -9], [-1, -2, 3, 4, 5, -6, -7, 8, -9],
                  [1, 2, 3, -4, -5, -6, -7, 8, 9]], np.float32)
planes = np.stack([mpisign.pack(v, zeros="positive") for v in votes])
result = mpisign.unpack(mpisign.majority(planes, ties="positive", length=9), 9)
assert (result == np.sign(np.sign(votes).sum(0))).all(), result
print(mpisign.__file__)
"""
LEFT_OUT = (".git", "shared", ".venv", "build", "dist", "*.egg-info", "*.so", ".*_cache", "__py*__")


def run(*command, cwd: Path, timeout: float = 120, **env) -> str:
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **env},
        timeout=timeout,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    # What the checkout's own build compiles with -O3 is compiled here to see that it is all there.
    compiler = out.parent / "cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    compiler.chmod(0o755)
    command = [sys.executable, "-m", "build", "--no-isolation", kind, "-o", out, source]
    run(*command, cwd=out.parent, timeout=280, CC=str(compiler))
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT))
    return build("--sdist", folder / "tree", folder / "dist")


@pytest.fixture(scope="module", params=[pytest.param("checkout", marks=pytest.mark.many), "sdist"])
def wheel(request, sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    source = sdist.parent.parent / "tree"
    if request.param == "sdist":
        with tarfile.open(sdist) as archive:
            archive.extractall(folder)
        (source,) = folder.iterdir()
    return build("--wheel", source, folder / "dist")


def clean_python(folder: Path) -> Path:
    """A new environment with NumPy alone, linked from ours: no network, no download."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python3*/site-packages")
    for part in Path(numpy.__file__).parent.parent.glob("numpy[.-]*"):
        (site / part.name).symlink_to(part)
    (site / "numpy").symlink_to(Path(numpy.__file__).parent)
    return folder / "bin" / "python"


def test_wheel_is_abi3_and_carries_its_sources(wheel):
    assert "-cp311-abi3-" in wheel.name, wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        library = archive.read("mpisign/_kernels.abi3.so")
    shipped = {p.name for ending in ("*.c", "*.h", "*.cu") for p in (ROOT / "kernels").glob(ending)}
    assert {f"mpisign/kernels/{name}" for name in shipped} <= names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "mpisign").rglob("*.py")}
    assert modules <= names, "a folder is missing from `packages` in pyproject.toml"
    assert "mpisign/py.typed" in names
    for foreign in (b"libmpi", b"libcuda", b"libnccl", b"libtorch", b"libpython"):
        assert foreign not in library, f"the extension is linked to {foreign.decode()}"


def test_wheel_works_where_numpy_is_all_there_is(wheel, tmp_path):
    python = clean_python(tmp_path / "clean")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index"]
    run(*pip, wheel, cwd=tmp_path)
    assert str(tmp_path / "clean") in run(python, "-c", VOTE, cwd=tmp_path)
    assert run(python, "-c", IMPORT, cwd=tmp_path).split() == []
    for name in HEAVY:
        with pytest.raises(AssertionError, match="ModuleNotFoundError"):
            run(python, "-c", f"import {name}", cwd=tmp_path)
    path = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ""}
    line = run(python, "-m", "mpisign", "--version", cwd=tmp_path, **path)
    assert "no torch, no mpi4py, no Horovod, no CuPy" in line
    errors = run(python, "-c", FRONT_ENDS, cwd=tmp_path, **path).split("\n\n")
    assert len(errors) == 14 and all("pip install" in error for error in errors), errors
    found = json.loads(run(python, "-m", "mpisign", "doctor", "--json", cwd=tmp_path, **path))
    rows = {row["name"]: row for row in found["rows"]}
    assert found["broken"] == found["doubtful"] == []
    assert {"torch", "MPI", "Horovod", "CuPy"} <= set(found["missing"])
    assert all(rows[name]["advice"] for name in ("torch", "MPI", "Horovod"))


def test_an_unbuilt_checkout_says_what_to_run(tmp_path):
    """Not: most likely due to a circular import."""
    python = clean_python(tmp_path / "clean")
    shutil.copytree(ROOT / "mpisign", tmp_path / "mpisign", ignore=shutil.ignore_patterns("*.so"))
    done = subprocess.run(
        [python, "-c", "import mpisign"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    last = done.stderr.splitlines()[-1]
    assert "C kernels cannot be loaded" in last and "circular" not in last
    assert last.endswith(f"must be built first: scripts/setup, or pip install -e {tmp_path}"), last


# Whatever is missing, its error names what to install.
FRONT_ENDS = """
import contextlib, io, os, mpisign
from mpisign.cli import main
def refused(action):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said): print(action())
    except (ImportError, SystemExit) as error: said.write(str(error))
    return " ".join(said.getvalue().split())
def imported(name): return lambda: __import__("mpisign." + name)
found = [refused(imported(name)) for name in ("ddp", "fsdp", "horovod", "transports.torch")]
found += [refused(lambda: mpisign.DistributedOptimizer), refused(lambda: mpisign.unwrap)]
found += [refused(lambda: mpisign.Communicator(kind)) for kind in ("mpi", "torch", "horovod")]
found += [refused(lambda: main(["completion", "bash"]))]
found += [refused(lambda: main(["study", action, "batch-sizes"])) for action in ("run", "show")]
os.environ.update(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
found += [refused(mpisign.Communicator), refused(lambda: main(["bench", "training"]))]
print(*found, sep="\\n\\n")
"""


WITHOUT_TORCH = """
import sys; sys.modules["torch"] = None
import mpisign
for name in ("ddp", "fsdp", "transports.torch"):
    try: __import__(f"mpisign.{name}")
    except ImportError as error: print(error)
try: mpisign.DistributedOptimizer
except ImportError as error: print(error)
"""


def test_without_torch_errors_name_the_small_build(tmp_path):
    told = run(sys.executable, "-c", WITHOUT_TORCH, cwd=tmp_path).splitlines()
    assert len(told) == 4 and all("download.pytorch.org/whl/cpu (200 MB" in line for line in told)


def test_import_stays_light_where_everything_is_installed(tmp_path):
    assert run(sys.executable, "-c", IMPORT, cwd=tmp_path).split() == []


def test_images_and_the_conda_recipe_fit_the_project():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    recipe = yaml.safe_load((ROOT / "scripts/packaging/conda/recipe.yaml").read_text())
    assert recipe["context"]["version"] == project["project"]["version"]
    needs = [need.replace(" ", "") for need in recipe["requirements"]["run"]]
    assert needs == [
        f"python{project['project']['requires-python']}",
        *project["project"]["dependencies"],
    ]
    host = [need.replace(" ", "") for need in recipe["requirements"]["host"]]
    assert set(project["build-system"]["requires"]) <= set(host)
    script = ROOT / "scripts" / "packaging" / "install-in-image"
    for name in ("Containerfile", "Apptainer.def", script):
        text = (ROOT / name).read_text()
        extras = {
            e for given in re.findall(r"EXTRAS[:=-]+\"?([\w,]+)", text) for e in given.split(",")
        }
        assert extras <= set(project["project"]["optional-dependencies"]), name
        assert "/install-in-image" in text or name == script
    assert set(project["tool"]["cibuildwheel"]["archs"]) == {"x86_64", "aarch64"}
    if shutil.which("shellcheck"):
        run("shellcheck", script, cwd=ROOT)
