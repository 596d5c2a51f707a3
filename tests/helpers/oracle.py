"""A slow step in float64 from the formulas, which the training step must equal."""

import copy
import itertools

import numpy as np
import torch
from small import DATA, VIEWS
from torch import nn

from kdflow import config
from kdflow.methods.losses import LossInputs
from kdflow.models.features import FeatureExtractor
from kdflow.training.epoch_plan import StepPlan
from kdflow.training.step import StudentWithLoss


class Oracle:
    """The update of the paper in float64, with loops; of kdflow it uses the networks and the extra loss only."""

    def __init__(self, run: config.RunSettings, learner: StudentWithLoss, teacher: nn.Module | None) -> None:
        self.run, self.method = run, run.method
        self.learner = copy.deepcopy(learner).double().train()
        self.student = self.learner.student
        self.teacher = None if teacher is None else copy.deepcopy(teacher).double().eval()
        self.velocity = [torch.zeros_like(parameter) for parameter in self.learner.parameters()]

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

    def strong_view(self, x: torch.Tensor, draw: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[int], float]:
        """Return x', the partner of each image, and lambda, the weight of the image."""
        name, view, index = self.method.strong.view, x.clone(), list(range(len(x)))
        if name == "identity":
            return view, index, 1.0
        if name == "cutout":
            row, column = draw["corner"].tolist()
            for i, j in itertools.product(range(row, row + 2), range(column, column + 2)):
                if 0 <= i < 8 and 0 <= j < 8:
                    view[:, :, i, j] = 0
            return view, index, 1.0
        partner = draw["partner"].tolist()[: len(x)]
        if name == "mixup":
            lam = draw["lam"].double().item()
            for i in index:
                view[i] = lam * x[i] + (1 - lam) * x[partner[i]]
            return view, partner, lam
        top, bottom, left, right = draw["box"].tolist()
        for i in index:
            view[i, :, top:bottom, left:right] = x[partner[i], :, top:bottom, left:right]
        return view, partner, 1 - (bottom - top) * (right - left) / 64

    def kl(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        p, q = torch.softmax(teacher / self.method.tau, 1), torch.softmax(student / self.method.tau, 1)
        return (p * (p.log() - q.log())).sum(1)

    @staticmethod
    def ce(logits: torch.Tensor, label: int) -> torch.Tensor:
        return -torch.log_softmax(logits, 0)[label]

    def scores(self, images: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
        pick = self.method.strong.pick
        if pick.criterion == "random":
            return noise.numpy()
        if pick.criterion == "teacher_entropy":
            p = torch.softmax(self.teacher(images), 1)
            return -(p * p.log()).sum(1).numpy()
        self.student.train(pick.student_mode == "train")
        logits = self.student(images)
        self.student.train()
        if pick.criterion == "student_entropy":
            p = torch.softmax(logits, 1)
            return -(p * p.log()).sum(1).numpy()
        return self.kl(self.teacher(images), logits).numpy()

    def strong_loss(self, x: torch.Tensor, labels: list[int], plan: StepPlan) -> torch.Tensor:
        method, strong, tau = self.method, self.method.strong, self.method.tau
        views = [self.strong_view(x, draw) for draw in plan.strong]
        images = torch.cat([view for view, _, _ in views])
        mixes = [(i, partner[i], lam) for _, partner, lam in views for i in range(len(x))]
        self.ratio = None
        if strong.pick is not None:
            with torch.no_grad():
                scores = self.scores(images, plan.noise)
            picked = np.argsort(-scores, kind="stable")[: int(len(scores) * strong.pick.keep)].copy()
            self.ratio = scores[picked].mean() / scores.mean()
            images, mixes = images[picked], [mixes[k] for k in picked]
        logits = self.student(images)
        hard = [
            lam * self.ce(s, labels[i]) + (1 - lam) * self.ce(s, labels[j])
            for s, (i, j, lam) in zip(logits, mixes, strict=True)
        ]
        hard = torch.stack(hard).mean()
        weight = method.kl if strong.weight is None else strong.weight
        loss = method.ce * hard if strong.replaces_x else 0.0
        if strong.label == "mixed":
            return loss + weight * hard
        if weight == 0:
            return loss
        teacher_logits = self.teacher(images)
        if strong.label == "interpolated":
            logits_x = self.teacher(x)
            teacher_logits = torch.stack([lam * logits_x[i] + (1 - lam) * logits_x[j] for i, j, lam in mixes])
        return loss + weight * tau**2 * self.kl(teacher_logits, logits).mean()

    def __call__(self, plan: StepPlan, lr: float) -> float:
        method = self.method
        index = plan.index.tolist()
        x, labels = self.base_view(index, plan.shift.tolist(), plan.flip.tolist()), DATA.train.labels[index].tolist()
        loss = torch.zeros((), dtype=torch.float64)
        if method.strong is None or not method.strong.replaces_x:
            student = FeatureExtractor("student", self.student, self.run.model)(x)
            hard = [self.ce(s, label) for s, label in zip(student.logits, labels, strict=True)]
            uniform = [torch.stack([self.ce(s, c) for c in range(len(s))]).mean() for s in student.logits]
            e = method.label_smoothing
            loss = method.ce * ((1 - e) * torch.stack(hard).mean() + e * torch.stack(uniform).mean())
            if method.kl > 0:
                loss = loss + method.kl * method.tau**2 * self.kl(self.teacher(x), student.logits).mean()
            if method.loss is not None:
                draw = getattr(self.learner.loss, "draw", None)
                generator = torch.Generator().manual_seed(plan.seed)
                inputs = LossInputs(
                    student=student,
                    teacher=FeatureExtractor("teacher", self.teacher, self.run.teacher.model)(x),
                    labels=torch.tensor(labels),
                    index=plan.index,
                    run_fraction=1 / 3,  # the first of 3 epochs
                    draws=None if draw is None else draw(len(index), generator),
                    teacher_head=self.teacher.fc,
                )
                loss = loss + method.loss.weight * self.learner.loss(inputs)
        if method.strong is not None:
            loss = loss + self.strong_loss(x, labels, plan)
        loss.backward()
        with torch.no_grad():
            for parameter, velocity in zip(self.learner.parameters(), self.velocity, strict=True):
                velocity.mul_(0.9).add_(parameter.grad + 5e-4 * parameter)
                parameter.sub_(lr * velocity)
                parameter.grad = None
        return loss.item()
