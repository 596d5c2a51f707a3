"""Settings that a test may edit."""

import pytest
from settings_files import copy_settings


@pytest.fixture
def root(tmp_path):
    """A folder with a copy of params.yaml and recipes/."""
    return copy_settings(tmp_path)
