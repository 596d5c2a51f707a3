"""`import kdflow`: its names, their types, and what it loads."""

import ast
import pickle
import subprocess
import sys

import pytest
from paths import ROOT

import kdflow
import kdflow.api


def test_importing_kdflow_loads_neither_torch_nor_pydantic():
    script = "import sys, kdflow; print(sorted({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_names_of_package_interface_and_stub_are_the_same():
    tree = ast.parse((ROOT / "kdflow" / "__init__.pyi").read_text())
    stub = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert stub == kdflow.__all__ == kdflow.api.__all__
    assert all(getattr(kdflow, name) is getattr(kdflow.api, name) for name in kdflow.__all__)
    assert set(kdflow.__all__) < set(dir(kdflow))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        kdflow.destill  # noqa: B018


def test_settings_can_be_pickled():
    method = kdflow.load_method("kd_tlcutmix_pick")
    assert pickle.loads(pickle.dumps(method)) == method
