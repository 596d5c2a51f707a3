"""The estimated numbers of teacher views equal those of real runs."""

from collections import Counter

import pytest
from paths import ROOT
from runs import replay, trained
from small import CPU, DATA

from kdflow import config
from kdflow.core.errors import UserError
from kdflow.training.teacher_logits import TeacherSource
from kdflow.training.teacher_logits.all_views import views_per_image
from kdflow.training.teacher_logits.estimate import costs, epochs_of_x, estimate


def _experiment(methods: list[str], **params: object) -> config.Experiment:
    experiment = config.load(ROOT)
    return experiment.model_copy(update={"params": experiment.params.model_copy(update={"methods": methods, **params})})


def test_estimated_views_are_those_that_runs_compute(tmp_path, monkeypatch):
    counts, compute = Counter(), TeacherSource.compute

    def counting(self, views):
        counts["images"] += sum(len(images) for images in views.values())
        return compute(self, views)

    monkeypatch.setattr(TeacherSource, "compute", counting)
    methods = ["ce", "kd", "kd_tlcutmix", "kd_tlcutmix_pick", "at_kd", "dkd"]
    for method in methods[1:]:
        run, source = replay(method, tmp_path, print)
        trained(run, source, tmp_path / method)
    online, replayed, views = costs(_experiment(methods), "float16")
    per_image = counts["images"] / (3 * len(DATA.train))
    assert replayed.views_in_training == per_image * 3 * 40 * 300  # seeds x epochs x images
    assert online.views_in_training == (0 + 1 + 2 + 3 + 1 + 1) * 3 * 40 * 300
    assert views.views_in_training == online.views_in_training - 4 * 3 * 40 * 300  # x of four methods is read


def test_sizes_and_break_even_of_cifar100():
    experiment = _experiment(["kd", "kd_tlcutmix_pick"], dataset="cifar100", seeds=(0, 1))
    online, replayed, views = costs(experiment, "float16")
    assert online.size == 0
    assert views.size == 50_000 * 162 * 100 * 2
    assert views.views_ahead == 50_000 * 162
    assert replayed.size == 2 * 240 * 30_000_000  # 30 MB an epoch
    assert costs(experiment, "float32")[1].size == 2 * replayed.size
    assert epochs_of_x(experiment) == 2 * 2 * 240


def test_the_speed_of_the_teacher_is_measured():
    found = estimate(_experiment(["kd"]), "float16", CPU)
    assert found.break_even_epochs == 25  # 2 px of crop and no flip
    assert found.epochs == 120
    assert found.hours(int(found.speed * 3600)) == pytest.approx(1, rel=0.01)


def test_images_from_files_have_no_finite_number_of_views():
    experiment = _experiment(["kd"], dataset="imagenet", teacher="resnet18", student="resnet18")
    assert [cost.source for cost in costs(experiment, "float16")] == ["online", "replay"]
    with pytest.raises(UserError, match="teacher_logits: views is not for images from files"):
        views_per_image(experiment.student_run("kd", 0).base_view)
