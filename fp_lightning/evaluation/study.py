"""Prepare and score a blind user study that compares two systems (the paper's Table 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.evaluation.bootstrap import bootstrap_means, interval
from fp_lightning.evaluation.examples import Examples
from fp_lightning.evaluation.predictions import check_sizes, find_predictions, folder_labels, prediction
from fp_lightning.files import well_formed, write_text
from fp_lightning.media.pages import write_page
from fp_lightning.media.pictures import data_url, signal_image
from fp_lightning.types import to_uint8

KEY_FORMAT, ANSWERS_FORMAT = "fp_lightning study key 1", "fp_lightning study answers 1"
QUESTIONS = {  # those of the paper
    "consistency": "Which is more consistent with the source image?",
    "accuracy": "Which follows the instruction more accurately?",
    "quality": "Which image has the better quality?",
}
CHOICES = ("left", "right", "same")


def build_study(
    first: Path, second: Path, examples: Examples, out: Path, count: int = 100, seed: int = 0, resize: bool = False
) -> Path:
    """Write the page `<out>/study.html`, which hides the systems' names, and the key `<out>/key.json`.

    Raters must not see the key, which says which system is on which side.

    Args:
        first, second: folders of predictions.
        count: maximum number of examples, drawn at random.
        seed: determines the examples, their order and the sides.
        resize: resize predictions whose size differs from their example's; otherwise they are an error.

    Returns:
        The path of the page.

    Raises:
        InputError: a folder or an image is missing, unreadable, duplicated or of another size.
    """
    folders = (first, second)
    labels = folder_labels(folders)
    files = [find_predictions(folder, examples) for folder in folders]
    both = [i for i, name in enumerate(examples.names) if all(name in found for found in files)]
    if not both:
        raise InputError(f"no example has a prediction in both {first} and {second}; name images after their examples")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(both)[:count].tolist()
    if not resize:
        sizes = {examples.names[index]: examples.size(index) for index in chosen}
        for folder, found in zip(folders, files, strict=True):
            check_sizes(folder, found, sizes)
    swapped = (
        rng.permutation(np.arange(len(chosen)) % 2).astype(bool).tolist()
    )  # each system is on the left half of the time
    items, cards = [], []
    for index, swap in zip(chosen, swapped, strict=True):
        batch, name = examples[index], examples.names[index]
        size = (batch.source.shape[-2], batch.source.shape[-1])
        images = [prediction(found[name], size) for found in files]
        shown: dict[str, Tensor | None] = {"source": to_uint8(batch.source[0]), "instruction": signal_image(batch, 0)}
        shown |= dict(zip(("left", "right"), images[::-1] if swap else images, strict=True))
        items.append({"name": name, "left": labels[swap], "right": labels[not swap]})
        cards.append([(column, data_url(image)) for column, image in shown.items() if image is not None])
    key = {"format": KEY_FORMAT, "systems": labels, "seed": seed, "items": items}
    study = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    write_text(out / "key.json", json.dumps({**key, "study": study}, indent=1) + "\n")
    return write_page(
        out / "study.html",
        "fp_lightning.evaluation",
        "study.html",
        title="Which edit is better?",
        study=study,
        format=ANSWERS_FORMAT,
        cards=cards,
        questions=QUESTIONS,
        choices=CHOICES,
    )


def score_study(key: Path, answers: Sequence[Path]) -> dict[str, Any]:
    """Compute how often raters prefer the first system, for each question.

    The answer "same" counts half for each system. The 95 % interval is a bootstrap over examples, each represented by
    the mean over its raters.

    Returns:
        {"systems": [first, second], "raters", "answers", "questions": {question: {"preferred", "interval",
        "wins", "ties", "losses"}}}.

    Raises:
        InputError: a file is not a key or not a file of answers, belongs to another study, or repeats a rater.
    """
    known = _read(key, KEY_FORMAT, ("study", "systems", "items"))
    with well_formed(key, "take the key.json that `fp-lightning study build` wrote"):
        systems = {str(system) for system in known["systems"]}
        if len(systems) != 2 or any({item["left"], item["right"]} != systems for item in known["items"]):
            raise ValueError("its examples do not compare its two systems")
    raters: dict[str, Path] = {}
    votes = np.full((len(answers), len(known["items"]), len(QUESTIONS)), np.nan)
    for number, path in enumerate(answers):
        saved = _read(path, ANSWERS_FORMAT, ("study", "rater", "answers"))
        if saved["study"] != known["study"]:
            raise InputError(
                f"{path} answers study {saved['study']}, but {key} is for study {known['study']}; leave it out"
            )
        rater = str(saved["rater"])
        if rater in raters:
            raise InputError(f"{raters[rater]} and {path} are both from rater {rater}; leave one out")
        raters[rater] = path
        for position, choices in _checked(saved["answers"], len(known["items"]), path):
            first_left = known["items"][position]["left"] == known["systems"][0]
            for column, question in enumerate(QUESTIONS):
                choice = choices.get(question)
                if choice is not None:
                    votes[number, position, column] = (
                        0.5 if choice == "same" else float((choice == "left") == first_left)
                    )
    if np.isnan(votes).all():
        raise InputError("the files contain no answers; ask raters to answer before they press Save answers")
    per_item = torch.from_numpy(votes).nanmean(0)
    means = bootstrap_means(per_item)
    questions = {}
    for column, question in enumerate(QUESTIONS):
        cast = votes[..., column]
        questions[question] = {
            "preferred": float(per_item[:, column].nanmean()),
            "interval": list(interval(means[:, column])),
            **{name: int((cast == value).sum()) for name, value in (("wins", 1), ("ties", 0.5), ("losses", 0))},
        }
    total = int((~np.isnan(votes)).sum())
    return {"systems": known["systems"], "raters": len(raters), "answers": total, "questions": questions}


def _read(path: Path, form: str, fields: Sequence[str]) -> dict[str, Any]:
    """Read a JSON file of a format that has some fields."""
    try:
        content = json.loads(path.read_bytes())
        assert content["format"] == form and all(name in content for name in fields)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        expected = "the key.json of a study" if form == KEY_FORMAT else "a file of answers saved by the study's page"
        raise InputError(f"{path} is not {expected}; choose another file") from error
    return content


def _checked(answers: Any, items: int, path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (position, {question: choice}) for each answered example, and check that the page can have written it."""
    try:
        found = [(int(position), dict(choices)) for position, choices in answers.items()]
        assert all(0 <= position < items for position, _ in found)
        assert all(choice in CHOICES for _, choices in found for choice in choices.values())
    except (AttributeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"{path} contains answers that do not belong to its study; save it again from the page"
        ) from error
    return found
