"""Batches: one size each, every image once an epoch, the same whatever the workers, and after a resume."""

import collections
import itertools
import types

import numpy as np
import packed
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from recipe.config import Config
from recipe.data.augment import build_augmentation
from recipe.data.batches import SizeBatchSampler, collate, normalise, worker_init
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.schema import UserError

RULE = Geometry(64, 96)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Seven landscape and four portrait images, augmented."""
    folder = packed.write(tmp_path_factory.mktemp("crowd"), packed.crowd(11))
    source, annotations, _ = load_split(str(folder), "train")
    config = vars(Config(data="x")) | {"augmentation": None, "affine": 0.7, "color": 0.5}
    augmentation = build_augmentation(types.SimpleNamespace(**config))
    return lambda: CrowdDataset(source, annotations, RULE, augmentation, seed=5)


def loader(dataset, workers=0, persistent=False, **options):
    sampler = SizeBatchSampler(dataset, **({"batch_size": 2, "seed": 5} | options))
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        worker_init_fn=worker_init,
        num_workers=workers,
        persistent_workers=persistent,
    )


def contents(batches) -> list[tuple]:
    """Everything of the batches that could differ, comparable."""
    return [
        (
            [int(label["image_id"]) for label in batch["labels"]],
            batch["pixel_values"].numpy().tobytes(),
            [label["boxes"].numpy().tobytes() for label in batch["labels"]],
        )
        for batch in batches
    ]


def fake(sizes) -> CrowdDataset:
    """A dataset of which only the sizes are asked: any number stands for one."""

    class Fake(list):
        annotations = types.SimpleNamespace(sizes=lambda _: np.array([(size, size) for size in sizes]))
        geometry = None
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

    return Fake(sizes)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_image_comes_once_an_epoch_and_sizes_never_mix(sizes, batch_size, processes, shuffle, epoch):
    dataset = fake(sizes)
    sampler = SizeBatchSampler(dataset, batch_size, shuffle=shuffle, seed=1, processes=processes)
    dataset.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(index for batch in batches for _, index in batch) == list(range(len(sizes)))
    assert all(len({sizes[index] for _, index in batch}) == 1 for batch in batches)
    assert {epoch} == {number for batch in batches for number, _ in batch}
    assert max(len(batch) for batch in batches) <= batch_size
    assert len(batches) == len(sampler)
    assert len(batches) % processes == 0 or len(batches) == len(sizes)


def test_batches_are_nearly_full_on_a_large_set_of_many_sizes():
    """Each size has one short batch at most: below 1 % of 55,442 images, as the sampler's docstring says."""
    geometry, rng = Geometry(), np.random.default_rng(0)
    ratios = rng.choice([16 / 9, 3 / 2, 4 / 3, 1, 2], 55_442, p=[0.25, 0.35, 0.25, 0.1, 0.05])
    cropped = rng.random(55_442) < 0.2  # a fifth was cropped by hand, to any ratio
    ratios = np.where(cropped, rng.uniform(1, 2.2, 55_442), ratios) ** rng.choice([1, 1, -1], 55_442)
    sizes = [geometry.resized(2000, int(2000 * ratio)) for ratio in ratios]
    dataset = fake([height * 10_000 + width for height, width in sizes])
    for batch_size, share in ((2, 0.003), (8, 0.015)):
        lengths = collections.Counter(len(batch) for batch in SizeBatchSampler(dataset, batch_size))
        assert 1 - lengths[batch_size] / sum(lengths.values()) < share


def test_order_is_another_in_each_epoch_and_seed_and_the_same_when_asked_again():
    dataset = fake([0, 1] * 20)
    sampler, other = (SizeBatchSampler(dataset, 2, seed=seed) for seed in (1, 2))
    first = list(sampler)
    assert list(sampler) == first
    assert list(other) != first
    dataset.set_epoch(1)
    assert [[index for _, index in batch] for batch in sampler] != [[index for _, index in batch] for batch in first]
    flags = [batch[0][1] % 2 for batch in first]
    assert sum(a != b for a, b in itertools.pairwise(flags)) > 4  # sizes are interleaved


