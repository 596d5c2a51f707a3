"""The experiment of params.yaml at a small budget."""

from project import Project

SMALL = {"methods": ["kd", "kd_tlcutmix_pick"], "seeds": [0, 1], "epochs": 2, "teacher_epochs": 2}
COMPUTE = {
    "device": "cpu",
    "threads": 1,
    "max_parallel_runs": 1,
    "replay_gb": 1.5,
    "loader_workers": 1,
    "processes_per_run": 1,
}


def assert_students(ran: list[str]) -> None:
    """Check that all methods' students were distilled and then evaluated; DVC chooses the order of the methods."""
    assert sorted(ran) == sorted(
        f"{stage}@{method}" for stage in ("distill", "evaluate") for method in SMALL["methods"]
    )
    assert all(ran.index(f"distill@{method}") < ran.index(f"evaluate@{method}") for method in SMALL["methods"])


def run_experiment(project: Project) -> None:
    """Commit the settings and run the experiment."""
    project.settings(**SMALL)
    project.commit()  # records have the commit: no later one, which would differ from that of a second run
    ran, _ = project.dvc("repro")
    assert ran[:3] == ["prepare", "teacher", "logits"] and ran[-1] == "report"
    assert_students(ran[3:-1])
