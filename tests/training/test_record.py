"""Run records: their figures, and what is read is what was written."""

import json
import re
import statistics

import numpy as np
import pytest
from factories import DEMO, EXPERIMENT, FULL, SMALL, make_log, make_record, make_teacher
from hypothesis import given
from hypothesis import strategies as st

from kdflow.core.errors import UserError
from kdflow.training import record

PERCENT = st.floats(0, 100)


@given(st.lists(PERCENT, min_size=2, max_size=6))
def test_the_spread_is_mean_and_sample_deviation(values):
    found = record.mean_std(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-12)


def test_the_spread_as_text():
    assert str(record.mean_std([1.0, 2.0, 3.5])) == "2.17 (1.26)"
    assert str(record.mean_std([70.0, 70.0])) == "70.00 (0.00)"


def test_one_seed_has_no_deviation():
    found = record.mean_std([71.234])
    assert (found.mean, found.std, found.n) == (71.234, None, 1)
    assert str(found) == "71.23"


def test_the_best_epoch_is_the_earliest_of_the_highest():
    assert record.best_epoch(make_log(curve=(1.0, 5.0, 3.0, 5.0))) == record.Best(epoch=2, top1=5.0)
    assert record.best_epoch(make_log(curve=(1.0,))) == record.Best(epoch=1, top1=1.0)


def test_the_best_epoch_is_one_that_was_tested():
    log = make_log(curve=(None, None, 0.0, None, 0.0))
    assert log.tested == {3: 0.0, 5: 0.0}
    assert record.best_epoch(log) == record.Best(epoch=3, top1=0.0)


@given(
    st.lists(st.none() | st.integers(0, 5).map(float), min_size=1, max_size=8).filter(
        lambda c: any(v is not None for v in c)
    )
)
def test_the_best_epoch_by_hand(curve):
    highest = max(value for value in curve if value is not None)
    assert record.best_epoch(make_log(curve=curve)) == record.Best(epoch=curve.index(highest) + 1, top1=highest)


def test_a_full_run_has_no_stamp():
    assert FULL.budget_note == ""
    longer = FULL.model_copy(update={"epochs": 480})
    assert longer.budget_note == ""


def test_a_small_run_says_that_it_is_small():
    assert FULL.model_copy(update={"epochs": 2}).budget_note == "2 of 240 epochs"
    assert FULL.model_copy(update={"train_images": 5000}).budget_note == "5,000 of 50,000 training images"
    assert DEMO.budget_note == "demo dataset"
    both = SMALL.model_copy(update={"demo": True})
    assert both.budget_note == "demo dataset, 2 of 240 epochs, 500 of 50,000 training images"


def test_the_budget_of_a_run_is_taken_from_run_and_dataset():
    run = EXPERIMENT.student_run("kd", 0)
    small = run.model_copy(update={"train_images": 7, "training": run.training.model_copy(update={"epochs": 3})})
    found = record.make_budget(small, EXPERIMENT.datasets["digits"])
    assert found == record.Budget(epochs=3, full_epochs=40, train_images=7, full_train_images=300, demo=True)
    assert record.make_budget(small, EXPERIMENT.datasets["cifar100"]).demo is False


@pytest.mark.parametrize("made", [make_record(3, 77.7), make_log(curve=(None, 2.0)), make_teacher()], ids=type)
def test_what_is_read_is_what_was_written(tmp_path, made):
    file = tmp_path / "new" / "a.json"
    record.write_record(file, made)
    assert record.read_record(file, type(made)) == made
    assert json.loads(file.read_text())  # plain JSON, for other tools


@given(PERCENT, st.lists(PERCENT, min_size=1, max_size=4))
def test_no_digit_is_lost_in_writing(top1, curve):
    made = make_record(0, top1, curve)
    assert record.RunRecord.model_validate_json(made.model_dump_json()) == made


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'a.json'}: no such record")):
        record.read_record(tmp_path / "a.json", record.RunRecord)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"null"])
def test_what_is_no_record_is_named_in_one_line(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        record.read_record(file, record.RunRecord)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert ": :" not in str(caught.value)


def test_a_record_with_a_field_too_many_or_too_few_names_the_field(tmp_path):
    content = make_record().model_dump(mode="json")
    file = tmp_path / "a.json"
    file.write_text(json.dumps({**content, "later": 1}))
    with pytest.raises(UserError, match="later"):
        record.read_record(file, record.RunRecord)
    del content["final"]["top5"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"final\.top5"):
        record.read_record(file, record.RunRecord)


def test_a_log_is_no_record(tmp_path):
    record.write_record(tmp_path / "a.json", make_log())
    with pytest.raises(UserError, match="RunRecord"):
        record.read_record(tmp_path / "a.json", record.RunRecord)


def test_the_code_that_runs_is_known():
    code = record.code_version()
    assert code.commit is None or re.fullmatch("[0-9a-f]{40}", code.commit)
    assert (code.commit is None) == (code.modified is None)
    assert re.fullmatch("[0-9a-f]{64}", code.sha256)
    assert record.code_sha256() == code.sha256


def test_the_machine_is_known():
    machine = record.machine_info("cpu", 3, 4, 2)
    assert (machine.device, machine.threads, machine.processes_per_run) == ("cpu", 3, 2)
    assert machine.versions["numpy"] == np.__version__
    assert set(machine.versions) == set(record.LIBRARIES)
