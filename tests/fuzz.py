"""Faults by the thousand, all from one seed: `make fuzz` prints a table and exits 1 if any of them did harm.

    python tests/fuzz.py [--seed 0] [--share 1.0]
    python tests/fuzz.py --case labels/123        # one case again, with its error

tracebacks     an exception that is neither the refusal that is documented nor a UserError of one printable line
hangs          more than 20 s for a case (120 s for a command), or processes left behind by a killed one
unaccounted    a box or an image that is neither in the result nor listed with a reason
wrong results  a result other than that of the input without the fault
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
import conftest  # noqa: F401  # the environment of the tests, before any library is imported
import numpy as np
from yolo_folder import picture, write_folder

from data_prep.example import image_size, label_lines, read_labels
from data_prep.folder import open_folder
from recipe.arguments import Arguments, parse
from recipe.cli import read_options
from recipe.data.images import decode
from recipe.schema import UserError

HARMS = ("tracebacks", "hangs", "unaccounted", "wrong results")
CASE_SECONDS = 20
FORMS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
Harm = tuple[str, str]  # one of HARMS, and what was seen


def mutate(data: bytes, rng: random.Random, words: tuple[bytes, ...] = ()) -> bytes:
    """One to four faults: bytes cut off, flipped, overwritten, cut out, repeated, or a word put in."""
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 16, 200))
        fault = rng.randrange(6 if words else 5)
        if fault == 0 and rng.random() < 0.5:
            data = data[:at]
        elif fault <= 1 and data[at : at + 1]:
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif fault == 2:
            data = data[:at] + rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size))) + data[at + size :]
        elif fault == 3:
            data = data[:at] + data[at + size :]
        elif fault == 4:
            data = data[: at + size] + data[at:]
        elif words:
            data = data[:at] + rng.choice(words) + data[at:]
    return data


def refusal(error: UserError) -> Iterator[Harm]:
    """A refusal is one line that any screen can show."""
    if not str(error).strip() or not str(error).isprintable():
        yield "tracebacks", f"a refusal that is no printable line: {str(error)!r}"


# ---- one case of each kind: what harm it did ----

LABEL_WORDS = (
    *(b"\n", b"\r", b" ", b"\t", b"\x00", b"\xef\xbb\xbf", b"\xe2\x80\xa8", "\u0661".encode(), b"0 0.5 0.5 0.1 0.1\n"),
    *b"- nan 1e999 0x1 2 . , # 1_0 -0.0 1e-300".split(),
)


def labels(rng: random.Random) -> Iterator[Harm]:
    """A label file: every line is a box inside the image or has a reason; an untouched line keeps its box."""

    def line() -> bytes:
        return b"%d %.6f %.6f %.6f %.6f" % (rng.randrange(2), *(rng.uniform(0.2, 0.6) for _ in range(4)))

    good = [line() for _ in range(rng.randint(1, 8))]
    data = mutate(b"\n".join(good) + rng.choice((b"", b"\n")), rng, LABEL_WORDS)
    found = read_labels(data, "a.txt", {0: 0, 1: 1}, 640, 480, polygons=rng.random() < 0.5)
    lost = sum(problem.boxes for problem in found.problems)  # each with a row in problems.csv
    if found.boxes_in != len(found.category) + lost or found.boxes_in != len(label_lines(data)):
        yield "unaccounted", f"{found.boxes_in} lines, {len(found.category)} boxes, {lost} dropped"
    x, y, w, h = found.bbox_xywh.T
    inside = (x >= 0) & (y >= 0) & (w > 0) & (h > 0) & (x + w <= 640.01) & (y + h <= 480.01)
    if not inside.all() or not set(found.category.tolist()) <= {0, 1}:
        yield "wrong results", f"boxes {found.bbox_xywh} of classes {found.category}"
    kept = {(int(k), *np.round(box).tolist()) for k, box in zip(found.category, found.bbox_xywh, strict=True)}
    for text in {*data.split(b"\n")} & {*good}:
        if not data.startswith((b"\xff\xfe", b"\xfe\xff")):
            kind, cx, cy, w, h = map(float, text.split())
            corners = np.clip([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, 1) * [640, 480, 640, 480]
            box = np.round([*corners[:2], *(corners[2:] - corners[:2])]).tolist()
            if not any(k == kind and np.abs(np.subtract(other, box)).max() <= 1 for k, *other in kept):
                yield "wrong results", f"the box of {text!r} was lost"


@cache
def photograph(form: str, turn: int) -> bytes:
    return picture(96, 64, form=form, orientation=turn, seed=turn)


def images(rng: random.Random) -> Iterator[Harm]:
    """An image: what `pack` takes, training decodes, at the size that was packed; the rest has a reason."""
    form, turn = rng.choice(FORMS), rng.randint(1, 8)
    good = photograph(form, turn)
    turned = turn >= 5 and form != "BMP"  # which has no EXIF
    if image_size(good) != ((64, 96) if turned else (96, 64)) or decode(good).shape[:2] != image_size(good)[::-1]:
        yield "wrong results", f"{form} of EXIF orientation {turn} has the size {image_size(good)}"
    data = mutate(good, rng)
    try:
        size = image_size(data)
    except ValueError as error:
        if not str(error).strip():
            yield "unaccounted", f"a {form} was refused without a reason"
        return
    shape = decode(data).shape
    if shape != (size[1], size[0], 3):
        yield "wrong results", f"{form}: packed as {size}, trained on as {shape}"


YAML = b"path: .\ntrain: images/train\nval: images/val\nnames:\n  0: person\n  1: head\nnc: 2\n# crowd\n"
YAML_WORDS = (
    *(b"\n", b"\t", b"\x00", b"\xff", b"- ", b": ", b"? ", b"|\n", b"&a ", b"*a", b"<<: *a\n", b"---\n"),
    *(b"!!python/object/apply:os.system [false]", *b"[ { ' \" ../ /dev/zero 2026-11-25".split()),
)


@cache
def crowd() -> Path:
    """A YOLO folder of one photograph a split."""
    return write_folder(Path(tempfile.mkdtemp(prefix="fuzz-")), {"a.jpg": (picture(), b"0 0.5 0.5 0.2 0.2\n")})


def yaml(rng: random.Random) -> Iterator[Harm]:
    """data.yaml: the two photographs with the two classes, or one line that says why not."""
    (crowd() / "data.yaml").write_bytes(mutate(YAML, rng, YAML_WORDS))
    try:
        found = open_folder(crowd())
    except UserError as error:
        yield from refusal(error)
        return
    names = {entry.name for split in found.splits.values() for entry in split.entries}
    if not {"a.jpg", "v.jpg"} <= {os.path.basename(name) for name in names}:
        yield "unaccounted", f"only {names} were found"
    if not found.classes or not set(found.classes.values()) <= {0, 1}:
        yield "wrong results", f"classes {found.classes}"


VALUES = (
    *("", "x" * 300, "\u0661", "é", "{}", "[", "../..", "/dev/null", "alice/crowd", "--data", "960x1536", "coco,yolo"),
    *["0", "1", "-1", "3", "0.5", "1e-4", "1e999", "nan", "-inf", "true", "none", "auto", "epoch", "steps"],
)


def flags(rng: random.Random) -> Iterator[Harm]:
    """A command line of train or predict: values as they were given and finite, or one line and exit code 2."""
    train = rng.random() < 0.7
    names = train_flags() if train else ["--out", "--threshold", "--tile", "--overlap", "--batch_size", "--save"]
    words = ["--data", "crowd"] if train else ["predict", "run", "photos", "--out", "out"]
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(names)
        if rng.random() < 0.1:
            name = "".join(filter(str.isprintable, mutate(name.encode(), rng).decode(errors="replace")))
        words += [name, *([rng.choice(VALUES)] if rng.random() < 0.9 else [])]
    before = dict(os.environ)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            values = vars(parse(words) if train else read_options(words))
    except UserError as error:
        yield from refusal(error)
        return
    except SystemExit as end:
        if end.code != 2 or "error: " not in said.getvalue():
            yield "tracebacks", f"{words} ended with {end.code}"
        return
    finally:
        os.environ.clear()
        os.environ.update(before)  # transformers writes some flags there
    for name, value in values.items():
        if isinstance(value, float) and not np.isfinite(value) and f"--{name}" in words:
            yield "wrong results", f"--{name} {value} was taken"


@cache
def train_flags() -> list[str]:
    return [f"--{field.name}" for field in fields(Arguments) if field.init]


# ---- many cases ----


class Hang(BaseException):
    """A case took longer than `CASE_SECONDS`; no `except Exception` holds it up."""


def run_case(what: str, number: int, seed: int) -> list[Harm]:
    """The harm that one case did; the same for the same seed, on its own too."""

    def stop(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(CASE_SECONDS)
    try:
        return list(CASES[what](random.Random(f"{seed}/{what}/{number}")))
    except Hang:
        return [("hangs", f"more than {CASE_SECONDS} s")]
    except BaseException:
        return [("tracebacks", traceback.format_exc())]
    finally:
        signal.alarm(0)


CASES: dict[str, Callable[[random.Random], Iterator[Harm]]] = {
    "labels": labels, "images": images, "yaml": yaml, "flags": flags,
}  # fmt: skip
COUNTS = {"labels": 20_000, "images": 2_000, "yaml": 500, "flags": 500}


def run_cases(what: str, numbers: range, seed: int) -> list[tuple[int, Harm]]:
    warnings.simplefilter("ignore")  # of Pillow and transformers, on what they are given
    return [(number, harm) for number in numbers for harm in run_case(what, number, seed)]


def many_cases(what: str, count: int, seed: int, workers: int = 2) -> list[tuple[int, Harm]]:
    """All cases of one kind, in processes: a decoder that crashes takes one of them with it, and is counted."""
    parts = [range(at, min(at + 250, count)) for at in range(0, count, 250)]
    with ProcessPoolExecutor(workers) as pool:
        try:
            done = pool.map(partial(run_cases, what, seed=seed), parts, timeout=600)
            return [found for part in done for found in part]
        except BrokenProcessPool:
            return [(-1, ("tracebacks", f"a process died, somewhere in {what}"))]
        except TimeoutError:
            return [(-1, ("hangs", f"{what} did not end"))]


def show(rows: dict[str, tuple[int, list[tuple[int, Harm]]]]) -> int:
    """Print each harm, then the table; returns 1 if there is any."""
    for what, (_, harms) in rows.items():
        for number, (kind, words) in harms[:5]:
            print(f"{what}/{number}: {kind}: {words}")
    print(" | ".join(["what", "how many", *HARMS]))
    for what, (count, harms) in rows.items():
        found = Counter(kind for _, (kind, _) in harms)
        print(" | ".join(map(str, [what, f"{count:,}", *(found[kind] for kind in HARMS)])))
    return int(any(harms for _, harms in rows.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of all cases")
    parser.add_argument("--case", help="KIND/NUMBER: this one alone")
    options = parser.parse_args()
    if options.case:
        what, number = options.case.split("/")
        return show({what: (1, [(int(number), harm) for harm in run_case(what, int(number), options.seed)])})
    from kills import many_kills

    began, rows = time.monotonic(), {}
    for what, count in COUNTS.items():
        some = max(1, round(count * options.share))
        rows[what] = some, many_cases(what, some, options.seed)
    rows |= many_kills(max(1, round(5 * options.share)), options.seed)
    code = show(rows)
    print(f"{time.monotonic() - began:.0f} s, seed {options.seed}")
    return code


if __name__ == "__main__":
    sys.exit(main())
