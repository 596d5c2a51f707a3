"""Paths for outputs that exist and are no files: devices, pipes, folders and links."""

import os
import shutil

import pytest
from commands import fails_in_one_line, run
from papers import KD, make_paper, write_cell, write_teacher
from paths import ROOT
from shipped import make

from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.export import export, locate


@pytest.fixture(params=["device", "pipe", "folder", "link to a pipe"])
def no_file(request, tmp_path):
    path = tmp_path / "out.safetensors"
    if request.param == "device":
        path.symlink_to("/dev/null")
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "pipe":
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    return path


def state(path):
    return path.lstat().st_ino, path.lstat().st_mode, sorted(path.parent.iterdir())


def test_what_is_no_file_is_refused_and_left(no_file):
    before = state(no_file)
    with pytest.raises(UserError, match="exists and is not a regular file"):
        files.output_file(no_file)
    if not no_file.is_symlink():
        with pytest.raises(UserError, match="exists and is not a regular file"):
            files.write_text(no_file, "new")
    assert state(no_file) == before


def test_a_link_of_the_pipeline_is_replaced(tmp_path):
    (tmp_path / "cache").write_text("old")
    (tmp_path / "link").symlink_to("cache")
    files.write_text(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "cache").read_text() == "old" and (tmp_path / "link").read_text() == "new"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_of_the_user_is_followed(tmp_path, exists):
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other/file", tmp_path / "link"
    link.symlink_to(target)
    if exists:
        target.write_text("old")
    files.write_text(files.output_file(link), "new")
    assert link.readlink() == target and target.read_text() == "new"


def test_links_in_a_circle_are_an_error_of_the_system(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        files.output_file(tmp_path / "a")


def test_export_refuses_before_it_reads_a_pipe(tmp_path, no_file):
    student = locate.locate_inputs(make(tmp_path / "tree"), None, None)
    before = state(no_file)
    with pytest.raises(UserError, match="exists and is not a regular file"):
        export.export(student, "safetensors", no_file, 1)
    assert state(no_file) == before


def test_export_refuses_a_report_that_cannot_be_written(tmp_path):
    student = locate.locate_inputs(make(tmp_path / "tree"), None, None)
    (tmp_path / "s.safetensors.json").mkdir()
    with pytest.raises(UserError, match=r"s\.safetensors\.json: exists and is not a regular file"):
        export.export(student, "safetensors", tmp_path / "s.safetensors", 1)
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.slow
def test_commands_follow_links_and_refuse_devices(tmp_path):
    paper = make_paper(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_teacher(paper)
    write_cell(paper, KD, [90.0, 90.1, 90.2])
    (tmp_path / "page.html").symlink_to("target.html")
    (tmp_path / "base.json").symlink_to("target.json")
    (tmp_path / "device").symlink_to("/dev/full")
    assert run("report", "--out", "page.html", cwd=tmp_path).stdout == "page.html\n"
    assert run("drift", "--update", KD, "--baseline", "base.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "page.html").is_symlink() and "<html" in (tmp_path / "target.html").read_text()
    assert (tmp_path / "base.json").is_symlink() and KD in (tmp_path / "target.json").read_text()
    fails_in_one_line(run("report", "--out", "device", cwd=tmp_path), "device: exists and is not a regular file")
