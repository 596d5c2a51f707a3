"""Precision settings: their rounding errors, and the cases in which they are refused."""

import json
import subprocess
import sys

import pytest
import torch
from paths import HELPERS, ROOT
from small import DATA, METHODS, batches_of, run_of, step_of, teacher_for
from torch import nn

from kdflow.config import Precision
from kdflow.core.errors import UserError
from kdflow.models import create_model
from kdflow.models.precision import check_supported, fold_batch_norm, make_forward, use_tf32
from kdflow.training.run import teacher_extractor
from kdflow.training.step import new_student


def _losses(method: str = "kd_tlcutmix_pick", steps: int = 3, **precision: object) -> list[float]:
    run = run_of(METHODS[method]).model_copy(update={"precision": Precision(**precision)})
    step = step_of(run, new_student(run, DATA.train.labels), teacher_for(run.method))
    return [step(batch, 0.001).loss.item() for batch in batches_of(run)[:steps]]


def test_a_folded_teacher_has_the_same_logits_to_rounding():
    teacher = teacher_for(METHODS["kd"])
    x = batches_of(run_of(METHODS["kd"]))[0].x
    fused = fold_batch_norm("larger", teacher, 8)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), teacher(x), rtol=1e-4, atol=1e-4)
    for method in ("kd_tlcutmix_pick", "dist_tlcutmix", "ctkd", "kd_standardised"):
        assert _losses(method, fold_teacher=True) == pytest.approx(_losses(method), rel=1e-4), method


def test_bfloat16_is_close_and_gives_float32():
    plain = _losses()
    for field in ("teacher", "student"):
        rounded = _losses(**{field: "bfloat16"})
        assert rounded == pytest.approx(plain, rel=0.05)
        assert rounded != pytest.approx(plain, rel=1e-5)
    x = batches_of(run_of(METHODS["kd"]))[0].x
    assert make_forward(teacher_for(METHODS["kd"]), "bfloat16", "none")(x).dtype == torch.float32
    run = run_of(METHODS["at_kd"]).model_copy(update={"precision": Precision(teacher="bfloat16")})
    outputs = teacher_extractor(run, teacher_for(run.method))(x)
    assert {outputs.logits.dtype, outputs.pooled.dtype, *(feature.dtype for feature in outputs.maps)} == {torch.float32}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("method", ["kd", "dist"])
def test_a_compiled_step_is_the_same_to_rounding(tmp_path, method):
    """Runs in another process: torch's compiler does not work with the shape checks of the tests."""
    (tmp_path / "script.py").write_text(
        "import sys\n"
        f"sys.path[:0] = {[str(HELPERS), str(ROOT / 'tests/models')]}\n"
        "from test_precision import _losses\n"
        f"print([_losses({method!r}, steps=1, compile=mode) for mode in ('none', 'default')])\n"
    )
    script = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    plain, compiled = json.loads(done.stdout)
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_features_of_a_folded_or_compiled_model_are_refused():
    check_supported(Precision(fold_teacher=True, compile="default"), with_features=False)
    check_supported(Precision(teacher="bfloat16", student="bfloat16", tf32=True), with_features=True)
    for field, value in (("fold_teacher", True), ("compile", "default")):
        with pytest.raises(UserError, match=f"params.yaml: precision.{field}: not possible with a loss on features"):
            check_supported(Precision(**{field: value}), with_features=True)


class Branching(nn.Module):
    """A model that also uses the convolution's output before batch norm, which folding would change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.fc((x + self.norm(x)).mean((2, 3)))


class Between(Branching):
    """A model with an in-place operation between convolution and batch norm, which are then no pair."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(x).relu_()).mean((2, 3)))


def _with_statistics(model: nn.Module) -> nn.Module:
    model.norm.running_mean.fill_(0.5)
    model.norm.running_var.fill_(3.0)
    return model.eval()


def test_a_model_that_cannot_be_folded_is_refused_or_unchanged():
    with pytest.raises(UserError) as caught:
        fold_batch_norm("small", _with_statistics(Branching()), 8)
    assert str(caught.value).startswith(
        "params.yaml: precision.fold_teacher: small cannot be folded: its logits change"
    )
    assert isinstance(fold_batch_norm("small", _with_statistics(Between()), 8).norm, nn.BatchNorm2d)


def test_tf32_is_set_for_products_and_convolutions():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            use_tf32(allowed)
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "resnet8x4", "mobilenetv2"])
def test_other_families_fold(name):

    from kdflow import config

    torch.manual_seed(0)
    model = create_model(name, config.load(ROOT).models[name], 4, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fold_batch_norm(name, model, 32)(x), model(x), rtol=1e-4, atol=1e-4)
