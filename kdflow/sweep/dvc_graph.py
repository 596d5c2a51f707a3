"""DVC's graph in the current folder, as far as it is stale: what is to be run, and what each stage waits for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kdflow import config
from kdflow.core.errors import UserError, one_line
from kdflow.paper.paper import Paper


@dataclass(frozen=True)
class Stage:
    """A stage as DVC names it, and those to be run before it."""

    name: str
    needs: tuple[str, ...]

    @property
    def kind(self) -> str:
        """teacher of teacher@..., and of paper/dvc.yaml:teacher@..."""
        return self.name.rpartition(":")[2].partition("@")[0]


def targets(paper: Paper, patterns: Collection[str]) -> list[str]:
    """A paper's stages that patterns name, such as table3, cell@*-kd or report, each once.

    Raises:
        UserError: nothing has such a name.
    """
    known = [f"prepare@{name}" for name in paper.datasets] + [f"teacher@{name}" for name in paper.teachers]
    known += [*(f"cell@{name}" for name in paper.cells), *paper.parts, "report"]
    found: dict[str, None] = {}
    for pattern in patterns:
        named = [name for name in known if fnmatchcase(name, pattern)]
        if not named and set(pattern) & set("*?["):
            raise UserError(f"targets: {pattern} matches none of the {len(known)} targets of {paper.folder}/dvc.yaml")
        if not named:
            raise config.unknown_name("targets", pattern, known)
        found |= dict.fromkeys(named)
    return [f"{paper.folder.as_posix()}/dvc.yaml:{name}" for name in found]


def stale(wanted: Collection[str], forced: Collection[str] = ()) -> list[Stage]:
    """What is to be run for the stages `wanted`: what is not up to date, and what hangs on it, in DVC's order.

    Args:
        wanted: stages as DVC names them; none: all of the root's dvc.yaml.
        forced: among them those that are to be run in any case.

    Raises:
        UserError: DVC cannot read its files, or does not know a stage.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(_wait_for_lock=True) as repo:
            graph = repo.index.graph
            asked = list(wanted) or [stage.addressing for stage in graph if stage.path_in_repo == "dvc.yaml"]
            stages = {one.addressing: one for target in asked for one in repo.stage.collect(target, with_deps=True)}
            changed = {*repo.status(targets=asked, with_deps=True), *forced}
            order = [
                s.addressing for s in nx.dfs_postorder_nodes(graph) if s.addressing in stages
            ]  # what it needs first
            needs = {name: [s.addressing for s in graph.successors(stages[name])] for name in order}
    except DvcException as error:
        raise UserError(f"dvc: {one_line(error)}") from None
    found: dict[str, Stage] = {}
    for name in order:
        before = tuple(need for need in needs[name] if need in found)
        if before or name in changed:
            found[name] = Stage(name, before)
    return list(found.values())


def restrict(stages: Collection[Stage]) -> list[Stage]:
    """These stages alone, none waiting for another that is not of them."""
    names = {stage.name for stage in stages}
    return [Stage(stage.name, tuple(need for need in stage.needs if need in names)) for stage in stages]


def check_remote(what: str) -> None:
    """Refuse `what` where DVC has no remote by default.

    Raises:
        UserError: it has none.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            remote = repo.config["core"].get("remote")
    except DvcException as error:
        raise UserError(f"dvc: {one_line(error)}") from None
    if not remote:
        raise UserError(f"{what}: DVC has no default remote to share by; `dvc remote add -d NAME URL` adds one")


def remove_experiments(experiments: Collection[str]) -> None:
    """Remove those of DVC's experiments that are there, so that they can be run again: it keeps what they computed."""
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        known = {name for of_commit in repo.experiments.ls().values() for name, *_ in of_commit}
        if known & set(experiments):
            repo.experiments.remove(sorted(known & set(experiments)))


def metrics(experiments: Collection[str]) -> dict[str, dict[str, Any]]:
    """The content of the files data/metrics/<method>.json of DVC's experiments, by experiment and method."""
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        shown = repo.metrics.show(revs=list(experiments), hide_workspace=True)
    place = Path("data/metrics")
    return {
        name: {
            Path(file).stem: content["data"]
            for file, content in shown[name]["data"].items()
            if Path(file).parent == place and "data" in content
        }
        for name in experiments
    }
