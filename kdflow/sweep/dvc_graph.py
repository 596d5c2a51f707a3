"""The stale stages of a DVC project, and the order in which they must run.

A DVC project is the current folder, which has the experiment, or the folder of a paper. DVC's names of stages are
relative to the current folder.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow import config
from kdflow.core.errors import UserError, one_line
from kdflow.paper import Paper

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage


@dataclass(frozen=True)
class Stage:
    """A stage, by DVC's name for it, and the stages that must run before it."""

    name: str
    needs: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The stage's name without file and item: "teacher" for "paper/dvc.yaml:teacher@resnet20"."""
        return self.name.rpartition(":")[2].partition("@")[0]


def targets(paper: Paper, patterns: Collection[str]) -> list[str]:
    """Return the stages of a paper that match patterns such as table3, cell@*-kd or report, without duplicates.

    Raises:
        UserError: a pattern matches no stage.
    """
    known = [f"prepare@{name}" for name in paper.datasets] + [f"teacher@{name}" for name in paper.teachers]
    known += [*(f"cell@{name}" for name in paper.cells), *paper.items, "report"]
    matches: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in known if fnmatchcase(name, pattern)]
        if not matching and set(pattern) & set("*?["):
            raise UserError(f"targets: {pattern} matches none of the {len(known)} targets of {paper.folder}/dvc.yaml")
        if not matching:
            raise config.unknown_name("targets", pattern, known)
        matches |= dict.fromkeys(matching)
    return [f"{paper.folder.as_posix()}/dvc.yaml:{name}" for name in matches]


def command(project: Path, *arguments: str, stages: Collection[str] = ()) -> list[str]:
    """Return a command of DVC in a project, for some of its stages. It waits for DVC's lock."""
    names = [name.removeprefix(f"{project.as_posix()}/dvc.yaml:") for name in stages]
    return [sys.executable, "-m", "dvc", "--cd", str(project), "--wait-for-lock", *arguments, *names]


def stale(project: Path, stage_names: Collection[str] = (), forced: Collection[str] = ()) -> list[Stage]:
    """Return the stages to run for `stage_names`: the stale ones and those that depend on them, in order.

    A stage that another process runs now counts as stale.

    Args:
        project: The folder of the DVC project.
        stage_names: Names of stages. Empty: all stages of the project's dvc.yaml.
        forced: Names of stages among them that run even if they are up to date.

    Raises:
        UserError: DVC cannot read its files, or a stage does not exist.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project), _wait_for_lock=True) as repo, repo.lock:
            _remove_broken_rwlock(repo)
            graph = repo.index.graph
            names = list(stage_names) or [stage.addressing for stage in graph if stage.path_in_repo == "dvc.yaml"]
            stages = {stage.addressing: stage for name in names for stage in repo.stage.collect(name, with_deps=True)}
            changed = {name for name, stage in stages.items() if name in forced or _is_changed(stage)}
            postorder = [stage.addressing for stage in nx.dfs_postorder_nodes(graph)]  # dependencies come first
            order = [name for name in postorder if name in stages]
            needs = {name: [stage.addressing for stage in graph.successors(stages[name])] for name in order}
    except DvcException as error:
        raise UserError(f"dvc: {one_line(error)}") from None
    to_run: dict[str, Stage] = {}
    for name in order:
        stale_needs = tuple(need for need in needs[name] if need in to_run)
        if stale_needs or name in changed:
            to_run[name] = Stage(name, stale_needs)
    return list(to_run.values())


def _is_changed(stage: PipelineStage) -> bool:
    from dvc.lock import LockError

    try:
        return bool(stage.status(check_updates=True))
    except LockError:  # another process writes an input or output
        return True


def _remove_broken_rwlock(repo: Repo) -> bool:
    """Remove DVC's file of running stages if it is broken; returns whether it was. The caller holds `repo.lock`.

    DVC writes the file in place. After a kill in between it is empty, and every command of DVC fails from then on.
    """
    from dvc.exceptions import DvcException
    from dvc.fs import localfs
    from dvc.lock import LockError
    from dvc.rwlock import RWLOCK_FILE, rwlock

    try:
        with rwlock(repo.tmp_dir, localfs, "check", [], [], hardlink=False):
            return False
    except LockError:
        return False
    except DvcException:
        Path(repo.tmp_dir, RWLOCK_FILE).unlink()
        return True


def is_busy(project: Path, stage_names: Collection[str]) -> bool:
    """Return whether DVC would refuse to run a stage, because another process uses its inputs or outputs.

    DVC also refuses while its file of running stages is broken. Then the result is True once, and the file is removed.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.stage.decorators import rwlocked

    lock = rwlocked(read=["deps"], write=["outs"])(lambda stage: stage)
    try:
        with Repo(str(project), _wait_for_lock=True) as repo, repo.lock:
            if _remove_broken_rwlock(repo):
                return True
            for name in stage_names:
                for stage in repo.stage.collect(name):
                    lock(stage)
    except LockError:
        return True
    except DvcException:  # of which DVC informs when it runs the stage
        return False
    return False


def restrict(stages: Collection[Stage]) -> list[Stage]:
    """Return the stages without needs that are not among them."""
    names = {stage.name for stage in stages}
    return [Stage(stage.name, tuple(need for need in stage.needs if need in names)) for stage in stages]


def check_remote(project: Path, parameter: str) -> None:
    """Check that a DVC project has a default remote, which `parameter` of a flow requires.

    Raises:
        UserError: there is none.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            remote = repo.config["core"].get("remote")
    except DvcException as error:
        raise UserError(f"dvc: {one_line(error)}") from None
    if not remote:
        add = f"dvc --cd {project} remote add -d NAME URL"
        raise UserError(f"{parameter}: DVC has no default remote in {project}; `{add}` adds one")


def remove_experiments(experiments: Collection[str]) -> None:
    """Remove DVC experiments by name, as far as they exist, so that they can run again. DVC keeps their cached runs."""
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        existing = {
            name for experiments_of_commit in repo.experiments.ls().values() for name, *_ in experiments_of_commit
        }
        if existing & set(experiments):
            repo.experiments.remove(sorted(existing & set(experiments)))


def metrics(experiments: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the content of data/metrics/<method>.json of DVC experiments, by experiment and method."""
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        shown = repo.metrics.show(revs=list(experiments), hide_workspace=True)
    folder = Path("data/metrics")
    return {
        name: {
            Path(file).stem: content["data"]
            for file, content in shown[name]["data"].items()
            if Path(file).parent == folder and "data" in content
        }
        for name in experiments
    }
