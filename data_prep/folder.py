"""List a folder of labelled photographs: `folder = open_folder(DIR)`. Nothing but its lists is read yet.

Knows a YOLO folder (data.yaml), CrowdHuman's and COCO's layout. The rules for label lines are in data_prep.labels,
those for images in data_prep.image.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from data_prep.entries import AS_WRITTEN, Folder, ReadOptions, Split, class_ids
from data_prep.files import printable, read_file
from data_prep.json_labels import open_coco, open_crowdhuman
from data_prep.sequences import hold_out
from data_prep.yolo import YAML_BYTES, list_split, read_yaml
from recipe.schema import SPLITS, UserError


def open_folder(yolo_dir: Path, options: ReadOptions = AS_WRITTEN) -> Folder:
    """List the images of each split and pair them with their labels.

    Raises:
        UserError: no such folder, no data.yaml, unknown class names, a split without images, images that two splits
            share or that share a label file, or an option that fits nothing in the folder.
    """
    if not os.path.isdir(yolo_dir):
        raise UserError(f"there is no folder {yolo_dir}: give the folder that holds data.yaml")
    try:
        if not os.path.lexists(yolo_dir / "data.yaml") and any(yolo_dir.glob("annotation_*.odgt")):
            folder = open_crowdhuman(yolo_dir, options)
        elif not os.path.lexists(yolo_dir / "data.yaml") and any(yolo_dir.glob("annotations/instances_*.json")):
            folder = open_coco(yolo_dir, options)
        else:
            folder = _open_yolo(yolo_dir, options)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; get the right to read it") from error
    splits = folder.splits
    if options.val_fraction:
        if "validation" in splits:
            raise UserError(f"--val-fraction {options.val_fraction}: {yolo_dir} names images for validation already")
        splits["validation"] = hold_out(splits["train"], options.val_fraction, options.seed)
    if missing := {"train", "validation"} - set(splits):
        raise UserError(
            f"{yolo_dir} has no {missing.pop()} split: data.yaml must name its images as `train:` and `val:`; "
            "`--val-fraction 0.1` holds out a tenth of the training images"
        )
    folder.splits = {name: splits[name] for name in SPLITS.values() if name in splits}
    for flag in options.labelled:
        names = (entry.name for split in splits.values() for entry in split.entries)
        if not any(fnmatchcase(name, flag[0]) for name in names):
            raise UserError(
                f"--labelled {'='.join(flag)}: no image has such a name, as problems.csv and inspect show it"
            )
    _refuse_shared(splits, folder.root)
    return folder


def _open_yolo(yolo_dir: Path, options: ReadOptions) -> Folder:
    """The folder that data.yaml describes; without it, a flat folder with the class names in classes.txt."""
    path, class_list = yolo_dir / "data.yaml", yolo_dir / "classes.txt"
    if os.path.lexists(path):
        config = read_yaml(path)
    elif class_list.is_file():
        path, names = class_list, read_file(class_list, YAML_BYTES).decode("utf-8-sig", errors="replace")
        config = {"train": ".", "names": names.split("\n")[: names.rstrip().count("\n") + 1]}
    else:
        raise UserError(
            f"{yolo_dir} holds no data.yaml: `python -m data_prep sample OUT` writes an example "
            "(CrowdHuman's annotation_train.odgt, COCO's instances_train*.json or classes.txt are read too)"
        )
    root = yolo_dir / str(config.get("path") or "")
    root = root if os.path.isdir(root) else yolo_dir  # `path` often names the machine that made the dataset
    classes = class_ids(config.get("names"), path, options)
    wanted = {key: name for key, name in SPLITS.items() if key == "train" or config.get(key)}
    splits = {name: list_split(root, config.get(key), key) for key, name in wanted.items()}
    return Folder(root, classes, splits, options)


def _refuse_shared(splits: dict[str, Split], root: Path) -> None:
    """The best epoch must not be chosen on images that were trained on."""
    real_folder = cache(os.path.realpath)  # whatever links lead there
    owner: dict[str, str] = {}
    for name, split in splits.items():
        for entry in split.entries:
            folder, file = os.path.split(root / entry.image)
            other = owner.setdefault(os.path.join(real_folder(folder), file), name)
            if other != name:
                shared = f"{other} and {name} share images, for example {printable(entry.image)}"
                raise UserError(f"{shared}: give each split in data.yaml a folder of its own")
