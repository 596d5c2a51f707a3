"""The stage that prepares the dataset."""

from __future__ import annotations

from pathlib import Path

from kdflow.config import Experiment, PreparedDataset, UserFolder
from kdflow.core import files


def prepare_dataset(
    experiment: Experiment,
    out: Path,
    downloads: Path,
    description: Path | None = None,
    project: Path = Path(),
    final_test: Path | None = None,
) -> PreparedDataset:
    """Write the experiment's dataset to `out`, and its description to `description` as JSON.

    `final_test` is a second dataset file, for the images of a user's test/ beside val/. Paths in the settings are
    relative to `project`.
    """
    from kdflow import data

    params = experiment.params
    if isinstance(params.dataset, UserFolder):
        from kdflow.data import user_folder  # imports all of torchvision

        prepared = user_folder.prepare(
            params.dataset, experiment.user_folder, out, project, final_test, downloads.parent / "images"
        )
    else:
        dataset = experiment.dataset
        assert dataset.base_view is not None
        assert dataset.training is not None
        folder = None if params.data_folder is None else project / files.expand_home(params.data_folder)
        sha256 = data.prepare(params.dataset, dataset.data, folder, downloads, out, params.train_images)
        prepared = PreparedDataset(
            name=params.dataset,
            source=params.dataset,
            data=dataset.data,
            base_view=dataset.base_view,
            training=dataset.training,
            demo=dataset.demo,
            sha256=sha256,
            class_names=tuple(data.class_names(out)),
        )
    if description is not None:
        files.write_text(description, prepared.model_dump_json(indent=2) + "\n")
    counts = f"{prepared.data.train_images:,} training and {prepared.data.test_images:,} test images"
    print(f"{out}: {counts}, sha256 {prepared.sha256[:12]}...")
    return prepared
