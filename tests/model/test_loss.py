"""The loss is DETR's: same assignments and values as transformers' own, except where that one is wrong."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher

from recipe.model.loss import detection_loss, match

CONFIG = DetrConfig(decoder_layers=3, auxiliary_loss=True, num_labels=2)
QUERIES = 30


def outputs(batch: int, seed: int = 0, layers: int = 3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, batch, QUERIES, 3, generator=generator, requires_grad=True)
    boxes = (torch.rand(layers, batch, QUERIES, 4, generator=generator) * 0.4 + 0.1).requires_grad_()
    return logits, boxes


def targets(sizes: list[int], seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "class_labels": torch.randint(0, 2, (size,), generator=generator),
            "boxes": torch.rand(size, 4, generator=generator) * 0.4 + 0.05,
        }
        for size in sizes
    ]


def loss_of(function, logits, boxes, labels):
    return function(logits[-1], labels, logits.device, boxes[-1], CONFIG, logits, boxes)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, QUERIES), min_size=1, max_size=4), st.integers(0, 10_000))
def test_loss_and_gradients_equal_those_of_transformers(sizes, seed):
    labels = targets(sizes, seed)
    ours, theirs = outputs(len(sizes), seed), outputs(len(sizes), seed)
    loss, parts, auxiliary = loss_of(detection_loss, *ours, labels)
    expected, expected_parts, _ = loss_of(ForObjectDetectionLoss, *theirs, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, value in parts.items():
        torch.testing.assert_close(value, expected_parts[name], rtol=1e-5, atol=1e-5)
    assert len(auxiliary) == CONFIG.decoder_layers - 1
    loss.backward()
    expected.backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-3, atol=1e-5)


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


def test_boxes_beyond_the_queries_do_not_dilute_the_loss_of_the_others():
    """transformers divides by all boxes, dropped ones too: 60 boxes on 30 queries halve the box losses."""
    labels = targets([2 * QUERIES])
    logits, boxes = outputs(1)
    _, parts, _ = loss_of(detection_loss, logits, boxes, labels)
    _, stock, _ = loss_of(ForObjectDetectionLoss, logits, boxes, labels)
    torch.testing.assert_close(parts["loss_bbox"], 2 * stock["loss_bbox"], rtol=1e-5, atol=1e-5)


def test_an_empty_batch_has_a_finite_loss_and_teaches_no_object():
    logits, boxes = outputs(2)
    loss, parts, _ = loss_of(detection_loss, logits, boxes, targets([0, 0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert parts["loss_bbox"] == 0
    assert (logits.grad[..., -1] < 0).all()  # the descent raises "no object"


def test_a_broken_prediction_makes_the_loss_non_finite_instead_of_crashing_the_solver():
    logits, boxes = outputs(1)
    with torch.no_grad():
        boxes[-1, 0, 0] = float("nan")
        logits[-1, 0, 0] = float("nan")
    loss, _, _ = loss_of(detection_loss, logits, boxes, targets([QUERIES]))
    assert not torch.isfinite(loss)


def test_the_loss_is_computed_in_fp32_even_from_bf16_outputs():
    """Fails without the `.float()` in detection_loss: costs and losses would be rounded to 8 bits."""
    labels = targets([8, 3])
    rounded = [tensor.detach().bfloat16() for tensor in outputs(2)]
    loss, parts, _ = loss_of(detection_loss, *rounded, labels)
    expected, _, _ = loss_of(detection_loss, *(tensor.float() for tensor in rounded), labels)
    assert {part.dtype for part in parts.values()} == {torch.float32}
    assert loss == expected
