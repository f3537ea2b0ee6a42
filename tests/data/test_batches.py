"""Batches: one orientation each, every sample once an epoch, the same whatever the workers, and after a resume."""

import collections
import itertools
import types

import datasets
import numpy as np
import packed
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from recipe.cli import main
from recipe.config import Config
from recipe.data.batches import OrientationBatchSampler, collate, normalise
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry

RULE = Geometry(64, 96)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Seven landscape and four portrait images, augmented."""
    folder = tmp_path_factory.mktemp("crowd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        source, annotations, _ = load_split(str(packed.write(folder / "packed", packed.crowd(11))), "train")
    return lambda: CrowdDataset(source, annotations, RULE, Config(data="x", affine=0.7, color=0.5), seed=5)


def loader(dataset, workers=0, persistent=False, **options):
    sampler = OrientationBatchSampler(dataset, **({"batch_size": 2, "seed": 5} | options))
    return DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, persistent_workers=persistent
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


def fake(portrait) -> CrowdDataset:
    """A dataset of which only the orientations are asked."""

    class Fake(list):
        annotations = types.SimpleNamespace(portrait=np.array(portrait, dtype=bool))
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

    return Fake(portrait)


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_sample_comes_once_an_epoch_and_orientations_never_mix(portrait, size, processes, shuffle, epoch):
    dataset = fake(portrait)
    sampler = OrientationBatchSampler(dataset, size, shuffle=shuffle, seed=1, processes=processes)
    dataset.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(index for batch in batches for _, index in batch) == list(range(len(portrait)))
    assert all(len({portrait[index] for _, index in batch}) == 1 for batch in batches)
    assert {epoch} == {number for batch in batches for number, _ in batch}
    assert max(len(batch) for batch in batches) <= size
    assert len(batches) == len(sampler)
    assert len(batches) % processes == 0 or len(batches) == len(portrait)


def test_order_is_another_in_each_epoch_and_seed_and_the_same_when_asked_again():
    dataset = fake([False, True] * 20)
    sampler, other = (OrientationBatchSampler(dataset, 2, seed=seed) for seed in (1, 2))
    first = list(sampler)
    assert list(sampler) == first
    assert list(other) != first
    dataset.set_epoch(1)
    assert [[index for _, index in batch] for batch in sampler] != [[index for _, index in batch] for batch in first]
    flags = [batch[0][1] % 2 for batch in first]
    assert sum(a != b for a, b in itertools.pairwise(flags)) > 4  # orientations are interleaved


def test_evaluation_keeps_the_datasets_order_up_to_orientation():
    batches = list(OrientationBatchSampler(fake([False, False, True, False, True]), 2, shuffle=False))
    assert [[index for _, index in batch] for batch in batches] == [[0, 1], [2, 4], [3]]


@pytest.mark.parametrize(("size", "count", "processes"), [(2, 11, 2), (4, 9, 2), (3, 30, 4), (8, 5, 2), (2, 12, 3)])
def test_through_accelerate_the_processes_share_whole_batches_and_no_sample_is_lost(size, count, processes):
    """Bites when the sampler tells accelerate a batch size: BatchSamplerShard then drops the group in which an
    orientation's last, short batch stands, and fills up others with samples of the wrong orientation."""
    dataset = fake([index % 3 == 0 for index in range(count)])
    shares = []
    for process in range(processes):
        plain = DataLoader(
            dataset,
            batch_sampler=OrientationBatchSampler(dataset, size, seed=1, processes=processes),
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
    assert all(len({index % 3 == 0 for _, index in batch}) == 1 for batch in batches)


def test_with_fewer_samples_than_processes_a_whole_batch_is_repeated():
    """Each process needs the same count of batches, or the others wait for it for ever."""
    dataset = fake([False, True, False])
    sampler = OrientationBatchSampler(dataset, 1, seed=1, processes=2)
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
    dataset = fake([False] * 12)
    for processes in (1, 2):
        dataset.set_epoch(0)
        sampler = OrientationBatchSampler(dataset, 2, seed=1, processes=processes)
        plain = DataLoader(dataset, batch_sampler=sampler, collate_fn=lambda x: x)
        prepared = prepare_data_loader(plain, num_processes=processes, process_index=0, put_on_device=False)
        resumed = skip_first_batches(prepared, 1)
        resumed.set_epoch(3)
        assert {epoch for batch in resumed.batch_sampler for epoch, _ in batch} == {3}


@pytest.mark.parametrize("flag", ["--per_device_train_batch_size", "--per_device_eval_batch_size"])
def test_a_batch_of_no_images_is_refused_before_anything_is_loaded(flag, tiny_flags, tmp_path, capsys):
    assert main(["train", *tiny_flags, flag, "0", "--output_dir", str(tmp_path / "run")]) == 2
    assert f"error: {flag} 0: must be 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


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


def test_images_lie_top_left_on_two_static_canvases_with_zeros_beside(crowd):
    dataset = crowd()
    shapes = set()
    for batch in loader(dataset, workers=1):
        pixels = batch["pixel_values"]
        assert pixels.dtype == torch.uint8
        shapes.add(tuple(pixels.shape[1:]))
        for image, label in zip(pixels, batch["labels"], strict=True):
            h, w = label["size"].tolist()
            expected = dataset[(0, label["image_id"].item())]
            np.testing.assert_array_equal(image[:, :h, :w].permute(1, 2, 0).numpy(), expected["pixels"])
            assert image[:, h:].sum() == image[:, :, w:].sum() == 0
    assert shapes == {(3, 64, 96), (3, 96, 64)}


def test_padding_is_zero_even_in_memory_that_held_something_else(monkeypatch):
    """A fresh array is mostly zero by luck; one from a reused page is not."""
    monkeypatch.setattr(torch, "empty", lambda shape, dtype: torch.full(shape, 255, dtype=dtype))
    sample = {"pixels": np.full((40, 50, 3), 7, np.uint8), "size": (40, 50), "orig_size": (4, 5), "canvas": (64, 96)}
    sample |= {"boxes": np.zeros((0, 4), np.float32), "class_labels": np.zeros(0, np.int64), "image_id": 1}
    assert collate([sample, sample])["pixel_values"].sum() == 2 * 3 * 40 * 50 * 7


def test_labels_arrive_from_a_worker_as_plain_lists_of_tensors(crowd):
    """The interface is that of the stock collators, with and without workers."""
    for workers in (0, 1):
        labels = next(iter(loader(crowd(), workers)))["labels"]
        assert type(labels) is list
        assert {name: value.dtype for name, value in labels[0].items()} == {
            "class_labels": torch.int64,
            "boxes": torch.float32,
            "image_id": torch.int64,
            "size": torch.int64,
            "orig_size": torch.int64,
        }


def test_labels_open_no_file_each_on_their_way_from_a_worker(crowd):
    """Bites when they cross as tensors: five shared-memory files an image, 640 for 8 workers at batch 8."""
    shared = [value.is_shared() for label in next(iter(loader(crowd(), 1)))["labels"] for value in label.values()]
    assert not any(shared)


def test_normalised_padding_is_exactly_zero_and_masked(crowd):
    """DINOv3 sees the padding: the stock processor pads after normalising, so black would be another image."""
    batch = next(iter(loader(crowd(), batch_size=1)))
    batch["labels"][0]["size"] = torch.tensor([40, 50])  # as if the image ended there
    inputs = normalise(batch)
    assert inputs["pixel_values"].dtype == torch.float32
    assert inputs["pixel_values"].is_contiguous()
    assert inputs["pixel_mask"].sum() == 40 * 50
    assert (inputs["pixel_values"][:, :, 40:] == 0).all()
    assert (inputs["pixel_values"][:, :, :, 50:] == 0).all()
    assert (inputs["pixel_values"][:, :, :40, :50] != 0).float().mean() > 0.9