def test_evaluation_keeps_the_datasets_order_up_to_size():
    batches = list(SizeBatchSampler(fake([0, 0, 1, 0, 1]), 2, shuffle=False))
    assert [[index for _, index in batch] for batch in batches] == [[0, 1], [2, 4], [3]]


@pytest.mark.parametrize(("size", "count", "processes"), [(2, 11, 2), (4, 9, 2), (3, 30, 4), (8, 5, 2), (2, 12, 3)])
def test_through_accelerate_the_processes_share_whole_batches_and_no_sample_is_lost(size, count, processes):
    """Bites when the sampler tells accelerate a batch size: BatchSamplerShard then drops the group in which a
    size's last, short batch stands, and fills up others with samples of the wrong size."""
    dataset = fake([index % 3 for index in range(count)])
    shares = []
    for process in range(processes):
        plain = DataLoader(
            dataset,
            batch_sampler=SizeBatchSampler(dataset, size, seed=1, processes=processes),
            collate_fn=lambda x: x,
        )
        share = prepare_data_loader(plain, num_processes=processes, process_index=process, put_on_device=False)
        shares.append(list(share.batch_sampler))
        assert len(share) == len(shares[-1])
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    seen = collections.Counter(index for batch in batches for _, index in batch)
    assert set(seen) == set(range(count))
    assert set(seen.values()) == {1}
    assert all(len({index % 3 for _, index in batch}) == 1 for batch in batches)


def test_with_fewer_samples_than_processes_a_whole_batch_is_repeated():
    """Each process needs the same count of batches, or the others wait for it for ever."""
    dataset = fake([0, 1, 0])
    sampler = SizeBatchSampler(dataset, 1, seed=1, processes=2)
    plain = DataLoader(dataset, batch_sampler=sampler, collate_fn=lambda x: x)
    shares = [
        list(prepare_data_loader(plain, num_processes=2, process_index=process, put_on_device=False).batch_sampler)
        for process in (0, 1)
    ]
    assert [len(share) for share in shares] == [2, 2]
    assert {index for share in shares for batch in share for _, index in batch} == {0, 1, 2}


def test_the_epoch_reaches_the_sampler_through_every_wrapper_of_accelerate():
    """Bites when the sampler keeps the epoch to itself: SkipBatchSampler around BatchSamplerShard hides it, and a run
    resumed within epoch 3 on two processes would repeat the order of epoch 0."""
    dataset = fake([0] * 12)
    for processes in (1, 2):
        dataset.set_epoch(0)
        sampler = SizeBatchSampler(dataset, 2, seed=1, processes=processes)
        plain = DataLoader(dataset, batch_sampler=sampler, collate_fn=lambda x: x)
        prepared = prepare_data_loader(plain, num_processes=processes, process_index=0, put_on_device=False)
        resumed = skip_first_batches(prepared, 1)
        resumed.set_epoch(3)
        assert {epoch for batch in resumed.batch_sampler for epoch, _ in batch} == {3}


@pytest.mark.parametrize("workers", [2, 4])
def test_batches_are_the_same_whatever_the_number_of_workers(crowd, workers):
    """Bites when augmentation draws from a generator that each worker copies at its fork."""
    dataset = crowd()
    expected = contents(loader(dataset))
    assert contents(loader(dataset, workers)) == expected
    assert len({pixels for _, pixels, _ in expected}) == len(expected)


def test_persistent_workers_learn_of_each_epoch(crowd):
    """Their copy of the dataset is from the fork: the epoch travels with each key."""
    dataset, fresh = crowd(), crowd()
    persistent = loader(dataset, workers=2, persistent=True)
    epochs = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        fresh.set_epoch(epoch)
        epochs.append(contents(persistent))
        assert epochs[-1] == contents(loader(fresh))
    assert len({str(sorted(ids for ids, _, _ in epoch)) for epoch in epochs}) == 3


