"""A student that is larger than its teacher."""

import pytest

from kdflow.report.gain import Summary, SummaryRow
from kdflow.training.record import mean_std


@pytest.mark.parametrize(
    ("teacher", "student", "sentence"),
    [
        ((1000, 4000), (100, 1000), "s has 1/10.0 of t's parameters and 1/4.0 of its FLOPs."),
        (
            (100, 1000),
            (1030, 4000),
            "s has 10.3 times t's parameters and 4.0 times its FLOPs. "
            "The student is larger and needs more computation than its teacher.",
        ),
        (
            (1000, 1000),
            (100, 2000),
            "s has 1/10.0 of t's parameters and 2.0 times its FLOPs. "
            "The student needs more computation than its teacher.",
        ),
        ((100, 100), (100, 100), "s has 1/1.0 of t's parameters and 1/1.0 of its FLOPs."),
    ],
)
def test_the_summary_says_which_of_the_two_is_larger(teacher, student, sentence):
    models = [
        SummaryRow(role=name, model=name, params=params, flops=flops, top1=mean_std([90.0]), agreement=None, weights=())
        for name, (params, flops) in (("t", teacher), ("s", student))
    ]
    counts = {"classes": 5, "image_size": 64, "train_images": 400, "test_images": 100, "epochs": 8}
    notes = {"budget_note": "", "teacher_source": "", "teacher_trained": True, "majority_accuracy": 20.0}
    assert Summary(dataset="photos", **counts, **notes, models=models, gain=None).compression == sentence
