"""List a folder of labelled photographs: `folder = open_folder(DIR)`. Nothing but its lists is read yet.

A YOLO folder (data.yaml, or classes.txt in a flat one), or annotation files (data_prep.annotated).
"""

from __future__ import annotations

import logging
import os
import random
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path

from data_prep.annotated import open_annotated
from data_prep.entries import AS_WRITTEN, Entry, Folder, ReadOptions, Split, class_ids
from data_prep.yolo import YAML_BYTES, list_split, read_yaml
from recipe.files import printable, read_file
from recipe.schema import SPLITS, UserError

log = logging.getLogger(__name__)


def open_folder(yolo_dir: Path, options: ReadOptions = AS_WRITTEN) -> Folder:
    """List the images of each split and pair them with their labels.

    Raises:
        UserError: no such folder, no data.yaml, unknown class names, a split without images, images that two splits
            share or that share a label file, or an option that fits nothing in the folder.
    """
    if not os.path.isdir(yolo_dir):
        raise UserError(f"there is no folder {yolo_dir}: give the folder that holds data.yaml")
    has_yaml = os.path.lexists(yolo_dir / "data.yaml")
    folder = (None if has_yaml else open_annotated(yolo_dir, options)) or _open_yolo(yolo_dir, options)
    splits = folder.splits
    if options.val_fraction:
        if "validation" in splits:
            raise UserError(f"--val-fraction {options.val_fraction}: {yolo_dir} names images for validation already")
        splits["validation"] = _hold_out(splits["train"], options.val_fraction, options.seed)
    if missing := {"train", "validation"} - set(splits):
        raise UserError(
            f"{yolo_dir} has no {missing.pop()} split: data.yaml must name its images as `train:` and `val:`; "
            "`--val-fraction 0.1` holds out a tenth of the training images"
        )
    folder.splits = {name: splits[name] for name in SPLITS.values() if name in splits}
    for glob, name in options.labelled:
        if not any(fnmatchcase(entry.name, glob) for split in splits.values() for entry in split.entries):
            raise UserError(f"--labelled {glob}={name}: no image has such a name")
    owner: dict[str, str] = {}
    for name, split in splits.items():
        for entry in split.entries:
            other = owner.setdefault(os.path.realpath(folder.root / entry.image), name)
            if other != name:  # the best epoch must not be chosen on images that were trained on
                shared = f"{other} and {name} share images, for example {printable(entry.image)}"
                raise UserError(f"{shared}: give each split in data.yaml a folder of its own")
    return folder


def _open_yolo(yolo_dir: Path, options: ReadOptions) -> Folder:
    """The folder that data.yaml describes; without it, a flat folder with the class names in classes.txt."""
    path, class_list = yolo_dir / "data.yaml", yolo_dir / "classes.txt"
    if os.path.lexists(path):
        config = read_yaml(path)
    elif class_list.is_file():
        path, names = class_list, read_file(class_list, YAML_BYTES).decode("utf-8-sig", errors="replace")
        config = {"train": ".", "names": names.rstrip().splitlines()}
    else:
        raise UserError(
            f"{yolo_dir} holds no data.yaml: `python -m data_prep sample OUT` writes an example "
            "(COCO's annotations/instances_train.json, Roboflow's train/_annotations.coco.json, CrowdHuman's "
            "annotation_train.odgt and a flat folder with classes.txt are read too)"
        )
    root = yolo_dir / str(config.get("path") or "")
    root = root if os.path.isdir(root) else yolo_dir  # `path` often names the machine that made the dataset
    classes = class_ids(config.get("names"), path, options)
    wanted = {key: name for key, name in SPLITS.items() if key == "train" or config.get(key)}
    splits = {name: list_split(root, config.get(key), key) for key, name in wanted.items()}
    return Folder(root, classes, splits, options)


def sequence_of(name: str) -> str:
    """`film/frame_` of `film/frame_0012.jpg`: frames differ only in trailing digits. A numbered image stands alone."""
    return os.path.splitext(name)[0].rstrip("0123456789") or name


def _hold_out(split: Split, fraction: float, seed: int) -> Split:
    """Move about `fraction` of a split's images to a new one, complete sequences at random.

    Frames of one film are no independent photographs. Where every sequence is longer, it is the end of the longest.
    """
    sequences = defaultdict(list)
    for entry in split.entries:
        sequences[sequence_of(entry.name)].append(entry)
    wanted = round(fraction * len(split.entries))
    held: set[Entry] = set()
    for sequence in random.Random(seed).sample(sorted(sequences), len(sequences)):
        if len(held) + len(sequences[sequence]) <= wanted:
            held |= set(sequences[sequence])
    if not held and wanted:
        longest = max(sequences.values(), key=len)
        held = set(longest[-wanted:])
        log.info("every sequence is longer than --val-fraction: its images are the end of %s*", longest[0].name)
    kept = [entry for entry in split.entries if entry not in held]
    if not held or not kept:
        raise UserError(f"--val-fraction {fraction}: of {len(split.entries)} images none would be left in one split")
    split.entries = kept
    return Split(sorted(held))