def test_one_image_looks_different_in_every_epoch_and_unlike_its_neighbours(crowd):
    dataset = crowd()
    looks = {dataset[(epoch, 1)]["pixels"].tobytes() for epoch in range(12)}
    assert len(looks) >= 10  # without affine, flip and colour an epoch can repeat another
    boxes = {dataset[(0, index)]["boxes"].tobytes() for index in range(len(dataset))}
    assert len(boxes) == len(dataset)


def test_a_resumed_epoch_goes_on_with_the_batches_that_were_left(crowd):
    """Bites when the order or the augmentation hangs on how many numbers were drawn before."""
    dataset = crowd()
    accelerator = Accelerator(cpu=True)
    dataset.set_epoch(2)
    expected = contents(loader(dataset))
    resumed = skip_first_batches(accelerator.prepare(loader(crowd())), 3)
    resumed.set_epoch(2)
    assert contents(resumed) == expected[3:]


def test_a_batch_holds_the_images_as_they_are_without_padding(crowd):
    dataset = crowd()
    shapes = set()
    for batch in loader(dataset, workers=1):
        pixels = batch["pixel_values"]
        assert pixels.dtype == torch.uint8
        shapes.add(tuple(pixels.shape[1:]))
        for image, label in zip(pixels, batch["labels"], strict=True):
            expected = dataset[(0, label["image_id"].item())]
            assert label["size"].tolist() == list(image.shape[1:])
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected["pixels"])
    assert shapes == {(3, 64, 96), (3, 96, 64)}


def test_labels_arrive_from_a_worker_as_plain_lists_of_tensors(crowd):
    """The interface is that of the stock collators, with and without workers."""
    for workers in (0, 1):
        labels = next(iter(loader(crowd(), workers)))["labels"]
        assert type(labels) is list
        assert {name: (value.dtype, value.ndim) for name, value in labels[0].items()} == {
            "class_labels": (torch.int64, 1),
            "boxes": (torch.float32, 2),
            "image_id": (torch.int64, 1),
            "size": (torch.int64, 1),
            "orig_size": (torch.int64, 1),
            "labelled": (torch.bool, 1),
            "ignored": (torch.float32, 2),
        }


def test_normalised_pixels_are_floats_by_the_backbones_own_mean_and_std(crowd):
    batch = next(iter(loader(crowd())))
    for mean, std in ((MEAN, STD), ([0.43, 0.411, 0.296], [0.213, 0.156, 0.143])):
        inputs = normalise(batch, mean, std)
        assert set(inputs) == {"pixel_values", "labels"}
        expected = (batch["pixel_values"] / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(inputs["pixel_values"], expected)
        assert inputs["pixel_values"].dtype == torch.float32
        assert inputs["pixel_values"].is_contiguous()
        assert inputs["labels"][0].keys() == batch["labels"][0].keys()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_travels_as_a_value_and_is_raised_once_by_the_main_process(tmp_path, caplog, monkeypatch, workers):
    """An exception would arrive as a worker's traceback, to be parsed; through accelerate as anywhere."""
    rows = [*packed.crowd(3, portrait_every=9)[1:], packed.row(6, 120, 180, data=b"\xff\xd8 no image")]
    source, annotations, _ = load_split(str(packed.write(tmp_path, rows)), "train")
    batches = loader(CrowdDataset(source, annotations, RULE), workers, batch_size=3, shuffle=False)
    (batch,) = Accelerator(cpu=True).prepare(batches)
    assert batch["labels"] == []
    message = r"^6\.jpg \(image_id 6\) is a bad image: .*`python -m data_prep inspect YOLO_DIR`"
    with pytest.raises(UserError, match=message):
        normalise(batch, MEAN, STD)
    assert not caplog.records
    monkeypatch.setenv("RANK", "1")  # `recipe` prints the errors of rank 0 alone
    with pytest.raises(UserError):
        normalise(batch, MEAN, STD)
    assert caplog.messages[0].startswith("error: 6.jpg (image_id 6)")
