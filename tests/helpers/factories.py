"""Records as training would have written them, without training."""

from paths import ROOT

from kdflow import config
from kdflow.training import record

EXPERIMENT = config.load(ROOT)
FULL = record.Budget(epochs=240, full_epochs=240, train_images=50000, full_train_images=50000, demo=False)
SMALL = record.Budget(epochs=2, full_epochs=240, train_images=500, full_train_images=50000, demo=False)
DEMO = record.Budget(epochs=40, full_epochs=40, train_images=300, full_train_images=300, demo=True)


def make_log(seed=0, top1=90.0, curve=None, method="kd", budget=FULL):
    """Return a log whose test accuracy after epoch i is `curve[i - 1]`, None where it was not measured."""
    run = EXPERIMENT.student_run(method, seed)
    curve = (top1 - 10, None, top1) if curve is None else curve
    points = tuple(
        record.Epoch(epoch=i, lr=0.05, loss=1 / i, first_step_loss=2 / i, top1=value)
        for i, value in enumerate(curve, 1)
    )
    return record.RunLog(
        name=f"seed {seed}",
        settings=run,
        settings_sha256=run.sha256,
        budget=budget,
        dataset_sha256="0" * 64,
        teacher_sha256="1" * 64,
        weights_sha256="2" * 64,
        curve=points,
        code=record.Code(version="0.1.0", sha256="3" * 64, commit=None, modified=None),
        machine=record.Machine(
            platform="p", device="cpu", cpus=2, threads=1, loader_workers=0, python="3", versions={"torch": "2"}
        ),
        timing=record.Timing(
            started="2025-01-01T00:00:00",
            seconds=1.0,
            images_per_second=2.0,
            resumed=0,
            teacher_views_computed=0,
            teacher_views_read=0,
        ),
    )


def make_record(seed=0, top1=90.0, curve=None, method="kd", budget=FULL, top5=99.0, correct="1"):
    """Return a record of one seed that ended at `top1`."""
    log = make_log(seed, top1, curve, method, budget)
    return record.RunRecord(
        **dict(log),
        final=record.Accuracy(top1=top1, top5=top5),
        best=record.best_epoch(log),
        agreement=95.0,
        correct=correct,
    )


def make_predictions(correct, seed=0):
    """Return a record of one seed whose predictions are right where `correct` is true."""
    top1 = 100 * sum(correct) / len(correct)
    return make_record(seed, top1, correct=record.pack_bits(correct))


def make_teacher(top1=95.5):
    """Return the record of a teacher."""
    accuracy = record.Accuracy(top1=top1, top5=99.9)
    return record.TeacherRecord(
        architecture="resnet20", source="trained in this project", sha256="4" * 64, accuracy=accuracy
    )
