"""Distil in a custom training loop: `python examples/training_loop.py`."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import kdflow

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 8 - 1
labels = torch.tensor(digits.target)
loader = DataLoader(TensorDataset(images[:400], labels[:400]), batch_size=64, shuffle=True)


def train(step, epochs):
    """Train the student of a step; return its test accuracy."""
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            step(x, y, epoch=epoch).backward()
            optimizer.step()
    with torch.no_grad():
        return (step.student.eval()(images[400:]).argmax(1) == labels[400:]).float().mean().item()


teacher, student = kdflow.create_model("resnet20", 10, 8), kdflow.create_model("resnet8", 10, 8)
top1 = train(kdflow.DistillationStep(teacher, None, "ce"), epochs=2)
print(f"teacher {100 * top1:.2f} %")
print(f"student {100 * train(kdflow.DistillationStep(student, teacher, 'kd_tlcutmix_pick'), epochs=2):.2f} %")
