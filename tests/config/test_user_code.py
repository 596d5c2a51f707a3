"""Parts of a user's code: found by import path, checked before anything runs, and part of a run's settings."""

import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from small import DATA, METHODS, batches_of, run_of, step_of, teacher_for
from tree import make_tree

from kdflow import config, data
from kdflow.cli import students
from kdflow.config import ExtraLoss, Method, Model, StrongView, user_code
from kdflow.core.errors import UserError
from kdflow.methods.views import load_view
from kdflow.models import create_model
from kdflow.models.features import output_shapes
from kdflow.pipeline import package
from kdflow.training import record, teacher_logits
from kdflow.training.record import RunLog
from kdflow.training.step import new_student


def _recipe(folder, name, old, new):
    file = folder / f"recipes/{name}.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def _one_line(folder):
    with pytest.raises(UserError) as caught:
        config.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_recipes_of_a_project_may_name_its_code(user_project):
    folder, name = user_project
    experiment = config.load(folder)
    assert experiment.models["my_large"].family == f"{name}.models:build"
    assert not experiment.methods["my_distance"].needs_features
    assert experiment.datasets["my_squares"].data.reader == f"{name}.data:read"


@pytest.mark.parametrize(
    ("recipe", "old", "new", "message"),
    [
        (
            "models",
            ".models:build, o",
            ".model:build, o",
            "models.yaml: my_large.family: {}.model: no module {}.model in",
        ),
        (
            "models",
            "{}.models:build, o",
            "nowhere:build, o",
            "my_large.family: nowhere: no module nowhere in the project",
        ),
        ("models", ":build, o", ":biuld, o", "my_large.family: {}.models:biuld: models.py has no biuld"),
        (
            "models",
            ":build, o",
            ":b:c, o",
            "my_large.family: expected the name of a built-in part, or package.module:name",
        ),
        ("methods", ":Darker", ":Brighter", "methods.yaml: my_view.strong.view: {}.views:Brighter: views.py has no"),
        (
            "methods",
            "{}.losses:Distance",
            "{}.models:build",
            "my_distance.loss.name: {}.models:build: models.py must set NEEDS",
        ),
        ("datasets", ":read", ":write", "datasets.yaml: my_squares.data.reader: {}.data:write: data.py has no write"),
    ],
)
def test_names_that_do_not_exist_are_one_line_with_the_key(user_project, recipe, old, new, message):
    folder, name = user_project
    _recipe(folder, recipe, old.replace("{}", name), new.replace("{}", name))
    assert message.replace("{}", name) in _one_line(folder)


