"""A run of several processes, for test_distributed.py."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import CPU, DATA, METHODS, VIEWS, online_source, run_of, state_of, teacher_for
from torch import Tensor, nn
from torch import distributed as dist

from kdflow.config import Resize, RunSettings
from kdflow.core.errors import UserError
from kdflow.core.progress import Event, RunUpdate
from kdflow.data import ImageSet, Loaded
from kdflow.data.image_files import FileList, ImageFiles
from kdflow.methods.losses import LossInputs
from kdflow.methods.views import channel_mean_std, normalise
from kdflow.training import distributed, loop
from kdflow.training.batches import make_batches
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.evaluate import predict_logits
from kdflow.training.step import new_student

METHODS_TO_TRAIN = ("ce", "kd", "kd_tlcutmix", "kd_tlcutmix_pick", "dkd", "dkd_tlcutmix_pick", "a trained loss")
# Losses of one image and of a batch, on features and on logits, with and without parameters.
LOSSES_TO_TRAIN = ("at_kd", "vid", "sp", "rkd", "hint", "crd_kd_tlcutmix_pick", "dist", "ctkd")


class TrainedLoss(nn.Module):
    """A loss on logits with a parameter, whose gradient depends on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs: LossInputs) -> Tensor:
        """Return the mean squared difference of the scaled student's logits and the teacher's, for the class."""
        label = inputs.labels[:, None]
        difference = self.scale * inputs.student.logits.gather(1, label) - inputs.teacher.logits.gather(1, label)
        return difference.square().mean()


def run_by(name: str, epochs: int = 2) -> RunSettings:
    """Return a run with batches of 17 and 3 images, and a learning rate that does not amplify rounding errors."""
    batch_size = 10 if name == "dist" else 17  # correlations of a class over three images amplify rounding
    return run_of(METHODS.get(name, METHODS["dkd"]), epochs=epochs, batch_size=batch_size, lr=0.002)


class StopError(Exception):
    """Raised from emit, as an interruption would be."""


def fit(name: str, file: Path, stop: int | None = None, device: torch.device = CPU, epochs: int = 2) -> dict:
    run = run_by(name, epochs)
    train_set, test_set = (ImageSet(s.images.to(device), s.labels.to(device)) for s in (DATA.train, DATA.test))
    images = Loaded(train_set, test_set, DATA.class_names, DATA.sha256)
    teacher = teacher_for(run.method)
    teacher = teacher and online_source(run, teacher.to(device))
    learner = new_student(run, train_set.labels)
    if name == "a trained loss":
        learner.loss = TrainedLoss().to(device)

    def emit(event: Event) -> None:
        if stop is not None and isinstance(event, RunUpdate) and event.epoch == stop:
            raise StopError

    progress = loop.fit("run", run, images, learner, teacher, file, "k" * 64, emit)
    curve = [(point.loss, point.pick_ratio, point.top1) for point in progress.curve]
    state = {key: value.cpu() for key, value in state_of(learner).items()}
    return {
        "curve": curve,
        "state": state,
        "logits": predict_logits(learner.student, images.test, run.base_view).cpu().clone(),
    }


def check_shares() -> None:
    for n in range(9):
        rows = torch.arange(3.0 * n).reshape(n, 3)
        local = rows[distributed.shard(n)]
        assert n // 2 <= len(local) <= (n + 1) // 2
        assert torch.equal(distributed.all_gather_rows(local, n), rows)


