"""Shared by all tests."""

import contextlib
import re
import signal
import sys

import pytest
import torch

# A background job of a shell ignores SIGINT, and so do its children. Some tests send SIGINT to processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As in a run. Results may depend on the number of threads, and small tensors are no faster with more.
torch.set_num_threads(1)


def pytest_ignore_collect(collection_path, config):
    """Do not import files without slow tests where only those run: importing all takes each worker ten seconds."""
    marker = re.match("slow|long", config.option.markexpr)
    if marker and collection_path.suffix == ".py":
        return marker.group().encode() not in collection_path.read_bytes() or None
    return None


def pytest_runtest_setup(item):
    """Skip tests that need a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")


# Session fixtures that take long. The files that use one run in one worker of pytest-xdist, which makes it once.
EXPENSIVE = ("fresh", "finished", "finished_stages")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep each file in one worker (--dist loadgroup), and begin with the files that take longest."""
    groups, slow = {}, set()
    for item in items:
        groups.setdefault(item.path, item.nodeid.partition("::")[0])
        for fixture in set(EXPENSIVE) & set(item.fixturenames):
            groups[item.path] = fixture
        if item.get_closest_marker("slow"):
            slow.add(item.path)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item.path]))
    items.sort(key=lambda item: (item.path not in slow, groups[item.path] not in EXPENSIVE))


def pytest_addoption(parser):
    """Add the option of tests/test_golden.py."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ again instead of comparing")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A Prefect server, for all tests of a process."""
    from prefect_server import Server  # not at the top: importing Prefect takes a second

    found = Server(tmp_path_factory.mktemp("prefect"))
    yield found
    with contextlib.suppress(ProcessLookupError):
        found.stop()


@pytest.fixture(scope="session")
def fresh(server, tmp_path_factory):
    """A project with a paper of six cells, planned and deployed; nothing has run."""
    from prefect_server import deployed_project

    return deployed_project(server, tmp_path_factory.mktemp("six"))


@pytest.fixture(scope="module")
def quick_latency():
    """The latency of an exported file is measured once, in its shortest round."""
    from kdflow.export import latency  # not at the top: importing torchvision takes a second

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "MIN_ROUND_SECONDS", 0.0)
        patch.setattr(latency, "ROUNDS", 1)
        yield


@pytest.fixture
def user_project(tmp_path, request, monkeypatch):
    """The folder of a project and the name of its package; afterwards nothing can be imported from it."""
    from user_project import write_project

    monkeypatch.setattr(sys, "path", [*sys.path])
    package = f"of_{abs(hash(request.node.nodeid))}"
    yield write_project(tmp_path, package), package
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
