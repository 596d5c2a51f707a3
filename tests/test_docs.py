"""The documentation site: the reference of all settings has every key of the classes that check them."""

import importlib.util

import pytest
from paths import ROOT

SPEC = importlib.util.spec_from_file_location("hooks", ROOT / "docs/site/hooks.py")
hooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hooks)


@pytest.mark.parametrize("file", hooks.FILES)
def test_the_settings_reference_has_every_key(file):
    section = hooks.settings_page().split(f"## {file}\n")[1].split("\n## ")[0]
    for key in hooks.FILES[file].model_fields:
        assert f"| `{key}` |" in section, key


@pytest.mark.parametrize("source", hooks.PAGES)
def test_the_pages_from_other_folders_exist(source):
    assert (ROOT / source).is_file()
