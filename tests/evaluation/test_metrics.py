"""The COCO numbers against pycocotools itself, and what several processes must agree on."""

import contextlib
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from crowd_images import collect, random_image, random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from recipe.evaluation.breakdown import name_errors
from recipe.evaluation.metrics import DetectionMetrics
from recipe.schema import UserError

CAPPED = ["map", "map_50", "map_75", "mar_1", "mar_10", "mar_100"]
SIZES = [f"{kind}_{size}" for kind in ("map", "mar") for size in ("small", "medium", "large")]
PER_CLASS = [f"{kind}_{name}" for kind in ("map", "mar_100", "map_50", "mr2", "ji") for name in ("person", "head")]
KEYS = [*CAPPED, *SIZES, "map_max300", "mar_300", *PER_CLASS]


def annotations(image, boxes, labels, first_id):
    left, top, right, bottom = boxes.astype(np.float64).T
    rows = np.stack([left, top, right - left, bottom - top], axis=1).tolist()
    return [
        {"id": first_id + k, "image_id": image["image_id"], "category_id": int(c), "bbox": b, "area": b[2] * b[3]}
        for k, (b, c) in enumerate(zip(rows, labels, strict=True))
    ]


def pycocotools_evaluation(images, max_dets):
    truth, found = [], []
    for image in images:
        rows = annotations(image, image["target_xyxy"], image["target_labels"], len(truth) + 1)
        for k, row in enumerate(rows):
            row["iscrowd"] = 0 if image["iscrowd"] is None else int(image["iscrowd"][k])
            row["area"] = row["area"] if image["target_area"] is None else image["target_area"][k]
        truth += rows
        rows = annotations(image, image["pred_xyxy"], image["labels"], len(found) + 1)
        found += [row | {"score": float(s)} for row, s in zip(rows, image["scores"], strict=True)]
    coco = []
    with contextlib.redirect_stdout(io.StringIO()):
        for rows in (truth, found):
            one = COCO()
            one.dataset = {"images": [{"id": i["image_id"]} for i in images], "annotations": rows}
            one.dataset["categories"] = [{"id": 0}, {"id": 1}]
            one.createIndex()
            coco.append(one)
        evaluation = COCOeval(*coco, "bbox")
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]  # [T, R, K, A, M], [T, K, A, M]


def pycocotools_numbers(images):
    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else -1.0

    precision, recall = pycocotools_evaluation(images, [1, 10, 100, 300, 10_000])
    numbers = {"map": mean(precision[..., 0, 2]), "map_50": mean(precision[0, ..., 0, 2])}
    numbers |= {"map_75": mean(precision[5, ..., 0, 2]), "map_max300": mean(precision[..., 0, 3])}
    for m, limit in enumerate((1, 10, 100, 300)):
        numbers[f"mar_{limit}"] = mean(recall[:, :, 0, m])
    for a, name in enumerate(("small", "medium", "large"), start=1):
        numbers |= {f"map_{name}": mean(precision[..., a, 2]), f"mar_{name}": mean(recall[..., a, 2])}
    for k, name in enumerate(("person", "head")):
        numbers |= {f"map_{name}": mean(precision[:, :, k, 0, 2]), f"mar_100_{name}": mean(recall[:, k, 0, 2])}
        numbers[f"map_50_{name}"] = mean(precision[0, :, k, 0, 4])
    return numbers


def assert_equal_to_pycocotools(images):
    ours, theirs = collect(images).compute(), pycocotools_numbers(images)
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-9)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 5),
    most_det=st.sampled_from([0, 3, 40]),
    most_target=st.sampled_from([0, 3, 25]),
    tied=st.booleans(),
    crowd=st.booleans(),
    jitter=st.sampled_from([0.0, 1.0, 6.0]),
    spread=st.sampled_from([10, 40, 250]),
    whole=st.booleans(),
)
def test_every_coco_number_equals_pycocotools(seed, count, **options):
    """Random, empty, tied, duplicate (jitter 0) and crowd-region cases, scattered and in heaps. A target that a better
    score took must send the loser to its next choice: without the second round of asking this fails."""
    assert_equal_to_pycocotools(random_images(seed, count, **options))


def shifted(*places):
    return np.array([[x, 0, x + 10, 10] for x in places], np.float32)


