"""The commands `features` and `train`: notebook 03's work without the notebook, in the same folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import OutputError, ParameterError
from .features import FeatureCache
from .files import only_process
from .identities import differences
from .image_shards import check_disk
from .localizer_plan import TrainingPlan, plain, publish
from .localizer_training import LocalizerTask, kept_epochs, training_folder
from .locations import RUN_LOCK
from .parameters import LEAVES_OUT, find_notebooks, known_parameters, validate
from .preflight import check, check_cache, check_output
from .session import Session, open_session
from .training import fit, progress_of

NOTEBOOK = "03"
_SESSION = (
    "dataset",
    "split",
    "model",
    "checkpoint",
    "image_size",
    "num_images",
    "depth",
    "device",
    "seed",
    "cache_dir",
)


def features(config: Mapping[str, Any], out_dir: Path, *, predict_only: bool = False) -> None:
    """Compute the feature caches of a configuration; a later `train` or `run` into the same folder finds them.

    Args:
        config: parameters, as in `run_workbook`.
        out_dir: the run's folder.
        predict_only: say how much disk they need, and compute nothing.

    Raises:
        SurgeryError: bad input, found before anything is computed.
    """
    _, plan, caches = _opened(config, out_dir)
    for role, cache in caches.items():
        print(
            f"{role} ({cache.dataset.split}): {cache.record.itemsize:,} bytes an image, {len(cache.dataset.images):,} "
            f"images, {cache.nbytes / 1e9:.3f} GB"
        )
    print(f"all: {sum(cache.nbytes for cache in caches.values()) / 1e9:.3f} GB")
    if not predict_only:
        _compute(list(caches.values()), plan)


def train(config: Mapping[str, Any], out_dir: Path, *, resume: bool = False) -> Path:
    """Train the localiser of a configuration; returns the file with the best weights.

    Args:
        config: parameters, as in `run_workbook`.
        out_dir: the run's folder.
        resume: go on with a training of these very settings that was stopped; without it, finding one is an error.

    Raises:
        SurgeryError: bad input, found before anything is computed; nothing to resume, or something that should be;
            a folder with the report of another training.
    """
    session, plan, caches = _opened(config, out_dir)
    with only_process(session.out_dir, "writes", lock_name=RUN_LOCK):
        _check_report(session.out_dir, plan)
        _compute([caches["train"], caches["choose"]], plan)
        task = LocalizerTask(caches["train"], caches["choose"], plan.settings)
        folder = training_folder(task, plan.schedule, session.cache_dir)
        _check_progress(folder, plan, resume=resume)
        training = fit(task, plan.schedule, folder, keep_epochs=kept_epochs(plan.schedule))
        row = training.history.set_index("epoch").loc[training.best_epoch]
        print(
            f"best epoch {training.best_epoch} on {plan.choose_split}: mean IoU {row['val_iou']:.3f} in the best cell, "
            f"{row['val_peak_iou']:.3f} at the CAM's peak; {training.seconds:.0f} s in this call"
        )
        return publish(training, session.out_dir)


def _compute(caches: list[FeatureCache], plan: TrainingPlan) -> None:
    check_disk(caches)
    for cache in caches:
        print(cache.compute(batch_size=plan.batch_size).describe())


def _check_report(out_dir: Path, plan: TrainingPlan) -> None:
    """A report beside which another head would lie is not touched."""
    path = out_dir / "training_results.json"
    try:
        reported = json.loads(path.read_text(encoding="utf-8"))["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no report of a training there
    if different := differences(reported, plain(plan)):
        raise OutputError(
            f"{out_dir} holds the report of another training ({different}): choose another --out, or run notebook 03 "
            "there with these settings"
        )


def _check_progress(folder: Path, plan: TrainingPlan, *, resume: bool) -> None:
    progress = progress_of(folder)
    if progress is None and resume:
        raise ParameterError(
            f"--resume: there is no training of these settings in {folder.parent}; leave it out to begin one"
        )
    if progress is None:
        return
    epochs, finished = progress
    if finished:
        print("this training is at its end already; another seed or setting makes another")
    elif not resume:
        raise ParameterError(
            f"a training of these settings stopped behind epoch {epochs} of {plan.epochs} in {folder}: go on with "
            "--resume, or delete the folder to begin anew"
        )


def _opened(config: Mapping[str, Any], out_dir: Path) -> tuple[Session, TrainingPlan, dict[str, FeatureCache]]:
    """Session, plan and caches, everything checked; nothing is computed yet."""
    notebooks = find_notebooks()
    root = notebooks[0].resolve().parent.parent
    given = validate(config, known_parameters(notebooks))
    if given.get(LEAVES_OUT, "") is None:
        raise ParameterError(f"{LEAVES_OUT} is null, so there is nothing to train; name a split, such as train")
    check_output(out_dir)
    check_cache(given, root)
    check(given, only=NOTEBOOK)
    own = known_parameters(find_notebooks(only=NOTEBOOK))
    parameters = {name: parameter.default for name, parameter in own.items()}
    parameters |= {name: value for name, value in given.items() if name in own}
    plan = TrainingPlan.from_parameters(parameters)
    session = open_session(**{name: parameters[name] for name in _SESSION}, out_dir=str(out_dir))
    return session, plan, plan.caches(session, plan.datasets(session))
