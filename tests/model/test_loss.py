"""Both losses have the assignments and values of transformers' own, except where those are wrong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detector import targets
from transformers import DeformableDetrConfig, DetrConfig
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher

from recipe.model.loss import LOSSES, count_items, detection_loss, match

CONFIG = DetrConfig(decoder_layers=3, auxiliary_loss=True, num_labels=2)
FOCAL = DeformableDetrConfig(decoder_layers=3, auxiliary_loss=True, num_labels=2, class_cost=2)
QUERIES = 30


def outputs(batch: int, seed: int = 0, layers: int = 3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, batch, QUERIES, 3, generator=generator, requires_grad=True)
    boxes = (torch.rand(layers, batch, QUERIES, 4, generator=generator) * 0.4 + 0.1).requires_grad_()
    return logits, boxes


def stock_loss(logits, boxes, labels, of=ForObjectDetectionLoss, config=CONFIG):
    """The loss, and its parts for each layer."""
    loss, parts, _ = of(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)
    return loss, {name: torch.stack([parts[name + layer] for layer in ("_0", "_1", "")]) for name in LOSSES}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, QUERIES), min_size=1, max_size=4), st.integers(0, 10_000))
def test_loss_and_gradients_equal_those_of_transformers(sizes, seed):
    labels = targets(sizes, seed)
    ours, theirs = outputs(len(sizes), seed), outputs(len(sizes), seed)
    loss, parts = detection_loss(*ours, labels, CONFIG)
    expected, expected_parts = stock_loss(*theirs, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, value in parts.items():
        torch.testing.assert_close(value, expected_parts[name], rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-3, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, QUERIES), min_size=1, max_size=4).filter(sum), st.integers(0, 10_000))
def test_the_focal_loss_and_its_gradients_equal_those_of_transformers(sizes, seed):
    """But for the weight of 2, which the original has and transformers left out; and "no object" is never touched."""
    labels = targets(sizes, seed)
    (logits, boxes), (stock_logits, stock_boxes) = outputs(len(sizes), seed), outputs(len(sizes), seed)
    loss, parts = detection_loss(logits, boxes, labels, FOCAL)
    stock = {"of": DeformableDetrForObjectDetectionLoss, "config": FOCAL}
    expected, expected_parts = stock_loss(stock_logits[..., :2], stock_boxes, labels, **stock)
    expected = expected + expected_parts["loss_ce"].sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for name, value in parts.items():
        torch.testing.assert_close(value, expected_parts[name], rtol=1e-4, atol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, stock_logits.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(boxes.grad, stock_boxes.grad, rtol=1e-3, atol=1e-5)
    assert not logits.grad[..., 2].any()


def test_every_box_is_matched_to_the_query_that_transformers_picks():
    labels = targets([5, 0, 12])
    logits, boxes = outputs(3, layers=1)
    query, target = match(logits, boxes, labels, CONFIG)
    reference = HungarianMatcher(CONFIG.class_cost, CONFIG.bbox_cost, CONFIG.giou_cost)(
        {"logits": logits[0], "pred_boxes": boxes[0]}, labels
    )
    starts = [0, 5, 5]
    expected = {
        (int(q) + image * QUERIES, int(t) + starts[image])
        for image, pair in enumerate(reference)
        for q, t in zip(*pair, strict=True)
    }
    assert set(zip(query[0].tolist(), target[0].tolist(), strict=True)) == expected


# ---- what it is divided by ----


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, QUERIES + 5), min_size=8, max_size=8), st.integers(0, 10_000))
def test_micro_batches_add_up_to_the_loss_and_gradient_of_one_batch(sizes, seed):
    """Bites where each micro-batch is divided by its own boxes: a box in a dense one then weighs a fifth."""
    labels = targets(sizes, seed)
    together, apart = outputs(8, seed), outputs(8, seed)
    expected, expected_parts = detection_loss(*together, labels, CONFIG)
    batches = [{"labels": labels[start : start + 2]} for start in range(0, 8, 2)]
    items = count_items(batches, QUERIES)
    found = [
        detection_loss(*(tensor[:, 2 * number :][:, :2] for tensor in apart), batch["labels"], CONFIG, items)
        for number, batch in enumerate(batches)
    ]
    loss = torch.stack([loss for loss, _ in found]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(parts["loss_ce"] for _, parts in found), expected_parts["loss_ce"])
    loss.backward()
    expected.backward()
    for mine, reference in zip(apart, together, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-6)


def test_the_items_of_a_step_are_its_matched_boxes_and_its_images():
    batches = [{"labels": targets([3, 0])}, {"labels": targets([2 * QUERIES])}]
    assert count_items(batches, QUERIES).tolist() == [3 + QUERIES, 3]
    assert count_items([{"labels": [], "error": "x.jpg is damaged"}], QUERIES).tolist() == [0, 0]


def test_boxes_beyond_the_queries_do_not_dilute_the_loss_of_the_others():
    """transformers divides by all boxes, dropped ones too: 60 boxes on 30 queries halve the box losses."""
    labels = targets([2 * QUERIES])
    logits, boxes = outputs(1)
    _, parts = detection_loss(logits, boxes, labels, CONFIG)
    _, stock = stock_loss(logits, boxes, labels)
    torch.testing.assert_close(parts["loss_bbox"], 2 * stock["loss_bbox"], rtol=1e-5, atol=1e-5)


# ---- what is not background ----


def test_where_heads_are_not_labelled_an_unmatched_query_may_see_a_head():
    """Bites with the plain cross entropy: every head that nobody annotated is trained as "no object"."""
    logits, boxes = outputs(2)
    everything, persons = torch.tensor([True, True]), torch.tensor([True, False])
    labels = targets([0, 0])
    for label, labelled in zip(labels, (everything, persons), strict=True):
        label["labelled"] = labelled
    loss, parts = detection_loss(logits, boxes, labels, CONFIG)
    shares = logits[-1].softmax(-1)
    nothing_else = [-shares[0, :, 2].log(), -(shares[1, :, 2] + shares[1, :, 1]).log()]
    torch.testing.assert_close(parts["loss_ce"][-1], torch.cat(nothing_else).mean())
    loss.backward()
    assert (logits.grad[:, 1, :, 0] > 0).all()  # the descent lowers "person" ...
    assert (logits.grad[:, 1, :, 1:] < 0).all()  # ... and raises "head" and "no object", each by its share
    assert (logits.grad[:, 0, :, 1] > 0).all()


def test_the_focal_loss_leaves_an_unlabelled_class_out_but_for_matched_queries():
    """Bites where the column is learnt all the same: every query is then pushed towards a head, or away from it."""
    logits, boxes = outputs(1)
    labels = targets([4])
    labels[0] |= {"class_labels": torch.zeros(4, dtype=torch.int64), "labelled": torch.tensor([True, False])}
    detection_loss(logits, boxes, labels, FOCAL)[0].backward()
    assert logits.grad[:, 0, :, 0].all()
    heads = logits.grad[:, 0, :, 1]
    assert ((heads > 0).sum(-1) == 4).all()  # who is a person is no head
    assert (heads.count_nonzero(-1) == 4).all()  # of all others nobody knows


@pytest.mark.parametrize("config", [CONFIG, FOCAL])
def test_a_query_within_an_ignored_region_is_not_pushed_to_no_object(config):
    logits, _ = outputs(1)
    boxes = torch.full((3, 1, QUERIES, 4), 0.1)
    boxes[..., 0] = torch.linspace(0.05, 0.95, QUERIES)  # from left to right
    labels = targets([0])
    labels[0]["ignored"] = torch.tensor([[0.25, 0.5, 0.5, 1.0]])  # the left half
    loss, _ = detection_loss(logits, boxes, labels, config)
    loss.backward()
    pushed = logits.grad[..., 0] > 0  # the descent lowers "person"
    assert torch.equal(pushed[0, 0], boxes[0, 0, :, 0] >= 0.5)


def test_a_box_within_an_ignored_region_is_learned_all_the_same():
    logits, boxes = outputs(1)
    labels = targets([4])
    labels[0]["ignored"] = torch.tensor([[0.5, 0.5, 1.0, 1.0]])  # everything
    loss, _ = detection_loss(logits, boxes, labels, CONFIG)
    loss.backward()
    assert (logits.grad[-1, 0].abs().sum(-1) > 0).sum() == 4


# ---- edges ----


@pytest.mark.parametrize("config", [CONFIG, FOCAL])
@pytest.mark.parametrize("items", [None, torch.tensor([0.0, 2.0])])
def test_an_empty_batch_has_a_finite_loss_and_teaches_no_object(items, config):
    logits, boxes = outputs(2)
    loss, parts = detection_loss(logits, boxes, targets([0, 0]), config, items)
    loss.backward()
    assert torch.isfinite(loss)
    assert not parts["loss_bbox"].any()
    assert (logits.grad[..., :2] > 0).all()  # the descent lowers both classes


def test_a_broken_prediction_makes_the_loss_non_finite_instead_of_crashing_the_solver():
    logits, boxes = outputs(1)
    with torch.no_grad():
        boxes[-1, 0, 0] = float("nan")
        logits[-1, 0, 0] = float("nan")
    loss, _ = detection_loss(logits, boxes, targets([QUERIES]), CONFIG)
    assert not torch.isfinite(loss)


def test_the_loss_is_computed_in_fp32_even_from_bf16_outputs():
    """Fails without the `.float()` in detection_loss: costs and losses would be rounded to 8 bits."""
    labels = targets([8, 3])
    rounded = [tensor.detach().bfloat16() for tensor in outputs(2)]
    loss, parts = detection_loss(*rounded, labels, CONFIG)
    expected, _ = detection_loss(*(tensor.float() for tensor in rounded), labels, CONFIG)
    assert {part.dtype for part in parts.values()} == {torch.float32}
    assert loss == expected
