"""Published teachers by the command line: list, download from a local web server, import and evaluation."""

import hashlib
import shutil
import sys

import pytest
import safetensors.torch
import torch
from hostile import Touch
from paths import ROOT
from ruamel.yaml import YAML
from web import serving

from kdflow import cli, config, data, teachers
from kdflow.models import create_model
from kdflow.training.evaluate import accuracy

RECIPES = config.load_recipes(ROOT)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "digits.h5"
    data.prepare("digits", RECIPES.datasets["digits"].data, None, out.parent, out)
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory, digits):
    """A file of weights in another project's format, and their accuracy."""
    torch.manual_seed(0)
    model = create_model("resnet8", RECIPES.models["resnet8"], 10, 16)
    file = tmp_path_factory.mktemp("web") / "resnet8.pth"
    torch.save({"epoch": 1, "net": {f"module.{key}": value for key, value in model.state_dict().items()}}, file)
    test = data.load(digits, 300, torch.device("cpu")).test
    return file, accuracy(model, test, RECIPES.datasets["digits"].base_view).top1


@pytest.fixture
def project(tmp_path, weights, digits):
    """A project whose registry has one teacher with two addresses, the first of which has no file."""
    file, top1 = weights
    content = file.read_bytes()
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "data").mkdir()
    shutil.copy(digits, tmp_path / "data/dataset.h5")
    with serving(file.parent) as address:
        write(
            tmp_path,
            small={
                "dataset": "digits",
                "architecture": "resnet8",
                "urls": [f"{address}/nothing", f"{address}/{file.name}"],
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "top1": top1,
                "licence": "CC0",
                "source": "a test",
            },
        )
        yield tmp_path


def write(project, **entries):
    with (project / "recipes/teachers.yaml").open("w") as file:
        YAML().dump(entries, file)


