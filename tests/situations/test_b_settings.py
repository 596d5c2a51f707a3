"""Settings files that YAML itself reads, but that no value can be made of."""

import pytest

from kdflow.config import Method, read_settings


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("ce: 2020-13-45", "a value cannot be read: month must be in 1..12; quote it if it is text"),
        ("ce: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_content_that_cannot_be_read_is_one_mistake(tmp_path, content, words):
    (tmp_path / "a.yaml").write_text(content)
    mistakes = []
    assert read_settings(tmp_path / "a.yaml", Method, mistakes) is None
    assert len(mistakes) == 1
    assert words in mistakes[0]
