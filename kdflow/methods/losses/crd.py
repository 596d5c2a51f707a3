"""Contrastive representation distillation (Tian et al., 2020): both embeddings of an image agree, others differ.

Formula, after their Eq. 18: for each side (1/b) sum over images of -log D1 - sum over negatives of log D0, and both
sides summed. D1 = o / (o + m/n + eps) of the image itself and D0 = (m/n) / (o + m/n + eps) of each of its m
negatives, among n training images, eps = 1e-7. o = exp(<v, bank entry> / T) / Z. The student's side compares
v_s = W_s f_s / ||W_s f_s||, a trained embedding (with bias) of its pooled feature, with the bank of the teacher's
embeddings; the teacher's side v_t = W_t f_t / ||W_t f_t||, trained as well, with the bank of the student's. Z of each
side is n times the mean of exp(<v, bank entry> / T) over the first batch, and is kept from then on. After each step
the bank's entries of the batch become momentum * entry + (1 - momentum) * v, normalised to length 1. Negatives are
images of other classes; for each image, every set of them has the same probability. The sets of a batch are dependent.

Settings: dim (default 128), the width of the embeddings; negatives (16384), m; temperature (0.07), T; momentum (0.5);
replacement (false), whether an image may be drawn twice, as for ImageNet. The usual weight is 0.8.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.methods.losses import LossInputs, require_positive
from kdflow.models.features import Outputs, pooled_features

NEEDS_FEATURES = True
NEEDS_BATCH = True
EPS = 1e-7
MAX_SIMILARITIES = 2**24  # in memory at a time: 64 MB; a batch of 64 and CIFAR-100's bank make a fifth of them


class ContrastiveRepresentation(nn.Module):
    """Contrast of both embedded pooled features with the memory bank of the other side.

    The rows of the banks are sorted by class, see `NegativeSampler`. log Z is infinite until the first batch.
    """

    bank_student: Float[Tensor, "n dim"]
    bank_teacher: Float[Tensor, "n dim"]
    log_z_student: Float[Tensor, ""]
    log_z_teacher: Float[Tensor, ""]

    def __init__(
        self, widths: tuple[int, int], sampler: NegativeSampler, dim: int, temperature: float, momentum: float
    ) -> None:
        super().__init__()
        self.sampler, self.temperature, self.momentum = sampler, temperature, momentum
        self.embed_student, self.embed_teacher = (nn.Linear(width, dim) for width in widths)
        for side in ("student", "teacher"):
            bank = (2 * torch.rand(len(sampler.bank_row), dim) - 1) / math.sqrt(dim / 3)
            self.register_buffer(f"bank_{side}", bank)
            self.register_buffer(f"log_z_{side}", torch.tensor(math.inf))

    def draw(self, b: int, generator: torch.Generator) -> Tensor:
        """Draw the random numbers of a step, from which the negatives of `b` images follow."""
        return self.sampler.draw(b, generator)

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Return the loss of a batch, without its weight, and update the banks."""
        student, teacher = pooled_features("crd", inputs.student, inputs.teacher)
        v_student = F.normalize(self.embed_student(student))
        v_teacher = F.normalize(self.embed_teacher(teacher))
        assert inputs.draws is not None
        row, negatives = self.sampler.bank_row[inputs.index], self.sampler.rows(inputs.index, inputs.draws)
        loss = self._contrast(v_student, self.bank_teacher, self.log_z_student, row, negatives)
        loss = loss + self._contrast(v_teacher, self.bank_student, self.log_z_teacher, row, negatives)
        with torch.no_grad():
            for bank, v in ((self.bank_student, v_student), (self.bank_teacher, v_teacher)):
                bank[row] = F.normalize(self.momentum * bank[row] + (1 - self.momentum) * v)
        return loss

    def _contrast(
        self,
        v: Float[Tensor, "b dim"],
        bank: Float[Tensor, "n dim"],
        log_z: Float[Tensor, ""],
        row: Int64[Tensor, " b"],
        negatives: Int64[Tensor, "b m"],
    ) -> Float[Tensor, ""]:
        """Return the loss of one side; computed in logarithms, so that no temperature overflows."""
        bank = bank.clone()  # the backward pass needs it, and forward() updates the bank itself
        positive = (v * bank[row]).sum(1, keepdim=True)
        log_o = torch.cat([positive, gathered_products(v, bank, negatives)], dim=1) / self.temperature
        n, m = len(bank), negatives.shape[1]
        with torch.no_grad():
            first = log_o.logsumexp((0, 1)) - math.log(log_o.numel()) + math.log(n)
            log_z.copy_(torch.where(log_z.isinf(), first, log_z))
        log_o = log_o - log_z
        noise = math.log(m / n + EPS)
        minus_log_d1 = F.softplus(noise - log_o[:, 0])
        minus_log_d0 = F.softplus(log_o[:, 1:] - noise).sum(1) + m * math.log1p(EPS * n / m)
        return (minus_log_d1 + minus_log_d0).mean()


