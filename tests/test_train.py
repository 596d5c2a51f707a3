"""Training: a step against a slow oracle, a run that may be interrupted anywhere, and the same digits every time."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdflow import config, train
from kdflow.config import Compute, Data, Method, Model, RunSettings, Training, Views
from kdflow.data import ImageSet, Loaded, prepare
from kdflow.epoch_plan import draw_plan
from kdflow.errors import UserError
from kdflow.job import Job, TeacherFile
from kdflow.models import create_model, save_weights
from kdflow.progress import Event, Finished, Note, Update
from kdflow.record import Budget, RunLog, read

ROOT = Path(__file__).parents[1]
METHODS = config.load(ROOT).methods
CPU = torch.device("cpu")
# Widths of 16 and more, as shipped: torch 2.14's oneDNN corrupts the heap in backward at 4 channels, channels last.
SMALL = Model(family="resnet", options={"depth": 8, "widths": [16, 16, 16, 16]})
LARGER = Model(family="resnet", options={"depth": 8, "widths": [16, 16, 32, 32]})
VIEWS = Views(crop=2, flip=True, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))
KEY = "k" * 64


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _run(method: Method, **training: object) -> RunSettings:
    own = {
        "epochs": 3,
        "batch_size": 8,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "decay_at": (0.5, 0.75),
        "decay_by": 0.1,
        "test_every": 2,
    }
    return RunSettings(
        dataset="tiny",
        train_images=20,
        classes=4,
        image_size=8,
        views=VIEWS,
        role="student" if method.needs_teacher else "teacher",
        architecture="small",
        model=SMALL,
        method=method,
        training=Training(**{**own, **training}),
        seed=3,
        logits="online",
    )


def _images(n: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels.permute(0, 3, 1, 2), torch.randint(4, (n,), generator=generator))


DATA = Loaded(_images(20, 0), _images(10, 1), "d" * 64)


def _teacher(method: Method) -> nn.Module | None:
    """A teacher whose running statistics are not the initial ones and whose logits are not flat."""
    if not method.needs_teacher:
        return None
    torch.manual_seed(9)
    model = create_model("larger", LARGER, 4, 8).to(memory_format=torch.channels_last)
    for name, value in model.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 1.0)
    with torch.no_grad():
        model.fc.weight.mul_(8)
    return model.eval().requires_grad_(False)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# --- one step ----------------------------------------------------------------------------------------------


class Oracle:
    """The update as design and paper have it, in float64, with loops, and nothing of kdflow but the network."""

    def __init__(self, method: Method, student: nn.Module, teacher: nn.Module | None) -> None:
        self.method = method
        self.student = copy.deepcopy(student).double().train()
        self.teacher = None if teacher is None else copy.deepcopy(teacher).double().eval()
        self.velocity = [torch.zeros_like(parameter) for parameter in self.student.parameters()]

    def base_view(self, index: list[int], shift: list[list[int]], flip: list[bool]) -> torch.Tensor:
        x = np.zeros((len(index), 3, 8, 8))
        pixels = DATA.train.images.numpy()
        for i, image in enumerate(index):
            padded = np.pad(pixels[image], ((0, 0), (VIEWS.crop, VIEWS.crop), (VIEWS.crop, VIEWS.crop)))
            cut = padded[:, shift[i][0] : shift[i][0] + 8, shift[i][1] : shift[i][1] + 8]
            cut = cut[:, :, ::-1] if flip[i] else cut
            for channel in range(3):
                x[i, channel] = (cut[channel] / 255 - VIEWS.mean[channel]) / VIEWS.std[channel]
        return torch.from_numpy(x)

    @staticmethod
    def cutmix(x: torch.Tensor, box: list[int], partner: list[int]) -> torch.Tensor:
        top, bottom, left, right = box
        mixed = x.clone()
        for i in range(len(x)):
            mixed[i, :, top:bottom, left:right] = x[partner[i], :, top:bottom, left:right]
        return mixed

    def kl(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        p, q = torch.softmax(teacher / self.method.tau, 1), torch.softmax(student / self.method.tau, 1)
        return (p * (p.log() - q.log())).sum(1)

    def __call__(self, row: object, lr: float) -> float:
        method, tau = self.method, self.method.tau
        index = row.index.tolist()
        x = self.base_view(index, row.shift.tolist(), row.flip.tolist())
        labels = DATA.train.labels[index].tolist()
        logits = self.student(x)
        chosen = torch.stack([torch.log_softmax(logits[i], 0)[label] for i, label in enumerate(labels)])
        loss = -method.ce * chosen.sum() / len(index)
        if self.teacher is not None:
            loss = loss + method.kl * tau**2 * self.kl(self.teacher(x), logits).mean()
        if method.strong is not None:
            views = [self.cutmix(x, draw["box"].tolist(), draw["partner"].tolist()) for draw in row.strong]
            strong, taught = torch.cat(views), torch.cat([self.teacher(view) for view in views])
            if method.strong.pick is not None:
                with torch.no_grad():
                    scores = self.kl(taught, self.student(strong)).numpy()  # in train mode
                kept = np.argsort(-scores)[: len(scores) // 2].copy()
                strong, taught = strong[kept], taught[kept]
            assert len(strong) == len(x)
            loss = loss + method.kl * tau**2 * self.kl(taught, self.student(strong)).mean()
        gradients = torch.autograd.grad(loss, list(self.student.parameters()))
        with torch.no_grad():
            for parameter, gradient, velocity in zip(self.student.parameters(), gradients, self.velocity, strict=True):
                velocity.mul_(0.9).add_(gradient + 5e-4 * parameter)
                parameter.sub_(lr * velocity)
        return loss.item()


def _plan(run: RunSettings, epoch: int = 0, device: torch.device = CPU) -> list:
    return list(draw_plan(run.seed, epoch, 20, run.training.batch_size, 8, run.views, run.method.strong, device))


def _step(run: RunSettings, student: nn.Module, teacher: nn.Module | None, images: ImageSet) -> train.Step:
    optimizer = torch.optim.SGD(student.parameters(), lr=123.0, momentum=0.9, weight_decay=5e-4)
    return train.Step(run, images, student, teacher, optimizer)


@pytest.mark.parametrize("name", METHODS)
def test_steps_equal_the_oracle(name):
    run = _run(METHODS[name])
    student, teacher = train._new_model(run, CPU), _teacher(run.method)
    oracle, start = Oracle(run.method, student, teacher), _state(student)
    step = _step(run, student, teacher, DATA.train)
    rows = _plan(run)
    assert [len(row.index) for row in rows] == [8, 8, 4]
    # A learning rate of its own for every step; at higher ones a ReLU may fall to the other side by rounding alone.
    for row, lr in zip(rows, (0.01, 0.005, 0.02), strict=True):
        assert step(row, lr).item() == pytest.approx(oracle(row, lr), abs=1e-5)
    found, expected = student.state_dict(), oracle.student.state_dict()
    for key, value in found.items():
        torch.testing.assert_close(value.double(), expected[key].double(), rtol=1e-5, atol=1e-5, msg=key)
    forwards = 1 if run.method.strong is None else 3 if run.method.strong.pick else 2
    assert found["bn1.num_batches_tracked"].item() == 3 * forwards
    assert all((value.double() - start[key].double()).abs().max() > 1e-6 for key, value in found.items())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_teacher])
def test_the_teacher_is_left_as_it_was(name):
    run = _run(METHODS[name])
    teacher = _teacher(run.method)
    before = _state(teacher)
    step = _step(run, train._new_model(run, CPU), teacher, DATA.train)
    for row in _plan(run):
        step(row, 0.05)
    assert _same(_state(teacher), before)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_weight_decay_is_on_every_parameter():
    """With a loss of next to nothing only the decay is left: every parameter shrinks by lr * decay, biases too."""
    run = _run(Method(ce=1e-30, kl=0.0), weight_decay=0.5)
    student = train._new_model(run, CPU)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.uniform_(0.5, 1.0)
    before = _state(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0, momentum=0.9, weight_decay=0.5)
    train.Step(run, DATA.train, student, None, optimizer)(_plan(run)[0], 0.1)
    for key, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[key] * 0.95)


def test_cuda_is_close_to_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    cuda, run = torch.device("cuda"), _run(METHODS["kd_tlcutmix"])
    states = []
    for device in (CPU, cuda):
        student, teacher = train._new_model(run, device), _teacher(run.method).to(device)
        step = _step(run, student, teacher, ImageSet(DATA.train.images.to(device), DATA.train.labels.to(device)))
        losses = [step(row, 0.05).item() for row in _plan(run, device=device)]
        states.append((losses, {key: value.cpu() for key, value in student.state_dict().items()}))
    assert states[0][0] == pytest.approx(states[1][0], abs=1e-4)
    for key, value in states[0][1].items():
        torch.testing.assert_close(value, states[1][1][key], rtol=1e-4, atol=1e-4, msg=key)


# --- a run -------------------------------------------------------------------------------------------------


class StopError(Exception):
    """Raised from emit, as an interruption would be."""


def _fit(run: RunSettings, file: Path, events: list[Event], stop: tuple[int, int] | None = None, key: str = KEY):
    """Train from the seed, or from the checkpoint at `file`; `stop` interrupts at (epochs done, steps done)."""
    model = train._new_model(run, CPU)

    def emit(event: Event) -> None:
        events.append(event)
        if stop is not None and isinstance(event, Update) and (event.epoch, event.done) == stop:
            raise StopError

    progress = train.fit("run", run, DATA, model, _teacher(run.method), file, key, emit)
    return progress, _state(model)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    return {name: _fit(_run(method), folder / name, []) for name, method in METHODS.items()}


@pytest.mark.parametrize("stop", [(1, 3), (2, 6), (1, 5), (0, 2)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_with_the_same_digits(undisturbed, tmp_path, monkeypatch, name, stop):
    monkeypatch.setattr(train, "REPORT_EVERY", 0.0)  # an event after every step
    file, events = tmp_path / "run" / "checkpoint", []
    with pytest.raises(StopError):
        _fit(_run(METHODS[name]), file, [], stop)
    progress, state = _fit(_run(METHODS[name]), file, events)
    expected, expected_state = undisturbed[name]
    assert progress.curve == expected.curve
    assert _same(state, expected_state)
    assert progress.resumed == (1 if stop[0] else 0)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == ([f"going on after epoch {stop[0]}"] if stop[0] else [])
    assert min(event.done for event in events if isinstance(event, Update)) == 3 * stop[0] + 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_curve_is_what_was_trained(undisturbed):
    curve = undisturbed["kd"][0].curve
    assert [point.epoch for point in curve] == [1, 2, 3]
    # 9 steps; the rate falls where 0.5 and 0.75 of them are done, which is after steps 4.5 and 6.75.
    assert [point.lr for point in curve] == pytest.approx([0.05, 0.05, 0.005])
    assert [point.top1 is None for point in curve] == [True, False, False]  # every second epoch and the last
    assert undisturbed["kd"][0].resumed == 0


def test_loss_of_an_epoch_is_the_mean_over_its_images(undisturbed):
    run = _run(METHODS["kd"])
    student, teacher = train._new_model(run, CPU), _teacher(run.method)
    oracle = Oracle(run.method, student, teacher)
    total = sum(oracle(row, 0.05) * len(row.index) for row in _plan(run))
    assert undisturbed["kd"][0].curve[0].loss == pytest.approx(total / 20, abs=1e-5)


def _flip(share: float):
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[int(len(content) * share)] ^= 1
        return bytes(changed)

    return damage


DAMAGE = {
    "flipped in the header": _flip(0.01),
    "flipped in the middle": _flip(0.6),
    "flipped at the end": _flip(0.999),
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "text": lambda content: b"no checkpoint\n" * 100,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_starts_afresh_and_ends_with_the_same_digits(undisturbed, tmp_path, damage):
    run, file, events = _run(METHODS["kd"]), tmp_path / "checkpoint", []
    with pytest.raises(StopError):
        _fit(run, file, [], (2, 6))
    file.write_bytes(damage(file.read_bytes()))
    progress, state = _fit(run, file, events)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert len(notes) == 1
    assert "\n" not in notes[0]
    assert str(file) in notes[0]
    assert "first epoch" in notes[0]
    assert progress.curve == undisturbed["kd"][0].curve
    assert _same(state, undisturbed["kd"][1])
    assert progress.resumed == 0


def test_a_checkpoint_of_another_run_starts_afresh(undisturbed, tmp_path):
    run, file, events = _run(METHODS["kd"]), tmp_path / "checkpoint", []
    with pytest.raises(StopError):
        _fit(run, file, [], (2, 6), key="other" * 10)
    progress, state = _fit(run, file, events)
    assert any(isinstance(event, Note) and "another run" in event.text for event in events)
    assert progress.curve == undisturbed["kd"][0].curve
    assert _same(state, undisturbed["kd"][1])


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(tmp_path):
    with pytest.raises(UserError) as caught:
        _fit(_run(METHODS["ce"], lr=1e10), tmp_path / "checkpoint", [])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("run: ")
    assert "epoch 1" in message
    assert "1e+10" in message
    assert not (tmp_path / "checkpoint").exists()


def test_the_same_seed_gives_every_method_the_same_first_weights():
    torch.manual_seed(0)
    first = _state(train._new_model(_run(METHODS["ce"]), CPU))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert _same(first, _state(train._new_model(_run(METHODS["kd_tlcutmix_pick"]), CPU)))
    assert torch.equal(before, torch.get_rng_state())
    other = _run(METHODS["ce"]).model_copy(update={"seed": 4})
    assert not _same(first, _state(train._new_model(other, CPU)))


# --- a job -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A dataset of 40 small digits for training, and a teacher's weights."""
    folder = tmp_path_factory.mktemp("inputs")
    spec = Data(reader="digits", classes=10, image_size=8, train_images=40, test_images=1757)
    prepare("digits", spec, None, folder, folder / "digits.h5")
    torch.manual_seed(1)
    save_weights(create_model("larger", LARGER, 10, 8), folder / "teacher.safetensors")
    return folder