def check_batch_norm() -> None:
    """Compare with torch's on the whole batch, in float64, for any split, even with an empty share."""
    draw = random.Random(0)
    torch.manual_seed(0)
    for case in range(12):
        n, shape = draw.randint(2, 7), (3, *draw.choice([(1, 2), (2, 2), (3, 1)]))
        whole = nn.BatchNorm2d(3, momentum=draw.choice([0.1, None]), affine=case % 3 > 0).double()
        for value in (*whole.parameters(), whole.running_mean):
            value.data.normal_()
        shared = distributed.SharedBatchNorm.like(whole)
        reference = nn.BatchNorm2d(3, momentum=whole.momentum, affine=whole.affine).double()
        reference.load_state_dict(whole.state_dict())
        for _ in range(2):
            x, weight = torch.randn(n, *shape).double() * 3 + 5, torch.randn(n, *shape).double()
            cut = draw.randint(0, n)
            local = slice(0, cut) if distributed.rank() == 0 else slice(cut, n)
            whole_x, local_x = x.clone().requires_grad_(), x[local].clone().requires_grad_()
            expected, found = reference(whole_x), shared(local_x)
            torch.testing.assert_close(found, expected[local])
            (expected.sin() * weight).sum().backward()
            (found.sin() * weight[local]).sum().backward()
            torch.testing.assert_close(local_x.grad, whole_x.grad[local])
        for a, b in zip(shared.parameters(), reference.parameters(), strict=True):
            dist.all_reduce(a.grad)
            torch.testing.assert_close(a.grad, b.grad)
        assert list(shared.state_dict()) == list(reference.state_dict())
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(shared.state_dict()[key], value)
        torch.testing.assert_close(shared.eval()(x), reference.eval()(x))


class Fused(nn.BatchNorm2d):
    """A subclass with another forward pass, as timm has."""


def check_refusal() -> None:
    with pytest.raises(UserError) as caught:
        distributed.wrap_ddp(nn.Sequential(nn.Conv2d(3, 8, 1), Fused(8)))
    assert str(caught.value).startswith("params.yaml: compute.processes_per_run: the model's 1 is a Fused, ")


def check_files(folder: Path) -> None:
    """Check that each process reads its share of the files, and both get the whole batch."""
    paths = [f"{i}.png" for i in range(7)]
    if distributed.rank() == 0:
        for i, path in enumerate(paths):
            Image.new("RGB", (20 + i, 15), (30 * i, 200 - 20 * i, 9 * i)).save(folder / path)
    dist.barrier()
    files = ImageFiles(
        folder, FileList(np.array(paths, "S"), np.zeros(7, int), np.arange(7)), torch.arange(7), 8, workers=0
    )
    views = VIEWS.model_copy(update={"crop": 0, "resize": Resize(side=9, area=(0.2, 1.0))})
    plan = draw_plan(0, 0, 7, 4, 8, views, None, CPU)
    for batch, index in zip(make_batches(files, views)(plan), plan.order.split(4), strict=True):
        seeds = plan.image_seeds[batch.plan.offset : batch.plan.offset + len(index)]
        requests = [list(pair) for pair in zip(index.tolist(), seeds.tolist(), strict=True)]
        (pixels,) = files.for_training([requests], views)
        assert torch.equal(batch.x, normalise(pixels, *channel_mean_std(views, CPU)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    for value in model.parameters():
        value.data.fill_(0.01)
    batches = files.for_testing(9, views, slice(0, 7))
    expected = torch.cat([model(normalise(x, *channel_mean_std(views, CPU))) for x in batches])
    torch.testing.assert_close(predict_logits(model, files, views), expected)


def check_resume(folder: Path, uninterrupted: dict) -> None:
    file = folder / "resumed"
    try:
        fit("kd_tlcutmix_pick", file, stop=1)
    except StopError:
        dist.barrier()
    assert file.exists()
    resumed = fit("kd_tlcutmix_pick", file)
    assert resumed["curve"] == uninterrupted["curve"]
    assert all(torch.equal(value, uninterrupted["state"][key]) for key, value in resumed["state"].items())


def main(rank: int, port: int, folder: Path, device: str, processes: int = 2, names: tuple[str, ...] = ()) -> None:
    """Run one process, with the environment that torchrun sets; tests/launch starts torchrun itself."""
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    os.environ.update({key: str(value) for key, value in environment.items()})
    torch.set_num_threads(1)
    local_device = torch.device(device) if device == "cpu" else torch.device(device, rank)
    with distributed.process_group(local_device):
        if names:
            torch.save({name: fit(name, folder / name, epochs=10) for name in names}, folder / f"{rank}.pt")
            return
        results = {name: fit(name, folder / name, device=local_device) for name in METHODS_TO_TRAIN}
        torch.save(results, folder / f"{rank}.pt")
        if device == "cpu":
            check_shares()
            check_batch_norm()
            check_refusal()
            check_files(folder)
            check_resume(folder, results["kd_tlcutmix_pick"])
