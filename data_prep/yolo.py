"""The splits of a YOLO folder: `read_yaml(path)`, then `list_split(root, "images/train", "train")`.

Reads what Ultralytics reads: `train:` and `val:` of data.yaml name a folder, a list of folders, or a .txt list of
images; the label file of an image lies where its last folder `images` is called `labels`, or beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from data_prep.entries import Entry, Problem, Split, name_of
from data_prep.example import LABEL_BYTES, label_lines
from recipe.files import list_files, printable, read_file, suffix
from recipe.schema import IMAGE_SUFFIXES, UserError

YAML_BYTES = 2**18  # 4,000 class names; more would be parsed for seconds
LIST_BYTES = 2**28
NOT_LABELS = ("classes.txt", "labels.txt")  # annotation tools leave these beside the label files


def read_yaml(path: Path) -> dict[str, Any]:
    """data.yaml as strings, lists and dicts: BaseLoader makes no dates, numbers or objects of what it finds."""
    try:
        config = yaml.load(read_file(path, YAML_BYTES).decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {printable(' '.join(str(error).split()))}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold the keys `train`, `val` and `names`")
    return config


def list_split(root: Path, where: Any, key: str) -> Split:
    """The images and label files of one split; `where` is a folder, a .txt list, or a list of those."""
    places = where if isinstance(where, list) else [where]
    if not places or not all(isinstance(place, str) and place for place in places):
        raise UserError(f"data.yaml must name the folder of images as `{key}:`, or a list of folders")
    split = Split()
    for place in places:
        path = root / place
        if not os.path.exists(path) and place.startswith("../"):  # Roboflow counts from a folder of its own
            path = root / place.removeprefix("../")
        if suffix(place) == ".txt" and os.path.isfile(path):
            _add_list(split, root, path)
        elif os.path.isdir(path):
            _add_folder(split, root, path, key, name_from_root=len(places) > 1)
        else:
            raise UserError(f"the `{key}` images should be in {printable(str(path))}: correct `{key}:` in data.yaml")
    if not split.entries:
        raise UserError(f"the `{key}` split has no images: {path} holds no {' '.join(IMAGE_SUFFIXES)} file")
    split.entries = sorted(set(split.entries))
    image_of: dict[str, str] = {}
    for entry in split.entries:
        other = image_of.setdefault(_label_of(entry.image), entry.image)
        if other != entry.image:
            shared = f"{printable(other)} and {printable(entry.image)} in {root} share the label file"
            raise UserError(f"{shared} {printable(_label_of(entry.image))}: rename one of them")
    return split


def _add_folder(split: Split, root: Path, images: Path, key: str, name_from_root: bool) -> None:
    if images.name != "images" and (images / "images").is_dir():
        images = images / "images"
    images_in = os.path.relpath(images, root)
    labels_in = os.path.dirname(_label_of(os.path.join(images_in, "x")))
    if not os.path.isdir(root / labels_in):
        raise UserError(f"the `{key}` label files should be in {root / labels_in}: make this folder, it may be empty")
    image_files, label_files = (
        {os.path.normpath(os.path.join(folder, name)) for name in list_files(root / folder)}
        for folder in (images_in, labels_in)
    )
    found = {file for file in image_files if suffix(file) in IMAGE_SUFFIXES}
    labels = {file for file in label_files if suffix(file) == ".txt"}
    for file in found:
        label = _label_of(file)
        name = file if name_from_root else os.path.relpath(file, images_in)
        split.entries.append(Entry(name, file, label if label in labels else None))
    for file in sorted((image_files | label_files) - found - labels):
        split.problems.append(Problem(printable(file), 0, "not_read", "ignored", "hidden, or no image and no label"))
    orphans = labels - set(map(_label_of, found))
    for file in sorted(file for file in orphans if os.path.basename(file) not in NOT_LABELS):
        try:
            boxes = len(label_lines(read_file(root / file, LABEL_BYTES)))
        except (OSError, ValueError):  # no file that holds a box
            boxes = 0
        split.problems.append(Problem(printable(file), 0, "label_without_image", "ignored", f"{boxes} boxes", boxes))


def _add_list(split: Split, root: Path, path: Path) -> None:
    """The images of a .txt file, one path a line, counted from the file's own folder."""
    text = read_file(path, LIST_BYTES).decode("utf-8-sig", errors="surrogateescape")
    for line in filter(None, map(str.strip, text.splitlines())):
        file = os.path.normpath(os.path.join(os.path.relpath(path.parent, root), line))
        if suffix(file) in IMAGE_SUFFIXES:
            label = _label_of(file)
            split.entries.append(Entry(name_of(file), file, label if os.path.lexists(root / label) else None))
        else:
            split.problems.append(Problem(printable(file), 0, "not_read", "ignored", f"listed in {path.name}"))


def _label_of(image: str) -> str:
    """The label file of an image: the last folder `images` becomes `labels`."""
    parts = image.split(os.sep)
    folders = parts[-2::-1]  # from the innermost
    if "images" in folders:
        parts[len(folders) - 1 - folders.index("images")] = "labels"
    return os.path.splitext(os.sep.join(parts))[0] + ".txt"
