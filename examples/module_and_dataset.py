"""Distil a module on a dataset: `python examples/module_and_dataset.py`. Any module and map-style dataset will do."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset, random_split

import kdflow

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 8 - 1
dataset = TensorDataset(images, torch.tensor(digits.target))
train, test = random_split(dataset, [400, 1397])

teacher = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
student = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10))
kdflow.distill(teacher, None, train, test, method="ce", epochs=5)
result = kdflow.distill(student, teacher, train, test, method="kd_tlcutmix_pick", epochs=10)
print(f"teacher {result.teacher_accuracy.top1:.2f} %, student {result.accuracy.top1:.2f} %")
result.save("student.safetensors")
