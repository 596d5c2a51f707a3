"""An installed package: wheel and source distribution in an environment outside of the repository, without a clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
from paths import ROOT
from tree import make_tree

from kdflow.training.record import code_sha256

pytestmark = [pytest.mark.slow, pytest.mark.long]

ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def run(*command, cwd, fails=False):
    """Run a command; return its output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT | {"PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=800,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment with the wheel that is built from the source distribution, and no clone."""
    folder = tmp_path_factory.mktemp("package")
    listed = run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    build = "import setuptools.build_meta as backend; print(backend.build_sdist('..'))"
    sdist = folder / run(sys.executable, "-c", build, cwd=folder / "source").splitlines()[-1]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("recipes/methods.yaml") for name in archive.getnames())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    installed = [path for path in sys.path if path.endswith("site-packages")]  # the dependencies, and no clone
    (site / "dependencies.pth").write_text("\n".join(installed))
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    found = run(python, "-c", "import kdflow; print(kdflow.__file__)", cwd=folder).strip()
    assert found == str(site / "kdflow/__init__.py")
    return python


@pytest.fixture(scope="module")
def project(python, tmp_path_factory):
    """A project of `kdflow init` with two short methods that have run."""
    folder = tmp_path_factory.mktemp("project") / "demo"
    output = run(python.with_name("kdflow"), "init", folder, cwd=folder.parent)
    assert output.splitlines()[-1] == f"next: cd {folder} && dvc repro && kdflow table"
    params = folder / "params.yaml"
    text = re.sub("^(epochs|teacher_epochs):$", r"\1: 2", params.read_text(), flags=re.MULTILINE)
    text = text.replace("- ce\n", "").replace("- kd_tlcutmix\n", "").replace("- 1\n- 2\n", "")
    params.write_text(text.replace("- kd_tlcutmix_pick", "- my_kd"))
    output = run(python, "-m", "dvc", "repro", cwd=folder)
    assert [stage for stage in re.findall("Running stage '(.*)'", output) if "@" not in stage] == [
        "package",
        "prepare",
        "teacher",
        "logits",
        "report",
    ]
    return folder


def test_the_demo_runs_without_a_clone(python, project):
    table = run(python, "-m", "kdflow", "table", cwd=project)
    assert "my_kd" in table and "Not a full run" in table
    record = json.loads((project / "data/records/my_kd/seed0.json").read_text())
    assert record["code"]["sha256"] == code_sha256(), "an installed package has the hash of its sources"
    assert record["settings"]["method"]["tau"] == 2.0


def test_only_a_change_makes_stages_stale(python, project):
    def ran():
        return set(re.findall("Running stage '(.*)'", run(python, "-m", "dvc", "repro", "--dry", cwd=project)))

    assert ran() == {"package"}
    run(python, "-m", "dvc", "repro", "package", cwd=project)
    site = Path(run(python, "-c", "import kdflow; print(kdflow.__path__[0])", cwd=project).strip())
    for file, stale in (
        (site / "report/experiment_table.py", {"report"}),
        (site / "methods/losses/at.py", {"distill@kd", "distill@my_kd"}),
        (project / "recipes/methods.yaml", {"distill@my_kd"}),
    ):
        before = file.read_bytes()
        file.write_bytes(before.replace(b"tau: 2.0", b"tau: 3.0") if file.suffix == ".yaml" else before + b"# new\n")
        run(python, "-m", "dvc", "repro", "package", cwd=project)
        status = json.loads(run(python, "-m", "dvc", "status", "--json", cwd=project))
        assert set(status) - {"package"} == stale
        file.write_bytes(before)
    assert run(python, "-m", "dvc", "repro", cwd=project).count("Running stage") == 1


def test_a_paper_of_a_project_makes_a_cell(python, tmp_path):
    kdflow, folder = python.with_name("kdflow"), tmp_path / "project"
    run(kdflow, "init", folder, "--paper", cwd=tmp_path)
    for name in ("tables.yaml", "resnet20.safetensors"):
        shutil.copy(ROOT / "paper/micro" / name, folder / "paper")
    params = (ROOT / "paper/micro/params.yaml").read_text().replace("paper/micro/", "paper/")
    (folder / "paper/params.yaml").write_text(params.replace("epoch_scale: 0.1", "epoch_scale: 0.01"))
    run(kdflow, "plan", cwd=folder)
    dvc = (python, "-m", "dvc", "--cd", "paper", "repro", "cell@digits-resnet20-resnet8-kd")
    run(*dvc, cwd=folder)
    assert re.search("^done .* digits-resnet20-resnet8-kd$", run(kdflow, "cells", "--status", cwd=folder), re.MULTILINE)
    assert run(*dvc, cwd=folder).count("Running stage") == 1, "only the stage that writes the hashes runs again"


def test_distill_export_and_predict_without_a_project(python, tmp_path):
    kdflow = python.with_name("kdflow")
    make_tree(tmp_path / "photos")
    options = ["--teacher", "resnet14", "--student", "resnet8", "--method", "kd", "--image-size", "16"]
    run(kdflow, "distill", "--data", "photos", *options, "--epochs", "1", cwd=tmp_path)
    exported = ["--format", "safetensors", "--out", "student.safetensors"]
    run(kdflow, "export", "out/students/kd/seed0.safetensors", *exported, cwd=tmp_path)
    image = next(file for file in (tmp_path / "photos").rglob("*") if file.is_file())
    assert "%" in run(kdflow, "predict", image, "--model", "student.safetensors", cwd=tmp_path)
