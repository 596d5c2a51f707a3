"""Contrastive representation distillation (Tian et al., 2020): an image's two embeddings agree, and no two images' do.

Formula, after their Eq. 18: for each side (1/b) sum over images of -log D1 - sum over negatives of log D0, and both
sides summed. D1 = o / (o + m/n + eps) of the image itself and D0 = (m/n) / (o + m/n + eps) of each of its m
negatives, among n training images, eps = 1e-7. o = exp(<v, bank entry> / T) / Z. The student's side compares
v_s = W_s f_s / ||W_s f_s||, a trained embedding (with bias) of its pooled feature, with the bank of the teacher's
embeddings; the teacher's side v_t = W_t f_t / ||W_t f_t||, trained as well, with the bank of the student's. Z of each
side is n times the mean of exp(<v, bank entry> / T) over the first batch, and stays so. After each step the bank's
entries of the batch become momentum * entry + (1 - momentum) * v, of length 1. Negatives are images of other
classes: for each image a set of its own, every set as likely as another.

Settings: dim (default 128), the width of the embeddings; negatives (16384), m; temperature (0.07), T; momentum (0.5);
replacement (false), whether an image may be drawn twice, as for ImageNet. The usual weight is 0.8.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdflow.models.features import Outputs, pooled_features

EPS = 1e-7
AT_ONCE = 2**24  # similarities to a whole bank that are held at a time: 64 MB, CIFAR-100's batch of 64 is a fifth


class ContrastiveRepresentation(nn.Module):
    """Embeds both pooled features and contrasts each with the other side's bank.

    The banks' rows are in the order of `others.row`; log Z is infinite until the first batch.
    """

    bank_student: Float[Tensor, "n dim"]
    bank_teacher: Float[Tensor, "n dim"]
    log_z_student: Float[Tensor, ""]
    log_z_teacher: Float[Tensor, ""]

    def __init__(
        self, widths: tuple[int, int], others: NegativeSampler, dim: int, temperature: float, momentum: float
    ) -> None:
        super().__init__()
        self.others, self.temperature, self.momentum = others, temperature, momentum
        self.embed_student, self.embed_teacher = (nn.Linear(width, dim) for width in widths)
        for side in ("student", "teacher"):
            bank = (2 * torch.rand(len(others.row), dim) - 1) / math.sqrt(dim / 3)
            self.register_buffer(f"bank_{side}", bank)
            self.register_buffer(f"log_z_{side}", torch.tensor(math.inf))

    def forward(
        self, student: Outputs, teacher: Outputs, index: Int64[Tensor, " b"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight. The banks move on."""
        ours, theirs = pooled_features("crd", student, teacher)
        v_student = F.normalize(self.embed_student(ours))
        v_teacher = F.normalize(self.embed_teacher(theirs))
        row, negatives = self.others.row[index], self.others(index, generator)
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
        """One side's loss; all in logarithms, so that no temperature overflows."""
        bank = bank.clone()  # what the backward pass needs, while the bank itself moves on
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
    """Draws `count` images of other classes for each image of a batch; buffers are known from the labels.

    Images are told by rows: `row` of each image in the order of classes, so a class is a stretch of rows.

    Raises:
        ValueError: there are not as many.
    """

    row: Int64[Tensor, " n"]
    start: Int64[Tensor, " n"]
    size: Int64[Tensor, " n"]
    counting: Int64[Tensor, " n"]

    def __init__(self, labels: Int64[Tensor, " n"], count: int, replacement: bool) -> None:
        super().__init__()
        labels = labels.cpu()
        sizes = labels.bincount()
        self.count, self.replacement, self.largest = count, replacement, int(sizes.max())
        most = len(labels) - self.largest
        if most == 0:
            raise ValueError("crd contrasts classes, and the training set has one only; choose another loss")
        if count > most and not replacement:
            raise ValueError(
                f"negatives: {count} asked for, only {most} images are of another class than the largest; "
                f"set loss.options.negatives to {most} or fewer"
            )
        buffers = {
            "row": labels.argsort(stable=True).argsort(),
            "start": (sizes.cumsum(0) - sizes)[labels],
            "size": sizes[labels],
            "counting": torch.arange(len(labels)),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, index: Int64[Tensor, " b"], generator: torch.Generator) -> Int64[Tensor, "b {self.count}"]:
        """Rows of images of other classes, for each image of `index`."""
        draw = self._with_replacement if self.replacement else self._without_replacement
        return draw(self.start[index, None], self.size[index, None], generator)

    def _with_replacement(
        self, start: Int64[Tensor, "b 1"], size: Int64[Tensor, "b 1"], generator: torch.Generator
    ) -> Int64[Tensor, "b {self.count}"]:
        """Independent draws from the rows of other classes; those behind the own class are moved past it."""
        random = torch.randint(2**62, (len(start), self.count), generator=generator).to(start.device)
        rows = random % (len(self.row) - size)
        return torch.where(rows < start, rows, rows + size)

    def _without_replacement(
        self, start: Int64[Tensor, "b 1"], size: Int64[Tensor, "b 1"], generator: torch.Generator
    ) -> Int64[Tensor, "b {self.count}"]:
        """The first `count` rows of other classes from some place on, in one permutation of all.

        One permutation serves the batch: the images begin evenly spaced and go round in a circle, so that what each
        meets is a uniform permutation. Rows of its own class among the first `count` (holes) are overwritten with
        the first rows of other classes behind them; there are enough within the size of the largest class.
        """
        n, m, most, b = len(self.row), self.count, self.largest, len(start)
        permutation = torch.randperm(n, generator=generator).to(start.device)
        spacing = max(1, n // b)
        ring = torch.cat([permutation, permutation[: m + most]])
        rows = ring.unfold(0, m + most, spacing)[:b].clone(memory_format=torch.contiguous_format)

        place = permutation.new_zeros(n + most).scatter_(0, permutation, self.counting)
        own = place.unfold(0, most, 1).index_select(0, start[:, 0])  # where the permutation has the own class
        hole = (own - spacing * self.counting[:b, None]) % n
        hole = torch.where(self.counting[:most] < size, hole, m).clamp(max=m)  # m is a place that is cut off

        behind = rows[:, m:]
        usable = (behind < start) | (behind >= start + size)
        queue = behind.new_zeros(b, most + 1).scatter_(1, usable.cumsum(1) * usable, behind)  # from 1 on; 0 is unused
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
    """Fresh embeddings and banks from torch's global generator.

    Raises:
        ValueError: a model names no pooled feature, an option is out of range, or there are too few negatives.
    """
    for name, value in (("dim", dim), ("negatives", negatives)):
        if value < 1:
            raise ValueError(f"{name}: must be 1 or more, not {value}; set it in loss.options")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: must be finite and more than 0, not {temperature}; set it in loss.options")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: must be 0 or more and less than 1, not {momentum}; set it in loss.options")
    ours, theirs = pooled_features("crd", student, teacher)
    widths, others = (ours.shape[1], theirs.shape[1]), NegativeSampler(labels, negatives, replacement)
    return ContrastiveRepresentation(widths, others, dim, temperature, momentum)


def gathered_products(
    v: Float[Tensor, "b dim"], bank: Float[Tensor, "n dim"], rows: Int64[Tensor, "b m"]
) -> Float[Tensor, "b m"]:
    """v's product with each of its rows of the bank: of whole products the columns, never [b, m, dim]."""
    images = max(1, AT_ONCE // len(bank))
    parts = zip(torch.split(v, images), torch.split(rows, images), strict=True)
    return torch.cat([(part @ bank.T).gather(1, columns) for part, columns in parts])
