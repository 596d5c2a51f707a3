"""Errors: one line and an exit code for bad input, a traceback for defects only."""

import errno
import subprocess
import sys

import pytest

from kdflow.core.errors import UserError, exit_on_user_error, user_message


def end_of(error, capsys):
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise error
    out, err = capsys.readouterr()
    assert out == ""
    return caught.value.code, err


def test_bad_input_is_one_line_and_exit_code_1(capsys):
    assert end_of(UserError("params.yaml: epochs: bad"), capsys) == (1, "error: params.yaml: epochs: bad\n")


def test_an_error_of_the_system_names_its_file(capsys):
    full = OSError(errno.ENOSPC, "anything", "data/a.h5")
    assert end_of(full, capsys) == (1, "error: data/a.h5: No space left on device\n")


def test_an_error_of_the_system_without_a_file(capsys):
    assert end_of(OSError(errno.ENOSPC, "anything"), capsys) == (1, "error: No space left on device\n")
    assert end_of(OSError("a\nb  c"), capsys) == (1, "error: a b c\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117]\nDefaultCPUAllocator: can't allocate memory: 99 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_too_little_memory_is_one_line(error, capsys):
    code, line = end_of(error, capsys)
    assert code == 1
    assert line.startswith("error: not enough memory")
    assert line.count("\n") == 1


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    code, line = end_of(KeyboardInterrupt(), capsys)
    assert code == 130
    assert line.startswith("interrupted: ")
    assert line.count("\n") == 1


@pytest.mark.parametrize("defect", [ZeroDivisionError, ValueError, KeyError, AssertionError])
def test_a_defect_keeps_its_traceback(defect, capsys):
    with pytest.raises(defect), exit_on_user_error():
        raise defect("a defect")
    assert capsys.readouterr() == ("", "")
    assert user_message(defect("a defect")) is None


def test_nothing_happens_without_an_error(capsys):
    with exit_on_user_error():
        pass
    assert capsys.readouterr() == ("", "")


def test_a_real_process_shows_no_traceback_for_a_missing_file():
    script = "from kdflow.core.errors import exit_on_user_error\nwith exit_on_user_error():\n    open('/no/such/file')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: /no/such/file: No such file or directory\n"