@pytest.fixture
def kdflow(project, monkeypatch, capsys):
    """Run a command and return its exit code, its output and its errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdflow", "teachers", *map(str, arguments), "--root", str(project)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def refused(done, *words):
    code, _, errors = done
    assert code == 1
    assert errors.startswith("error: ") and len(errors.splitlines()) == 1
    assert all(word in errors for word in words), errors


def test_the_project_s_registry_is_valid():
    registry = teachers.load(ROOT)
    with_hash = registry.get("cifar100_resnet56")
    assert with_hash.download_spec.sha256.startswith(with_hash.urls[0].rpartition("-")[2].removesuffix(".pt"))
    of_torchvision = registry.get("imagenet_resnet34")
    spec = of_torchvision.download_spec
    assert spec.urls == ("https://download.pytorch.org/models/resnet34-b627a593.pth",)
    assert spec.sha256 == "b627a593"
    assert 87_319_819 <= spec.size < 87_319_819 * 1.001  # the bytes that pytorch.org serves
    assert round(of_torchvision.expected_top1, 1) == 73.3


def test_a_teacher_is_listed_fetched_and_verified(kdflow, project, weights, digits):
    code, output, _ = kdflow("list")
    assert code == 0 and "small" in output and " no " in output
    refused(kdflow("verify", "small"), "small: not downloaded yet; run `kdflow teachers fetch small`")
    code, output, errors = kdflow("fetch", "small", "--verbose")
    assert (code, errors) == (0, "")
    for line in (
        "/nothing: 404 File not found",
        "100 %  0.",
        "fits resnet8 after these conversions:",
        "'net' used",
        "module.fc.bias -> fc.bias",
    ):
        assert line in output
    file = project / ".kdflow/teachers/small.weights"
    assert file.read_bytes() == weights[0].read_bytes()
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (
        f"dvc exp run -S dataset=digits -S teacher=resnet8 -S teacher_weights.file={file} "
        f"-S teacher_weights.sha256={sha256} -S teacher_weights.top1={weights[1]:g}"
    ) in output
    assert " yes " in kdflow("list")[1]
    code, output, _ = kdflow("verify", "small")
    assert code == 0
    assert f"expected {weights[1]:.2f} % top-1, measured {weights[1]:.2f} % on the test set of digits: OK" in output


def test_a_downloaded_file_is_kept_and_a_damaged_one_is_replaced(kdflow, project, weights):
    kdflow("fetch", "small")
    code, output, _ = kdflow("fetch", "small")
    assert code == 0 and "100 %" not in output
    file = project / ".kdflow/teachers/small.weights"
    file.write_bytes(file.read_bytes()[:-1])
    refused(kdflow("verify", "small"), "sha256 is")
    code, output, _ = kdflow("fetch", "small")
    assert code == 0 and "100 %" in output
    assert file.read_bytes() == weights[0].read_bytes()


def test_verify_exits_with_2_if_the_teacher_is_less_accurate(kdflow, project, weights):
    entry = YAML(typ="safe").load(project / "recipes/teachers.yaml")["small"]
    write(project, small={**entry, "top1": weights[1] + 0.6})
    kdflow("fetch", "small")
    code, output, _ = kdflow("verify", "small")
    assert code == 2 and "more than 0.5 points lower" in output
    write(project, small={**entry, "top1": weights[1] + 0.4})
    assert kdflow("verify", "small")[0] == 0


def test_verify_refuses_a_missing_dataset(kdflow, project, digits):
    kdflow("fetch", "small")
    refused(kdflow("verify", "small", "--data", project / "nothing.h5"), "nothing.h5: no such file")


def test_a_file_with_a_known_hash_is_imported_without_options(kdflow, project, weights):
    code, output, _ = kdflow("import", weights[0])
    assert code == 0 and "fits resnet8 after these conversions:" in output and "kdflow teachers verify small" in output
    assert (project / ".kdflow/teachers/small.weights").read_bytes() == weights[0].read_bytes()
    assert not (project / ".kdflow/teachers/teachers.yaml").exists()
    refused(kdflow("import", weights[0], *new("other")), "has the sha256 of teacher small; import it without --name")


def new(name, **other):
    options = {"dataset": "digits", "architecture": "resnet8", "top1": 10, **other}
    return ["--name", name, *(part for key, value in options.items() for part in (f"--{key}", value))]


def test_a_new_file_is_imported_described_and_verified(kdflow, project, weights, tmp_path):
    state = torch.load(weights[0])["net"]
    half = tmp_path / "half.safetensors"
    safetensors.torch.save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, half)
    refused(kdflow("import", half), "its sha256 is not that of a known teacher", "give --name, --dataset")
    refused(kdflow("import", half, "--name", "mine"), "--name needs --dataset, --architecture and --top1")
    code, output, _ = kdflow("import", half, *new("mine", top1=round(weights[1], 2), licence="mine", source="a thesis"))
    assert code == 0 and "float16 -> float32" in output
    entry = teachers.load(project).get("mine")
    assert (entry.licence, entry.source, entry.size) == ("mine", "a thesis", half.stat().st_size)
    half.unlink()
    assert "OK" in kdflow("verify", "mine")[1]
    refused(kdflow("import", weights[0].with_name("resnet8.pth"), *new("mine")), "has the sha256 of teacher small")
    file = tmp_path / "more.pt"
    torch.save(state, file)
    refused(kdflow("import", file, *new("mine")), "--name: there is a teacher mine with other weights")
    assert kdflow("import", file, *new("second"))[0] == 0
    assert {"small", "mine", "second"} <= set(teachers.load(project).entries)
    (project / ".kdflow/teachers/second.weights").unlink()
    refused(kdflow("fetch", "second"), "second: has no address; import its file with `kdflow teachers import FILE`")


def test_a_teacher_without_a_hash_is_fetched_imported_and_verified(kdflow, project, weights, tmp_path):
    entry = YAML(typ="safe").load(project / "recipes/teachers.yaml")["small"]
    del entry["sha256"]
    write(project, small=entry)
    code, output, _ = kdflow("fetch", "small")
    assert code == 0 and "The publisher gives no hash" in output
    assert f"teacher_weights.sha256={hashlib.sha256(weights[0].read_bytes()).hexdigest()}" in output, (
        "the hash of the downloaded file"
    )
    assert "OK" in kdflow("verify", "small")[1]
    file = tmp_path / "mine.pt"
    torch.save(torch.load(weights[0])["net"], file)
    refused(kdflow("import", file), "its sha256 is not that of a known teacher")
    wrong_options = {"dataset": "cifar100", "architecture": "vgg8", "top1": 1.5, "licence": "mine", "source": "mine"}
    for option, value in wrong_options.items():
        refused(
            kdflow("import", file, "--name", "small", f"--{option}", value),
            f"--{option}: is {value}, but recipes/teachers.yaml has ",
        )
    refused(kdflow("import", file, "--name", "small"), "--name: small has other weights already; delete ")
    assert (project / ".kdflow/teachers/small.weights").read_bytes() == weights[0].read_bytes()
    (project / ".kdflow/teachers/small.weights").unlink()
    assert kdflow("import", file, "--name", "small", "--dataset", "digits")[0] == 0
    assert kdflow("import", file, "--name", "small")[0] == 0, "the same file again"
    assert (project / ".kdflow/teachers/small.weights").read_bytes() == file.read_bytes()
    (project / ".kdflow/teachers/small.weights").unlink()
    write(project, small={**entry, "urls": [url.replace("resnet8.pth", "cut.pth") for url in entry["urls"]]})
    cut = weights[0].with_name("cut.pth")
    cut.write_bytes(weights[0].read_bytes()[:-1000])
    refused(kdflow("fetch", "small"), "small.weights: ")
    assert not (project / ".kdflow/teachers/small.weights").exists(), "the next attempt would not download it again"
    cut.unlink()


def test_sizes_of_crd_teachers_bound_weights_and_momentum():
    registry = teachers.load(ROOT)
    for name, entry in registry.entries.items():
        if name.startswith("crd_"):
            state = registry.create_model(entry).state_dict()
            weight_bytes = sum(value.numel() * value.element_size() for value in state.values())
            assert 2 * weight_bytes < entry.size < 2.2 * weight_bytes, name


BAD = {
    "name": (new("../../evil"), "--name: '../../evil' is not allowed"),
    "dataset": (new("mine", dataset="digit"), "--dataset: unknown name 'digit'; did you mean 'digits'?"),
    "architecture": (new("mine", architecture="resnet9"), "--architecture: unknown name 'resnet9'"),
    "another architecture": (new("mine", architecture="resnet14"), "9 convolutions instead of 15"),
    "another dataset": (new("mine", dataset="cifar100"), "10 classes instead of 100"),
    "top1": (new("mine", top1=101), "should be less than or equal to 100"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_import_leaves_nothing(what, kdflow, project, weights, tmp_path):
    file = tmp_path / "w.pt"
    torch.save(torch.load(weights[0])["net"], file)
    arguments, reason = BAD[what]
    refused(kdflow("import", file, *arguments), reason)
    assert not list((project / ".kdflow").rglob("*.*"))


def test_an_imported_file_runs_no_code(kdflow, project, tmp_path):
    torch.save(Touch(tmp_path / "ran"), tmp_path / "w.pt")
    refused(kdflow("import", tmp_path / "w.pt", *new("mine")), "refused: a pickle of more than tensors")
    assert not (tmp_path / "ran").exists()


def test_fetched_weights_of_another_architecture_are_refused(kdflow, project):
    entry = YAML(typ="safe").load(project / "recipes/teachers.yaml")["small"]
    write(project, small={**entry, "architecture": "resnet14"})
    refused(kdflow("fetch", "small"), "weights of another architecture (of 'net' in it): 9 convolutions instead of 15")


ENTRY = {"dataset": "digits", "architecture": "resnet8", "licence": "x", "source": "y"}
FULL = {**ENTRY, "sha256": "0" * 64, "size": 1, "top1": 1.0}
WRONG = {
    "no hash": (ENTRY, "small: needs either torchvision, or size, top1 and at least one of sha256 and urls"),
    "both": ({**FULL, "torchvision": "A.B"}, "sha256, size, top1: not allowed beside torchvision"),
    "a local address": ({**FULL, "urls": ["file:///etc/passwd"]}, "small.urls.0: string should match pattern"),
    "an unknown key": ({**FULL, "url": "http://x"}, "small.url: unknown key; did you mean 'urls'?"),
    "an unknown dataset": ({**FULL, "dataset": "cifar"}, "small.dataset: unknown name 'cifar'"),
    "an unknown architecture": ({**FULL, "architecture": "x"}, "small.architecture: unknown name 'x'"),
    "half a hash": ({**FULL, "sha256": "00"}, "small.sha256: string should match pattern"),
    "unknown to torchvision": ({**ENTRY, "torchvision": "ResNet34_Weights.V9"}, "torchvision has no weights"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_entry_is_one_line(what, kdflow, project):
    entry, reason = WRONG[what]
    write(project, small=entry)
    refused(kdflow("list"), reason)


def test_an_unknown_name_is_refused(kdflow):
    refused(kdflow("fetch", "smal"), "teacher: unknown name 'smal'; did you mean 'small'?")