def _job(inputs: Path, folder: Path, scratch: Path, method: str = "kd_tlcutmix_pick") -> Job:
    base = _run(METHODS[method], epochs=2)
    run = base.model_copy(update={"dataset": "digits", "train_images": 20, "classes": 10})
    teacher = TeacherFile(architecture="larger", model=LARGER, weights=inputs / "teacher.safetensors")
    return Job(
        name="seed 3",
        run=run,
        budget=Budget(epochs=2, full_epochs=3, train_images=20, full_train_images=40, demo=True),
        dataset=inputs / "digits.h5",
        teacher=teacher if run.method.needs_teacher else None,
        weights=folder / "weights.safetensors",
        log=folder / "log.json",
        scratch=scratch,
        compute=Compute(device="cpu", threads=1, side_by_side=None),
    )


@pytest.mark.parametrize("method", ["ce", "kd_tlcutmix_pick"])
def test_a_job_run_twice_gives_the_same_log_apart_from_timing(inputs, tmp_path, method):
    logs, weights, events = [], [], []
    for name, scratch in (("a", "s1"), ("b", "s2"), ("c", "s2")):  # the third finds the second's checkpoint, done
        job = _job(inputs, tmp_path / name, tmp_path / scratch, method)
        train.run_job(job, events.append)
        logs.append(read(job.log, RunLog))
        weights.append(job.weights.read_bytes())
    plain = [log.model_dump(exclude={"timing"}) for log in logs]
    assert plain[0] == plain[1] == plain[2]
    assert weights[0] == weights[1] == weights[2]
    assert [log.timing.resumed for log in logs] == [0, 0, 1]
    assert (logs[0].teacher_sha256 is None) == (method == "ce")
    assert logs[0].settings == job.run
    assert logs[0].settings_sha256 == job.run.sha256
    assert len(logs[0].curve) == 2
    assert all(math.isfinite(point.loss) for point in logs[0].curve)
    finished = [event.scratch for event in events if isinstance(event, Finished)]
    assert len(finished) == 3
    assert finished[0].parent == tmp_path / "s1"


@pytest.mark.parametrize("name", ["cuda:7", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused(name):
    kind = name.split(":", maxsplit=1)[0]
    if kind == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one here")
    if kind == "cuda" and torch.cuda.device_count() > int(name.split(":")[1]):
        pytest.skip("there is one here")
    with pytest.raises(UserError) as caught:
        train.pick_device(name)
    assert str(caught.value).startswith(f"params.yaml: compute.device: {name}: ")
    assert "\n" not in str(caught.value)


def test_devices_that_are_there():
    assert train.pick_device("cpu") == CPU
    assert train.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
