"""`DistillationStep` in a training loop, and the parts of methods alone."""

import pytest
import torch
from small import DATA, METHODS, VIEWS, run_of, same, state_of, step_of, step_plans, teacher_for
from torch import nn

import kdflow
from kdflow.methods.losses import kl_per_sample
from kdflow.models.features import FeatureExtractor
from kdflow.training.batches import InMemoryBatches
from kdflow.training.step import new_student

LAYERS = kdflow.Layers(features=("conv1", "layer1", "layer2", "layer3"), head="fc")
LABELS = torch.arange(8) % 4
X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def models(name):
    run = run_of(METHODS[name])
    return new_student(run, DATA.train.labels).student, teacher_for(run.method)


def test_the_loss_of_kd_and_its_update_are_those_of_the_pipeline():
    run = run_of(METHODS["kd"])
    batch = InMemoryBatches(DATA.train, VIEWS).batch(step_plans(run)[0])
    learner, teacher = new_student(run, DATA.train.labels), teacher_for(run.method)
    expected = step_of(run, learner, teacher)(batch, 0.05).loss
    student, teacher = models("kd")
    step = kdflow.DistillationStep(student, teacher, "kd")
    optimizer = torch.optim.SGD(step.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loss = step(batch.x, batch.labels)
    loss.backward()
    optimizer.step()
    assert torch.equal(loss.detach(), expected)
    assert same(state_of(student), state_of(learner.student))


@pytest.mark.parametrize("name", ["kd_tlcutmix_pick", "kd_cutmix", "kd_tlmixup", "ce_cutmix", "vid_kd", "dkd"])
def test_every_kind_of_method_trains_all_its_parameters(name):
    student, teacher = models(name)
    options = {"train_labels": DATA.train.labels, "image_size": 8, "epochs": 4}
    step = kdflow.DistillationStep(student, teacher, name, student_layers=LAYERS, teacher_layers=LAYERS, **options)
    losses = [step(X, LABELS, epoch=3) for _ in range(2)]
    sum(losses).backward()
    assert all(parameter.grad is not None for parameter in step.parameters())
    assert len(list(step.parameters())) >= len(list(student.parameters()))
    assert teacher is None or all(parameter.grad is None for parameter in teacher.parameters())


def test_the_views_of_a_call_depend_on_seed_and_calls_and_a_state_dict_restores_them():
    def losses(step, n):
        return [step(X, LABELS).item() for _ in range(n)]

    def new(seed=0):
        student, teacher = models("kd_tlcutmix")
        return kdflow.DistillationStep(student.eval(), teacher, "kd_tlcutmix", seed=seed)

    all_four, step = losses(new(), 4), new()
    assert len(set(all_four)) == 4 and losses(new(seed=1), 1) != all_four[:1]
    torch.manual_seed(7)
    assert losses(step, 2) == all_four[:2]
    resumed = new()
    resumed.load_state_dict(step.state_dict())
    assert losses(resumed, 2) == all_four[2:]


def test_crd_needs_labels_and_the_size_of_the_images():
    student, teacher = models("kd")
    with pytest.raises(kdflow.UserError, match="train_labels and image_size: needed by the loss crd"):
        kdflow.DistillationStep(student, teacher, "crd_kd", student_layers=LAYERS, teacher_layers=LAYERS)


# --- parts -------------------------------------------------------------------------------------------------


def test_strong_views_mix_images_of_the_batch():
    batch = kdflow.strong_view("mixup", X, torch.Generator().manual_seed(0))
    lam = batch.lam[:, None, None, None]
    torch.testing.assert_close(batch.images, lam * X[batch.index_a] + (1 - lam) * X[batch.index_b])
    torch.manual_seed(0)
    first = kdflow.strong_view("cutmix", X).images
    assert not torch.equal(first, kdflow.strong_view("cutmix", X).images)
    torch.manual_seed(0)
    assert torch.equal(first, kdflow.strong_view("cutmix", X).images)


def test_the_hardest_views_have_the_largest_divergence():
    teacher, student = torch.randn(8, 4), torch.randn(8, 4)
    scores = kl_per_sample(teacher, student, 4.0)
    picked = kdflow.pick_hardest("kl", teacher, student, keep=0.25)
    assert set(picked.tolist()) == set(scores.topk(2).indices.tolist())


def test_a_loss_on_features_works_alone():
    student, teacher = models("sp_kd")
    outputs = [FeatureExtractor("m", model, run_of(METHODS["kd"]).model)(X) for model in (student, teacher)]
    loss = kdflow.build_loss("sp", *outputs, LABELS)
    inputs = kdflow.LossInputs(*outputs, LABELS, torch.arange(8), 1.0)
    value = loss(inputs)
    assert value.requires_grad and value.item() > 0


def test_methods_and_models_are_found_by_name():
    assert "kd_tlcutmix_pick" in kdflow.list_methods()
    method = kdflow.load_method("kd").model_copy(update={"tau": 2.0})
    assert method.tau == 2.0
    assert isinstance(kdflow.create_model("resnet8", 10, 32), nn.Module)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kdflow.strong_view("cutmixx", X),
        lambda: kdflow.pick_hardest("kll", X, X),
        lambda: kdflow.load_method("kdd"),
        lambda: kdflow.create_model("resnet9", 10, 32),
    ],
)
def test_unknown_names_are_refused_with_a_similar_one(call):
    with pytest.raises(kdflow.UserError, match="did you mean"):
        call()
