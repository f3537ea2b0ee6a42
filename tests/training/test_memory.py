"""The densest batch is tried first, and a smaller one keeps the effective batch."""

from __future__ import annotations

import pytest
import torch
from training.test_trainer import make_trainer

from recipe.schema import UserError
from recipe.training.memory import densest, find_batch_size


def too_small_for(trainer, limit: int):
    """A GPU that holds batches of `limit` images."""
    forward = trainer.model.forward

    def limited(pixel_values, **inputs):
        if len(pixel_values) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(pixel_values=pixel_values, **inputs)

    trainer.model.forward = limited
    return trainer


def fit(trainer) -> int:
    """The trial as `recipe train` makes it on a GPU, without growing."""
    return find_batch_size(trainer.args, trainer.model, trainer.processing_class, trainer.train_dataset, grow=False)


def test_the_trial_batch_holds_the_fullest_images_of_the_largest_size(tiny_flags, tmp_path):
    trainer = make_trainer(tiny_flags, tmp_path)
    data = trainer.train_dataset
    sizes = [data[index]["size"] for index in range(len(data))]
    largest = max(sizes, key=lambda size: size[0] * size[1])
    counts = [len(data[index]["boxes"]) for index in range(len(data)) if sizes[index] == largest]
    assert [len(data[index]["boxes"]) for index in densest(data, 2)] == sorted(counts)[:-3:-1]
    assert {sizes[index] for index in densest(data, 20)} == {largest}


def test_out_of_memory_halves_the_batch_and_keeps_the_effective_one(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
    trainer = too_small_for(make_trainer(flags, tmp_path), 1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    generator = torch.get_rng_state()
    assert fit(trainer) == 1
    assert trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps == 8
    assert len(next(iter(trainer.get_train_dataloader()))["labels"]) == 1
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize(("batch", "smaller"), [(5, 4), (6, 4), (9, 6)])
def test_a_batch_that_does_not_fit_goes_to_the_next_divisor_of_the_effective_one(batch, smaller, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", "4"]
    trainer = too_small_for(make_trainer(flags, tmp_path), batch - 1)
    assert fit(trainer) == smaller
    assert smaller * trainer.args.gradient_accumulation_steps == batch * 4


def test_when_not_one_image_fits_the_error_names_a_smaller_size(tiny_flags, tmp_path):
    trainer = too_small_for(make_trainer(tiny_flags, tmp_path), 0)
    with pytest.raises(UserError, match="--shortest_edge 800 --longest_edge 1333"):
        fit(trainer)
