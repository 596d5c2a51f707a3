"""Initial weights of a file: all of them, or all but a head of another number of classes."""

import pytest
import torch
from small import STUDENT, TEACHER, same, state_of

from kdflow.config import Model
from kdflow.core.errors import UserError
from kdflow.models import create_model, save_weights
from kdflow.models.initial import head_names, load_initial

RESNET18 = Model(family="torchvision", options={"name": "resnet18"})


def saved(file, recipe, classes, size=8):
    torch.manual_seed(5)
    model = create_model("source", recipe, classes, size)
    save_weights(model, file)
    return state_of(model)


def fresh(recipe, classes, size=8):
    torch.manual_seed(6)
    return create_model("small", recipe, classes, size)


@pytest.mark.parametrize(("recipe", "classes"), [(STUDENT, 7), (STUDENT, 1000), (RESNET18, 100)])
def test_a_head_of_another_number_of_classes_is_new_and_the_rest_is_that_of_the_file(tmp_path, recipe, classes):
    source, model = saved(tmp_path / "w", recipe, classes), fresh(recipe, 4)
    head = {"fc.weight": model.fc.weight.clone(), "fc.bias": model.fc.bias.clone()}
    random_state = torch.get_rng_state()
    note = load_initial(model, "small", recipe, tmp_path / "w", 4, 8)
    assert note == f"new head of 4 classes, was {classes}"
    assert same(state_of(model), source | head)
    assert torch.equal(torch.get_rng_state(), random_state), "it draws no random numbers of the run"


def test_a_head_of_the_same_number_of_classes_is_kept(tmp_path):
    source, model = saved(tmp_path / "w", STUDENT, 4), fresh(STUDENT, 4)
    assert load_initial(model, "small", STUDENT, tmp_path / "w", 4, 8) == "head of 4 classes kept"
    assert same(state_of(model), source)


def test_the_head_is_found_by_the_number_of_classes():
    assert head_names("small", STUDENT, 4, 8) == {"fc.weight", "fc.bias"}
    squeezenet = Model(family="torchvision", options={"name": "squeezenet1_1"})
    assert head_names("squeezenet", squeezenet, 4, 64) == {"classifier.1.weight", "classifier.1.bias"}


def test_weights_of_another_architecture_are_refused_and_the_model_is_kept(tmp_path):
    saved(tmp_path / "w", TEACHER, 7)
    model = fresh(STUDENT, 4)
    before = state_of(model)
    with pytest.raises(UserError, match="weights of another architecture") as caught:
        load_initial(model, "small", STUDENT, tmp_path / "w", 4, 8)
    assert "\n" not in str(caught.value) and same(before, state_of(model))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    from hostile import Touch

    torch.save({"fc.weight": Touch(str(tmp_path / "made"))}, tmp_path / "w")
    with pytest.raises(UserError):
        load_initial(fresh(STUDENT, 4), "small", STUDENT, tmp_path / "w", 4, 8)
    assert not (tmp_path / "made").exists()