def test_a_file_that_is_not_python_is_one_line(user_project):
    folder, name = user_project
    (folder / name / "views.py").write_text("def draw(:\n")
    assert f"my_view.strong.view: {name}.views:Darker: {folder}/{name}/views.py is not valid Python" in _one_line(
        folder
    )


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        (
            "models",
            "models:NUMBER",
            "models:NUMBER: is no function but a value of type int; expected a function or class",
        ),
        (
            "models",
            "models:too_few",
            "too_few: has the parameters (num_classes); expected a function or class that is ",
        ),
        ("models", "models:gone", "models has no gone"),
        ("models", "gone:build", "gone:build: cannot be imported: ModuleNotFoundError: No module named"),
        (
            "views",
            "views:WithoutDraw",
            "WithoutDraw.draw: is missing; expected a function or class that is called with",
        ),
        (
            "views",
            "views:NotStatic",
            "NotStatic.draw: has the parameters (self, sizes, image_size, generator); expected",
        ),
        ("views", "models:build", "build.draw: is missing"),
        ("data", "models:too_few", "(num_classes); expected a function or class that is called with (spec, folder,"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_key(user_project, kind, path, message):
    folder, name = user_project
    config.load(folder)
    with pytest.raises(UserError) as caught:
        user_code.load_part(kind, f"{name}.{path}", "recipes/x.yaml: my.key")
    assert str(caught.value).startswith(f"recipes/x.yaml: my.key: {name}.")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_project_without_code_is_not_searched_for_modules(user_project):
    folder, name = user_project
    for kind in ("models", "methods", "datasets"):
        (folder / f"recipes/{kind}.yaml").unlink()
    config.load(folder)
    assert str(folder.resolve()) not in sys.path
    with pytest.raises(UserError, match="cannot be imported: ModuleNotFoundError"):
        user_code.load_part("models", f"{name}.models:build", "key")


def test_a_module_of_the_project_replaces_no_other(user_project):
    folder, _ = user_project
    (folder / "textwrap.py").write_text("raise SystemExit\n")
    config.load(folder)
    assert user_code.load_part("models", "textwrap:wrap", "key").build is textwrap.wrap


# --- identity -------------------------------------------------------------------------------------------------


def test_the_settings_have_the_hash_of_all_code_that_a_part_imports(user_project):
    folder, name = user_project
    config.load(folder)
    part = f"{name}.models:build"
    run = run_of(METHODS["kd"]).model_copy(update={"model": Model(family=part)})
    hashes = [run.with_user_code().user_code]
    for file, text in (("models.py", "# edited"), ("layers.py", "# edited"), ("__init__.py", "# edited")):
        with (folder / name / file).open("a") as stream:
            stream.write(text)
        hashes.append(run.with_user_code().user_code)
    assert len({one[part] for one in hashes}) == 4
    (folder / name / "losses.py").write_text("# not imported by it")
    (folder / "other.py").write_text("# neither")
    assert run.with_user_code().user_code == hashes[-1]
    assert len({run.model_copy(update={"user_code": one}).sha256 for one in hashes}) == 4


def test_modules_beside_the_package_count_and_libraries_do_not(user_project):
    folder, name = user_project
    config.load(folder)
    (folder / f"{name}_b.py").write_text(f"import {name}_c\n")
    (folder / f"{name}_c.py").write_text(f"import torch, kdflow.models, missing_module\nfrom {name} import models\n")
    (folder / name / "models.py").write_text(f"from {name}_b import x\nfrom . import layers\nfrom ..no import y\n")
    seen = [user_code.code_sha256(f"{name}.models:x")]
    for file in (f"{name}_b.py", f"{name}_c.py", f"{name}/layers.py"):
        with (folder / file).open("a") as stream:
            stream.write("#")
        seen.append(user_code.code_sha256(f"{name}.models:x"))
    assert len(set(seen)) == 4


def test_built_in_parts_leave_the_settings_as_they_were():
    run = run_of(METHODS["kd_tlcutmix_pick"])
    assert run.with_user_code() == run
    assert "user_code" not in run.model_dump()


def test_code_that_has_changed_since_the_settings_were_made_is_refused(user_project):
    folder, name = user_project
    config.load(folder)
    run = run_of(METHODS["kd"]).model_copy(update={"model": Model(family=f"{name}.models:build")}).with_user_code()
    run.check_user_code()
    (folder / name / "layers.py").write_text("WIDTH = 32\n")
    run.check_user_code([f"{name}.views:Darker"])
    with pytest.raises(UserError, match=f"{name}.models:build: the code has changed since this run was started"):
        run.check_user_code()
    (folder / name / "models.py").unlink()
    with pytest.raises(UserError, match="no module"):
        run.check_user_code()


def test_cached_teacher_logits_are_of_one_version_of_the_view(user_project):
    folder, name = user_project
    config.load(folder)
    run = run_of(Method(ce=0.1, kl=0.9, strong=StrongView(view=f"{name}.views:Darker")))
    before = teacher_logits.plan_cache_key(run.with_user_code(), "cpu")
    (folder / name / "views.py").write_text("# another")
    assert teacher_logits.plan_cache_key(run.with_user_code(), "cpu") != before
    assert teacher_logits.cache_key(run.with_user_code(), "t", "d") == teacher_logits.cache_key(run, "t", "d")


def test_a_project_s_stages_depend_on_the_code_by_the_recipe_s_entry(user_project):
    folder, name = user_project

    def entry():
        package.write_package(folder, folder / "package.json")
        return json.loads((folder / "package.json").read_text())["recipes"]["models"]

    before = entry()
    (folder / name / "layers.py").write_text("WIDTH = 32\n")
    after = entry()
    assert {key for key in after if after[key] != before[key]} == {"my_large", "my_small"}
    assert "user_code" not in before["resnet8"]


def test_a_file_s_record_does_not_choose_code_to_run(tmp_path):
    user_code.check_trusted(tmp_path, {"my.models:build"}, {"my.models:build"})
    user_code.check_trusted(tmp_path, {"resnet"}, ())
    with pytest.raises(UserError, match=r"its model is code, os:system, which is run only if recipes/models\.yaml has"):
        user_code.check_trusted(tmp_path, {"resnet", "os:system"}, {"resnet"})


def test_code_of_an_ensemble_s_members_is_found_at_any_depth():
    inner = {"family": "ensemble", "options": {"members": [{"name": "a", "model": {"family": "textwrap:wrap"}}]}}
    members = [{"name": "b", "model": inner}, {"name": "c", "model": {"family": "resnet", "options": {}}}, "name", 3]
    model = Model(family="ensemble", options={"members": members})
    assert model.families == {"ensemble", "textwrap:wrap", "resnet"}
    assert ("models", "textwrap:wrap") in model.parts.values()
    assert list(run_of(METHODS["kd"]).model_copy(update={"model": model}).with_user_code().user_code) == [
        "textwrap:wrap"
    ]


# --- use ------------------------------------------------------------------------------------------------------


def test_a_model_is_built_with_its_options(user_project):
    folder, name = user_project
    models = config.load(folder).models
    small, large = (create_model(one, models[one], 4, 8) for one in ("my_small", "my_large"))
    assert [sum(type(layer).__name__ == "Conv2d" for layer in model) for model in (small, large)] == [1, 2]
    assert small(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    with pytest.raises(UserError, match=r"my_small\.family: .*:a_string: returns str, expected torch\.nn\.Module"):
        create_model("my_small", Model(family=f"{name}.models:a_string"), 4, 8)
    with pytest.raises(UserError, match=r"model my_small: options .*unexpected keyword argument 'width'"):
        create_model("my_small", Model(family=f"{name}.models:build", options={"width": 3}), 4, 8)


def test_a_loss_is_added_to_that_of_the_step(user_project):
    folder, name = user_project
    config.load(folder)
    loss = ExtraLoss(name=f"{name}.losses:Distance", weight=0.5, options={"power": 1})
    assert (loss.needs_features, loss.needs_batch) == (False, False)
    method = Method(ce=1.0, kl=0.0, loss=loss)
    run, teacher = run_of(method), teacher_for(method)
    learner = new_student(run, DATA.train.labels)
    batch = batches_of(run)[0]
    total = step_of(run, learner, teacher).batch_loss(batch, None)[0]
    student, labels = learner.student(batch.x), batch.labels
    expected = torch.nn.functional.cross_entropy(student, labels) + 0.5 * (student - teacher(batch.x)).abs().mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_view_is_drawn_and_labelled_by_the_teacher(user_project):
    folder, name = user_project
    config.load(folder)
    method = Method(ce=0.0, kl=1.0, tau=1.0, strong=StrongView(view=f"{name}.views:Darker", replaces_x=True))
    run, teacher = run_of(method), teacher_for(method)
    learner = new_student(run, DATA.train.labels)
    batches = batches_of(run)
    factors = [batch.plan.strong[0]["factor"].item() for batch in batches]
    assert len(set(factors)) == len(batches)
    x = batches[0].x * factors[0]
    expected = torch.nn.functional.kl_div(
        learner.student(x).log_softmax(1), teacher(x).log_softmax(1), reduction="batchmean", log_target=True
    )
    assert step_of(run, learner, teacher).batch_loss(batches[0], None)[0].item() == pytest.approx(
        expected.item(), rel=1e-4
    )
    assert load_view(f"{name}.views:Darker").MIXES_IMAGES is False


def test_a_dataset_is_read_by_its_function(user_project):
    folder, name = user_project
    spec = config.load(folder).datasets["my_squares"].data
    data.prepare("my_squares", spec, None, folder, folder / "a.h5")
    loaded = data.load(folder / "a.h5", 20, torch.device("cpu"))
    assert loaded.class_names == ["dark", "bright"]
    assert loaded.train.images.float().mean((1, 2, 3))[:2].tolist() == [0, 200]
    (folder / name / "broken.py").write_text("def read(spec, folder, downloads):\n    return 1\n")
    broken = spec.model_copy(update={"reader": f"{name}.broken:read"})
    with pytest.raises(UserError, match=r"data\.reader: .*broken:read: returns int, expected kdflow\.data\.Splits"):
        data.prepare("my_squares", broken, None, folder, folder / "b.h5")


def test_the_shapes_of_a_model_are_found_without_memory(user_project):
    folder, _ = user_project
    model = config.load(folder).models["my_small"]
    assert output_shapes(config.Architecture(name="my_small", model=model), 4, 8).logits.device.type == "meta"


@pytest.mark.slow
def test_one_command_trains_a_user_s_models_with_a_user_s_view_in_other_processes(
    user_project, monkeypatch, capsys, tmp_path_factory
):
    folder, name = user_project
    monkeypatch.chdir(folder)
    shutil.make_archive(str(folder / "photos"), "zip", make_tree(tmp_path_factory.mktemp("images")))

    def distil(method):
        given = {"data": Path("photos.zip"), "teacher": ["my_large"], "student": "my_small", "method": method}
        students.distill(**given, image_size=32, epochs=2, device="cpu", workers=1)
        log = record.read_record(folder / f"out/students/{method}/seed0.json", RunLog)
        return log, capsys.readouterr().out

    first, output = distil("my_view")
    assert set(first.settings.user_code) == {f"{name}.models:build", f"{name}.views:Darker"}
    again, output = distil("my_view")
    assert again == first and "my_view seed 0" not in output
    view = folder / name / "views.py"
    view.write_text(view.read_text().replace('* draw["factor"]', '* draw["factor"] / 2'))
    changed, output = distil("my_view")
    assert "teacher my_large: exists" in output
    assert changed.settings_sha256 != first.settings_sha256
    assert changed.weights_sha256 != first.weights_sha256
