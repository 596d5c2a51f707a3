"""Label disagreement compared with a slow loop, and the pictures compared with the views."""

import json

import matplotlib.image
import pytest
import torch
from small import CPU, DATA, METHODS, VIEWS, run_of, teacher_for

from kdflow.config import StrongView
from kdflow.methods.views import BaseViewTransform, cutmix
from kdflow.report.disagreement import DisagreementResult, measure, write
from kdflow.training.epoch_plan import draw_plan

RUN = run_of(METHODS["kd"])
TEACHER = teacher_for(METHODS["kd"])


def _views():
    """Yield every CutMix view of the first epoch, its two labels and lambda."""
    base, train = BaseViewTransform(VIEWS, CPU), DATA.train
    for row in draw_plan(RUN.seed, 0, 20, 8, 8, VIEWS, StrongView(view="cutmix"), CPU):
        labels = train.labels[row.index].tolist()
        strong = cutmix.apply(base(train.images[row.index], row.shift, row.flip), row.strong[0])
        for i, label in enumerate(labels):
            yield strong.images[i], label, labels[strong.index_b[i]], strong.lam[i].item()


def test_the_percentage_and_the_samples_are_those_of_a_slow_loop():
    disagreements = []
    for i, (image, label_a, label_b, lam) in enumerate(_views()):
        mixed = [0.0] * 4
        mixed[label_a] += lam
        mixed[label_b] += 1 - lam
        predicted = TEACHER(image[None])[0].softmax(0).tolist()
        mixed_argmax = label_a if lam >= 0.5 else label_b
        assert mixed[mixed_argmax] == max(mixed)
        if predicted.index(max(predicted)) != mixed_argmax:
            disagreements.append((i // 8, image, mixed, predicted))
    result, pictures = measure(TEACHER, DATA, RUN, "cutmix", "", samples=5)
    assert 5 < len(disagreements) < 20
    # Three batches: two of the first, two of the second, and the last one of the third.
    kept = [view for batch in range(3) for view in [view for view in disagreements if view[0] == batch][:2]][:5]
    assert (result.views, result.percent, result.view, result.seed) == (20, 100 * len(disagreements) / 20, "cutmix", 3)
    assert len(result.samples) == len(pictures) == 5
    for sample, picture, (_, image, mixed, predicted) in zip(result.samples, pictures, kept, strict=True):
        assert sum(label.probability for label in sample.mixed) == pytest.approx(1)
        for label in sample.mixed:
            assert label.probability == pytest.approx(mixed["abcd".index(label.name)], abs=1e-6)
        assert sample.mixed[0].probability == max(label.probability for label in sample.mixed)
        ranked = sorted(range(4), key=lambda c: -predicted[c])
        assert [label.name for label in sample.teacher] == ["abcd"[c] for c in ranked]
        probabilities = [label.probability for label in sample.teacher]
        assert probabilities == pytest.approx([predicted[c] for c in ranked], abs=1e-5)
        raw = image * torch.tensor(VIEWS.std)[:, None, None] + torch.tensor(VIEWS.mean)[:, None, None]
        assert (picture.permute(2, 0, 1) - 255 * raw).abs().max() <= 0.51


def test_without_disagreement_there_are_no_samples(tmp_path):
    class LabelTeacher(torch.nn.Module):
        """Predict the class of each image's label: batches come in the order of the plan."""

        def __init__(self) -> None:
            super().__init__()
            rows = draw_plan(RUN.seed, 0, 20, 8, 8, VIEWS, None, CPU)
            self.labels = [DATA.train.labels[row.index] for row in rows]

        def forward(self, x):
            return 9.0 * torch.nn.functional.one_hot(self.labels.pop(0), 4)

    result, pictures = measure(LabelTeacher(), DATA, RUN, "identity", "")
    assert (result.percent, result.samples, len(pictures)) == (0.0, [], 0)
    write(result, pictures, tmp_path)
    assert (tmp_path / "samples.png").exists()


def test_written_results_can_be_read_again(tmp_path):
    result, pictures = measure(TEACHER, DATA, RUN, "cutmix", "a tenth")
    write(result, pictures, tmp_path)
    assert DisagreementResult.model_validate_json((tmp_path / "disagreement.json").read_text()) == result
    assert json.loads((tmp_path / "disagreement.json").read_text())["percent"] == result.percent
    assert matplotlib.image.imread(tmp_path / "samples.png").std() > 0.05
    text = (tmp_path / "samples.svg").read_text()
    assert "<svg" in text
    before = (tmp_path / "samples.png").read_bytes()
    write(result, pictures, tmp_path)
    assert (tmp_path / "samples.png").read_bytes() == before