@pytest.mark.parametrize(
    ("found", "targets", "hit_targets"),
    [
        pytest.param([0, 1, 3.5], [0, 3, 6], [0, 1, 2], id="who loses a target late still gets the next one"),
        pytest.param([2, -1], [0, 4], [1, 0], id="the later of two targets with equal IoU wins"),
    ],
)
def test_chains_and_ties_end_as_in_pycocotools(found, targets, hit_targets):
    """First case: A takes the first target from B, so B takes the second from C, who held it already. Second case: A
    overlaps both equally; had it taken the first, B would be left without any."""
    image = {
        "image_id": 1,
        "pred_xyxy": shifted(*found),
        "scores": np.linspace(0.9, 0.7, len(found), dtype=np.float32),
    }
    image |= {"labels": np.zeros(len(found), int), "size": (20, 20), "target_area": None, "iscrowd": None}
    image |= {"target_xyxy": shifted(*targets), "target_labels": np.zeros(len(targets), int)}
    (seen,) = collect([image]).state()
    _, target, _ = name_errors(seen, np.array([0.5, 0.5]))
    assert target.tolist() == hit_targets
    assert_equal_to_pycocotools([image])


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32), tied=st.booleans(), crowd=st.booleans())
def test_crowds_of_hundreds_equal_pycocotools(seed, tied, crowd):
    """150 to 400 boxes lie on one another here, more than 100 and more than 300 detections per class."""
    rng = np.random.default_rng(seed)
    sizes = [(300, 150), (800, 400)]
    images = [random_image(rng, i, *size, tied=tied, crowd=crowd) for i, size in enumerate(sizes)]
    assert_equal_to_pycocotools(images)


@pytest.mark.parametrize(("most_det", "most_target"), [(0, 20), (30, 0), (0, 0)])
def test_images_without_detections_or_targets_equal_pycocotools(most_det, most_target):
    assert_equal_to_pycocotools(random_images(1, most_det=most_det, most_target=most_target))


def test_more_images_than_one_chunk_equal_pycocotools():
    """Matching runs over 32 images at once; boxes of different images must never meet."""
    assert_equal_to_pycocotools(random_images(2, count=70, most_det=8, most_target=5, tied=True))


def test_the_keys_are_the_documented_ones_with_and_without_ground_truth():
    assert set(collect(random_images(3)).compute()) == set(KEYS)
    nothing = collect(random_images(3, most_target=0)).compute()
    assert nothing == dict.fromkeys(KEYS, -1.0)


def test_a_perfect_crowd_is_capped_at_100_detections_and_whole_at_300():
    """Trap: COCO's cap is per class and image, so 150 perfectly found people score an AP of 0.67, not 1."""
    corner = np.stack(np.meshgrid(np.arange(15), np.arange(10)), axis=-1).reshape(-1, 2) * 20.0
    boxes, people = np.hstack([corner, corner + 10]), np.zeros(150, int)
    result = collect(
        [
            {
                "image_id": 0,
                "size": (400, 400),
                "pred_xyxy": boxes,
                "scores": np.linspace(0.9, 0.1, 150),
                "labels": people,
                "target_xyxy": boxes,
                "target_labels": people,
            }
        ]
    ).compute()
    assert result["map"] == pytest.approx(67 / 101)
    assert result["mar_100"] == pytest.approx(100 / 150)
    assert result["map_max300"] == result["mar_300"] == result["map_50_person"] == 1.0
    assert result["ji_person"] == 1.0
    assert result["mr2_person"] == pytest.approx(1e-10)
    assert result["map_head"] == result["mr2_head"] == result["ji_head"] == -1.0


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_exactly_the_numbers_of_one(processes):
    """Each share is padded with repeated images, as accelerate's even_batches does; they must count once."""
    images = random_images(4, count=40, tied=True, crowd=True)
    alone = collect(images)
    states = []
    for rank in range(processes):
        share = images[rank::processes] + images[:2]
        states.append(pickle.loads(pickle.dumps(collect(share).state())))
    together = collect(images[::processes])
    together.merge(states)
    assert together.compute() == alone.compute()
    assert together.details() == alone.details()