class NegativeSampler(nn.Module):
    """Draws of `count` images of other classes for each image of a batch.

    Images are sorted by class, so that each class is a range of rows: image i has row `bank_row[i]`, and its class
    the `class_size[i]` rows from `first_row[i]` on. The buffers follow from the labels and are not saved.

    Raises:
        ValueError: there are fewer than `count` images of other classes.
    """

    bank_row: Int64[Tensor, " n"]
    first_row: Int64[Tensor, " n"]
    class_size: Int64[Tensor, " n"]
    arange: Int64[Tensor, " n"]

    def __init__(self, labels: Int64[Tensor, " n"], count: int, replacement: bool) -> None:
        super().__init__()
        labels = labels.cpu()
        sizes = labels.bincount()
        self.count, self.replacement, self.largest = count, replacement, int(sizes.max())
        most = len(labels) - self.largest
        if most == 0:
            raise ValueError("crd contrasts classes, and the training set has only one; choose another loss")
        if count > most and not replacement:
            raise ValueError(
                f"negatives: must be {most} or less, the number of images outside the largest class, not {count}; "
                "set it in loss.options"
            )
        buffers = {
            "bank_row": labels.argsort(stable=True).argsort(),
            "first_row": (sizes.cumsum(0) - sizes)[labels],
            "class_size": sizes[labels],
            "arange": torch.arange(len(labels)),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, index: Int64[Tensor, " b"], generator: torch.Generator) -> Int64[Tensor, "b {self.count}"]:
        """Draw, and return the rows of images of other classes, for each image of `index`."""
        return self.rows(index, self.draw(len(index), generator).to(index.device))

    def draw(self, b: int, generator: torch.Generator) -> Tensor:
        """Draw independent numbers [b, count] with replacement, else a permutation of all rows [n]."""
        if self.replacement:
            return torch.randint(2**62, (b, self.count), generator=generator)
        return torch.randperm(len(self.bank_row), generator=generator)

    def rows(self, index: Int64[Tensor, " b"], draws: Tensor) -> Int64[Tensor, "b {self.count}"]:
        """Return the rows of images of other classes, for each image of `index`."""
        rows = self._with_replacement if self.replacement else self._without_replacement
        return rows(self.first_row[index, None], self.class_size[index, None], draws)

    def _with_replacement(
        self, first: Int64[Tensor, "b 1"], size: Int64[Tensor, "b 1"], random: Int64[Tensor, "b {self.count}"]
    ) -> Int64[Tensor, "b {self.count}"]:
        """Draw rows independently; rows from the class of the image on are shifted by its size."""
        rows = random % (len(self.bank_row) - size)
        return torch.where(rows < first, rows, rows + size)

    def _without_replacement(
        self, first: Int64[Tensor, "b 1"], size: Int64[Tensor, "b 1"], permutation: Int64[Tensor, " n"]
    ) -> Int64[Tensor, "b {self.count}"]:
        """Take the first `count` rows of other classes in a permutation of all rows, from an offset on.

        The batch shares one permutation. The offsets of the images are evenly spaced and wrap around, so that each
        image sees a uniform permutation. Rows of its class among the first `count` (holes) are replaced by
        the next rows of other classes; the size of the largest class bounds how many are needed.
        """
        n, m, most, b = len(self.bank_row), self.count, self.largest, len(first)
        spacing = max(1, n // b)
        ring = torch.cat([permutation, permutation[: m + most]])
        rows = ring.unfold(0, m + most, spacing)[:b].clone(memory_format=torch.contiguous_format)

        inverse = permutation.new_zeros(n + most).scatter_(0, permutation, self.arange)
        same_class = inverse.unfold(0, most, 1).index_select(0, first[:, 0])  # positions of its class
        hole = (same_class - spacing * self.arange[:b, None]) % n
        hole = torch.where(self.arange[:most] < size, hole, m).clamp(max=m)  # column m is cut off below

        spare = rows[:, m:]
        usable = (spare < first) | (spare >= first + size)
        queue = spare.new_zeros(b, most + 1).scatter_(1, usable.cumsum(1) * usable, spare)  # from 1 on; 0 is unused
        return rows.scatter_(1, hole, queue.gather(1, (hole < m).cumsum(1)))[:, :m]


def build(
    student: Outputs,
    teacher: Outputs,
    labels: Int64[Tensor, " n"],
    *,
    dim: int = 128,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    replacement: bool = False,
) -> ContrastiveRepresentation:
    """Return fresh embeddings and banks, drawn from torch's global generator.

    Raises:
        ValueError: a model names no pooled feature, an option is out of range, or there are too few negatives.
    """
    for name, value in (("dim", dim), ("negatives", negatives)):
        if value < 1:
            raise ValueError(f"{name}: must be 1 or more, not {value}; set it in loss.options")
    require_positive(temperature=temperature)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: must be 0 or more and less than 1, not {momentum}; set it in loss.options")
    student_feature, teacher_feature = pooled_features("crd", student, teacher)
    widths = (student_feature.shape[1], teacher_feature.shape[1])
    sampler = NegativeSampler(labels, negatives, replacement)
    return ContrastiveRepresentation(widths, sampler, dim, temperature, momentum)


def gathered_products(
    v: Float[Tensor, "b dim"], bank: Float[Tensor, "n dim"], rows: Int64[Tensor, "b m"]
) -> Float[Tensor, "b m"]:
    """Return the product of each v with its rows of the bank, as columns of v @ bank.T: never [b, m, dim]."""
    images = max(1, MAX_SIMILARITIES // len(bank))
    parts = zip(torch.split(v, images), torch.split(rows, images), strict=True)
    return torch.cat([(part @ bank.T).gather(1, columns) for part, columns in parts])
