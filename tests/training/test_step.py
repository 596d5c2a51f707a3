"""A step equals a slow oracle, for every shipped method and for combinations that no recipe has."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from oracle import Oracle
from paths import ROOT
from small import CPU, DATA, METHODS, batches_of, run_of, same, state_of, step_of, teacher_for
from torch import nn

from kdflow import config
from kdflow.config import Architecture, ExtraLoss, Method, Model, Pick, StrongView
from kdflow.core.errors import UserError
from kdflow.data import ImageSet
from kdflow.training.step import StudentWithLoss, check_last_batch_norm, new_student


def _assert_equals_the_oracle(method: Method) -> StudentWithLoss:
    run = run_of(method)
    learner, teacher = new_student(run, DATA.train.labels), teacher_for(method)
    before = None if teacher is None else state_of(teacher)
    oracle, start = Oracle(run, learner, teacher), state_of(learner)
    step = step_of(run, learner, teacher)
    batches = batches_of(run)
    assert [len(batch.labels) for batch in batches] == [8, 8, 4]
    # Another learning rate in every step; at higher ones rounding alone may change the sign before a ReLU.
    scale = 1.0 if method.loss is None else 0.1
    for batch, factor in zip(batches, (0.001, 0.0005, 0.002), strict=True):
        lr = scale * factor
        result = step(batch, lr)
        # The weight of pkt, 30,000, amplifies rounding, which differs between processors.
        rel = 1e-4 if method.loss is not None and method.loss.name == "pkt" else 1e-5
        assert result.loss.item() == pytest.approx(oracle(batch.plan, lr), rel=rel, abs=1e-5)
        if method.strong is not None and method.strong.pick is not None:
            assert result.pick_ratio.item() == pytest.approx(oracle.ratio, rel=1e-4)
        else:
            assert result.pick_ratio is None
    found, expected = learner.state_dict(), oracle.learner.state_dict()
    for key, value in found.items():
        torch.testing.assert_close(value.double(), expected[key].double(), rtol=1e-4, atol=1e-5, msg=key)
        assert value.isfinite().all(), key
    assert all(not torch.equal(value, start[key]) for key, value in found.items() if key.startswith("student."))
    if teacher is not None:
        assert same(state_of(teacher), before)
        assert not teacher.training
        assert all(parameter.grad is None for parameter in teacher.parameters())
    return learner


@pytest.mark.parametrize("name", METHODS)
def test_steps_of_every_shipped_method_equal_the_oracle(name):
    _assert_equals_the_oracle(METHODS[name])


VIEW_NAMES, LABELS, PICKS = config.choices("views"), config.choices("labels"), config.choices("picks")


@pytest.mark.parametrize(("view", "label"), list(itertools.product(VIEW_NAMES, LABELS)))
def test_every_view_goes_with_every_label(view, label):
    _assert_equals_the_oracle(Method(ce=0.1, kl=0.9, strong=StrongView(view=view, label=label)))


PICKED_VIEWS = ["cutmix", "mixup", "cutout"]


@pytest.mark.parametrize(("view", "label", "criterion"), list(itertools.product(PICKED_VIEWS, LABELS, PICKS)))
def test_every_pick_goes_with_every_random_view_and_every_label(view, label, criterion):
    pick = Pick(criterion=criterion, pool=3, keep=0.3, student_mode="eval" if label == "mixed" else "train")
    strong = StrongView(view=view, label=label, weight=0.7, pick=pick)
    _assert_equals_the_oracle(Method(ce=0.2, kl=0.5, tau=2.0, strong=strong))


@pytest.mark.parametrize("name", config.choices("losses"))
def test_every_loss_goes_with_a_picked_view(name):
    options = {"negatives": 8} if name == "crd" else {}
    loss = ExtraLoss(name=name, weight=0.5, options=options)
    strong = StrongView(view="mixup", label="interpolated", weight=1.0, pick=Pick(criterion="student_entropy"))
    learner = _assert_equals_the_oracle(Method(ce=1.0, kl=0.0, loss=loss, strong=strong))
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_replaced_x_is_not_used():
    """There is one forward pass per step with `replaces_x`: batch norm has counted as many batches as steps."""
    learner = _assert_equals_the_oracle(Method(ce=0.1, kl=0.9, strong=StrongView(view="cutmix", replaces_x=True)))
    assert learner.student.bn1.num_batches_tracked.item() == 3
    assert _assert_equals_the_oracle(METHODS["kd_tlcutmix"]).student.bn1.num_batches_tracked.item() == 6


@pytest.mark.parametrize(
    ("name", "passes"),
    [("kl", 3), ("student_entropy", 3), ("teacher_entropy", 2), ("random", 2)],
)
def test_only_criteria_that_use_the_student_update_its_batch_norm(name, passes):
    method = Method(ce=0.1, kl=0.9, strong=StrongView(view="cutmix", pick=Pick(criterion=name)))
    learner = _assert_equals_the_oracle(method)
    assert learner.student.bn1.num_batches_tracked.item() == 3 * passes


def test_scoring_in_eval_mode_does_not_update_batch_norm():
    learner = _assert_equals_the_oracle(METHODS["kd_tlcutmix_pick_eval"])
    assert learner.student.bn1.num_batches_tracked.item() == 3 * 2
    assert learner.student.training


def test_identity_is_kd_with_twice_the_weight():
    """Two passes over the same x give the same gradient, so the loss is ce CE + 2 kl KL and so is the update."""
    once, twice = run_of(Method(ce=0.1, kl=1.8)), run_of(Method(ce=0.1, kl=0.9, strong=StrongView(view="identity")))
    learners = [new_student(run, DATA.train.labels) for run in (once, twice)]
    losses = [
        step_of(run, learner, teacher_for(run.method))(batches_of(run)[0], 0.01).loss.item()
        for run, learner in zip((once, twice), learners, strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(learners[0].parameters(), learners[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_weight_decay_is_on_every_parameter():
    """Every parameter, biases too, shrinks by lr * decay if the loss is negligible."""
    run = run_of(Method(ce=1e-30, kl=0.0), weight_decay=0.5)
    learner = new_student(run, DATA.train.labels)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.uniform_(0.5, 1.0)
    before = state_of(learner)
    step = step_of(run, learner, None)
    step.optimizer = torch.optim.SGD(learner.parameters(), lr=1.0, momentum=0.9, weight_decay=0.5)
    step(batches_of(run)[0], 0.1)
    for key, parameter in learner.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[key] * 0.95)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["kd_tlcutmix", "kd_tlcutmix_pick", "crd_kd", "vid_kd", "cc_kd"])
def test_cuda_is_close_to_cpu(name):
    cuda, run = torch.device("cuda"), run_of(METHODS[name])
    states = []
    for device in (CPU, cuda):
        train = ImageSet(DATA.train.images.to(device), DATA.train.labels.to(device))
        learner, teacher = new_student(run, train.labels), teacher_for(run.method).to(device)
        step = step_of(run, learner, teacher)
        losses = [step(batch, 0.005).loss.item() for batch in batches_of(run, train=train)]
        states.append((losses, {key: value.cpu() for key, value in learner.state_dict().items()}))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-4)
    for key, value in states[0][1].items():
        torch.testing.assert_close(value, states[1][1][key], rtol=1e-3, atol=1e-4, msg=key)


def test_the_same_seed_gives_every_method_the_same_first_weights():
    torch.manual_seed(0)
    first = state_of(new_student(run_of(METHODS["ce"]), DATA.train.labels).student)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for name in ("kd_tlcutmix_pick", "crd_kd", "vid"):
        assert same(first, state_of(new_student(run_of(METHODS[name]), DATA.train.labels).student))
    assert torch.equal(before, torch.get_rng_state())
    other = run_of(METHODS["ce"]).model_copy(update={"seed": 4})
    assert not same(first, state_of(new_student(other, DATA.train.labels).student))


# --- refused combinations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "method", "picked", "fails"),
    [
        ("resnet8", "ce", None, False),  # its last maps are 2x2
        ("vgg8", "ce", None, True),
        ("vgg8", "kd_tlcutmix_pick", None, True),  # of its pool of 2 views 1 is kept, and x is 1
        ("vgg8", "kd_cutmix_only", None, True),
        ("vgg8", "kd_cutmix_only", Pick(criterion="kl", pool=2), True),
        ("vgg8", "kd_cutmix_only", Pick(criterion="kl", pool=4), False),
        ("resnet8", "hint", None, False),
        ("resnet8", "crd", None, False),
        ("resnet8", "srrl", None, True),
    ],
)
def test_a_last_batch_of_one_is_refused_if_its_step_fails(model, method, picked, fails):
    settings = METHODS[method]
    if picked is not None:
        settings = settings.model_copy(update={"strong": settings.strong.model_copy(update={"pick": picked})})
    run = run_of(settings, batch_size=19).model_copy(update={"model": config.load(ROOT).models[model]})
    step = step_of(run, new_student(run, DATA.train.labels), teacher_for(settings))
    batch = batches_of(run)[-1]
    assert len(batch.labels) == 1
    message = r"more than 1 value per channel|too few for its batch norm"
    for call in (lambda: step(batch, 0.1), lambda: check_last_batch_norm(run)):
        with pytest.raises(ValueError, match=message) if fails else nullcontext():
            call()


def _refused(run: config.RunSettings, *, message_has: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        step_of(run, new_student(run, DATA.train.labels), teacher_for(run.method))
    message = str(caught.value)
    assert "\n" not in message
    for part in message_has:
        assert part in message, message


@pytest.mark.parametrize("view", ["cutmix", "mixup"])
def test_a_batch_of_one_has_no_partners(view):
    method = Method(ce=0.1, kl=0.9, strong=StrongView(view=view))
    _refused(run_of(method, batch_size=1), message_has=["batch_size", view, "2 or more"])
    assert step_of(run_of(METHODS["kd_cutout"], batch_size=1), *_pair("kd_cutout"))  # needs none


def _pair(name: str) -> tuple[StudentWithLoss, nn.Module | None]:
    run = run_of(METHODS[name])
    return new_student(run, DATA.train.labels), teacher_for(run.method)


@pytest.mark.parametrize("name", ["at", "vid"])
def test_feature_lists_of_different_length_are_refused(name):
    run = run_of(METHODS[name])
    shorter = run.teacher.model.model_copy(update={"features": ("conv1", "layer1", "layer3", "layer2", "layer2.0")})
    _refused(
        run.model_copy(update={"teacher": Architecture(name="larger", model=shorter)}),
        message_has=["recipes/methods.yaml", name, "features"],
    )


@pytest.mark.parametrize("name", ["at", "sp", "cc", "pkt", "vid", "crd"])
def test_a_loss_on_features_is_refused_for_a_model_without_features(name):
    bare = Model(family="resnet", options={"depth": 8, "widths": [16, 16, 16, 16]})
    run = run_of(METHODS[name]).model_copy(update={"model": bare})
    _refused(run, message_has=["recipes/methods.yaml", name, "head" if name in ("cc", "pkt", "crd") else "features"])


def test_a_layer_that_the_model_does_not_have_is_refused():
    wrong = run_of(METHODS["at"]).model.model_copy(update={"features": ("conv1", "layer9")})
    _refused(run_of(METHODS["at"]).model_copy(update={"model": wrong}), message_has=["small.features", "layer9"])


def test_more_negatives_than_images_of_other_classes_are_refused():
    crd = config.load(config.PACKAGE.parent).methods["crd"]
    _refused(run_of(crd), message_has=["recipes/methods.yaml", "crd", "negatives", "15 or less"])


def test_an_unknown_option_of_a_loss_is_refused():
    loss = ExtraLoss(name="at", weight=1.0, options={"power": 2})
    _refused(run_of(Method(ce=1.0, kl=0.0, loss=loss)), message_has=["recipes/methods.yaml", "at", "power"])


def test_an_image_smaller_than_the_model_allows_is_refused():
    model = Model(family="torchvision", options={"name": "alexnet"})
    run = run_of(METHODS["ce"]).model_copy(update={"model": model, "architecture": "alexnet"})
    _refused(run, message_has=["model alexnet", "8 px"])