def test_numbers_are_worked_out_once_and_again_when_images_come_in():
    """The last epoch's card and the final report ask for the same ones."""
    images = random_images(10, count=6)
    metrics = collect(images[:2])
    assert metrics.details() is metrics.details()
    assert metrics.compute() is metrics.compute()
    collect(images[2:4], metrics)
    assert metrics.details() == collect(images[:4]).details()
    metrics.merge([collect(images[4:]).state()])
    assert metrics.details() == collect(images).details()
    assert metrics.compute() == collect(images).compute()


def test_the_order_of_the_images_does_not_matter():
    """Equal scores are ranked by image_id, as in pycocotools; ranked as they come, the numbers would not repeat."""
    images = random_images(5, count=12, tied=True)
    assert collect(images[::-1]).compute() == collect(images).compute()


def test_an_image_seen_twice_counts_once_as_it_came_first():
    first, other = random_images(9, count=2)
    assert collect([first, other | {"image_id": first["image_id"]}]).compute() == collect([first]).compute()


def test_a_class_that_nobody_annotated_is_left_out_of_its_image():
    """Found heads would be false ones where heads were not drawn; the image's people still count."""
    images = random_images(13, count=6, tied=True, crowd=True)
    people_only = [image | {"labelled": np.array([True, False])} for image in images[:3]]
    expected = []
    for image in images[:3]:
        det, target = image["labels"] == 0, image["target_labels"] == 0
        expected.append(image | {key: image[key][det] for key in ("pred_xyxy", "scores", "labels")})
        expected[-1] |= {key: image[key][target] for key in image if key.startswith("target_") or key == "iscrowd"}
    metrics = collect(people_only + images[3:])
    found, without_heads = metrics.compute(), collect(expected + images[3:]).compute()
    assert {key: found[key] for key in found if key != "mr2_head"} == {
        key: without_heads[key] for key in found if key != "mr2_head"
    }
    heads = [key for key in found if key.endswith("_head")]
    assert {key: found[key] for key in heads} == {key: collect(images[3:]).compute()[key] for key in heads}
    assert sum(row["images"] for row in metrics.details()["by_density"]["head"]) == 3
    assert sum(row["images"] for row in metrics.details()["by_density"]["person"]) == 6
    assert all((image.labels == 0).all() for image in list(metrics.state())[:3])


def test_reset_forgets_the_images_and_their_numbers():
    images = random_images(14)
    metrics = collect(images[:2])
    assert metrics.step == -1
    metrics.step = 40
    metrics.compute(), metrics.details()
    metrics.reset()
    assert metrics.step == -1
    with pytest.raises(UserError, match="no image"):
        metrics.compute()
    assert collect(images[2:], metrics).compute() == collect(images[2:]).compute()
    assert list(metrics.images()) == sorted(image["image_id"] for image in images[2:])


def test_later_changes_to_the_given_arrays_do_not_reach_the_metrics():
    images = random_images(6, count=3)
    for image in images:
        image["target_xyxy"] = image["target_xyxy"].astype(np.float64)
    expected, metrics = collect(images).compute(), collect(images)
    for image in images:
        image["target_xyxy"] += 50
        image["pred_xyxy"] += 50
        image["scores"][:] = 0
    assert metrics.compute() == expected


def test_one_image_of_300_detections_keeps_about_sixteen_kilobytes():
    rng = np.random.default_rng(7)
    images = [random_image(rng, i, 300, 80, spread=400) for i in range(40)]
    assert len(pickle.dumps(collect(images).state())) / 40 < 17_000


def test_a_label_without_a_name_is_refused():
    """Trap: class id 2 is DETR's no-object; it must never be counted as a detection or a target."""
    image = random_images(8, count=1)[0] | {
        "labels": np.full(5, 2),
        "scores": np.ones(5),
        "pred_xyxy": np.ones((5, 4)),
    }
    with pytest.raises(UserError, match=r"label 2, allowed are 0 to 1 \(person, head\)"):
        DetectionMetrics().update(**image)


def test_evaluating_no_image_is_refused():
    with pytest.raises(UserError, match="no image"):
        DetectionMetrics().compute()


def test_importing_the_metrics_loads_neither_torch_nor_pycocotools_nor_scipy():
    code = "import sys, recipe.evaluation.metrics; print({'torch', 'pycocotools', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
