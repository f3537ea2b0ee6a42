"""The model card: what the Hub reads from it, and what it must not give away."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import evaluated
import pytest
from huggingface_hub import ModelCard

from recipe.evaluation.metrics import DetectionMetrics
from recipe.record import RunRecord
from recipe.report.card import Card, write_card

RECORD = RunRecord(
    run_name="crowd-1",
    run_id="1",
    started="2026-11-25T00:00:00",
    command=["/home/me/bin/recipe", "train", "--data", "me/crowd", "--hub_token", "hf_secret", "--push_to_hub"],
    commit="abc123",
    device="1 x RTX 4000 SFF Ada, 20 GiB",
    versions={"python": "3.11.9", "torch": "2.15.0"},
    settings={"backbone": "facebook/dinov3-vitl16-pretrain-lvd1689m", "detr_init": "facebook/detr-resnet-50",
              "num_queries": 300, "shortest_edge": 960, "longest_edge": 1536, "learning_rate": 1e-4,
              "hub_model_id": "me/crowd-detr"},
    fixed_settings={},
    dataset={"data": "me/crowd", "revision": "c0ffee", "train": {"images": 50, "boxes": 4000},
             "validation": {"images": 5, "boxes": 120}},
)  # fmt: skip


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """(values, details) of an evaluation in which no box is large: map_large is undefined."""
    metrics = evaluated.evaluate(evaluated.crowd(tmp_path_factory.mktemp("packed")))
    values = metrics.compute()
    assert values["map_large"] == -1
    return values, metrics.details()


def load(folder, numbers, record=RECORD, **settings):
    """The card as the Hub reads it; `settings` replace those of the record."""
    if settings:
        record = replace(record, settings=record.settings | settings)
    return (write_card(folder, *numbers, record, "epoch 1.50"), ModelCard.load(folder / "README.md"))[1]


def test_the_hub_reads_every_defined_number_from_the_model_index(tmp_path, numbers):
    values, _ = numbers
    data = load(tmp_path, numbers).data
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {key: round(value, 5) for key, value in values.items() if value >= 0}
    assert "mr2_person" in found
    assert "map_large" not in found
    result = data.eval_results[0]
    assert (result.task_type, result.dataset_type) == ("object-detection", "me/crowd")
    assert (result.dataset_split, result.dataset_revision) == ("validation", "c0ffee")
    assert (data.model_name, data.pretty_name) == ("crowd-detr", "crowd-detr")
    names = {result.metric_type: result.metric_name for result in data.eval_results}
    assert (names["map"], names["mr2_person"], names["map_50_head"]) == ("AP", "MR-2 person", "AP 50 head")


def test_the_front_matter_names_library_task_base_models_and_the_dinov3_licence(tmp_path, numbers):
    data = load(tmp_path, numbers).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "object-detection")
    assert data.base_model == ["facebook/dinov3-vitl16-pretrain-lvd1689m", "facebook/detr-resnet-50"]
    assert data.base_model_relation == "finetune"  # the Hub takes several base models for a merge
    assert data.datasets == ["me/crowd"]
    assert (data.license, data.license_name) == ("other", "dinov3-license")
    assert data.license_link.startswith("https://")


def test_a_folder_of_another_machine_is_no_base_model(tmp_path, numbers):
    """The card's own pattern took for a repo what the Hub's client refuses."""
    elsewhere = load(tmp_path, numbers, backbone="weights/dino..v2", detr_init="./detr")
    assert (elsewhere.data.base_model, elsewhere.data.get("base_model_relation")) == (None, None)


def test_the_card_says_built_with_dinov3_unless_the_backbone_is_random(tmp_path, numbers):
    assert "Built with DINOv3" in load(tmp_path, numbers).text
    pilot = load(tmp_path, numbers, backbone="tiny", detr_init="none")
    assert "Built with DINOv3" not in pilot.text
    assert pilot.data.license is None
    assert pilot.data.base_model is None


def test_local_data_is_no_dataset_of_the_hub(tmp_path, numbers):
    dataset = {"data": "/home/me/photos", "revision": None, "manifest": "ff"}
    local = load(tmp_path, numbers, replace(RECORD, dataset=dataset))
    assert local.data.datasets is None
    assert "/home/me" not in local.content
    assert "Data version `ff`" in local.text


def test_the_examples_name_the_repo_and_the_thresholds_of_best_f1(tmp_path, numbers):
    text = load(tmp_path, numbers).text
    points = numbers[1]["thresholds"]
    assert 'pipeline("object-detection", model="me/crowd-detr")' in text
    assert f"threshold={min(points.values()):.2f}" in text
    assert f"person {points['person']:.2f}, head {points['head']:.2f}" in text
    assert f"| MR-2 (lower is better) |  | {numbers[0]['mr2_person']:.3f} |" in text


def test_plots_are_shown_where_they_exist_and_photographs_never(tmp_path, numbers):
    """A model may be shared more widely than the photographs of the people it was evaluated on."""
    assert "![" not in load(tmp_path, numbers).text
    (tmp_path / "report").mkdir()
    for name in ("thresholds.png", "where.png", "curves.png", "worst.png", "predictions.png"):
        (tmp_path / "report" / name).touch()
    text = load(tmp_path, numbers).text
    assert all(f"(report/{name})" in text for name in ("thresholds.png", "where.png", "curves.png"))
    assert "worst.png" not in text
    assert "predictions.png" not in text


def test_the_card_says_how_to_batch_and_where_the_thresholds_stand(tmp_path, numbers):
    text = load(tmp_path, numbers).text
    assert "Batch photographs of one size only" in text
    assert "`detection_thresholds`" in text


def test_names_from_outside_inject_neither_html_nor_code(tmp_path, numbers):
    record = replace(RECORD, run_name="<img src=x> [a](b)", device="<b>|")
    text = load(tmp_path, numbers, record, hub_model_id='x"); evil("').text
    assert "<img" not in text
    assert "# &lt;img src=x&gt; \\[a\\]\\(b\\)" in text
    assert "<b>" not in text
    assert text.count("```") == 2
    assert 'model="x\\"); evil(\\"")' in text


@pytest.fixture
def saved(tmp_path):
    """Saves checkpoint-12 of a run with a callback; the checkpoint's folder."""

    def on_save(card, **state):
        checkpoint = tmp_path / "checkpoint-12"
        checkpoint.mkdir(exist_ok=True)
        RECORD.write(tmp_path)
        state = {"is_world_process_zero": True, "global_step": 12, "epoch": 1.5} | state
        card.on_save(SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(**state), None)
        return checkpoint / "README.md"

    return on_save


def test_every_checkpoint_says_which_weights_and_which_numbers_it_has(saved, tmp_path):
    metrics = evaluated.evaluate(evaluated.crowd(tmp_path / "packed"))
    metrics.step = 8
    text = saved(Card(metrics)).read_text()
    assert "Weights of epoch 1.50, step 12; all numbers are those of step 8. 5 images" in text
    assert "me/crowd-detr" in text
    metrics.step = 12
    assert "Weights of epoch 1.50, step 12. 5 images" in saved(Card(metrics)).read_text()


def test_a_checkpoint_before_any_evaluation_and_a_second_process_write_no_card(saved, tmp_path):
    assert not saved(Card(DetectionMetrics())).exists()
    metrics = evaluated.evaluate(evaluated.crowd(tmp_path / "packed"))
    assert not saved(Card(metrics), is_world_process_zero=False).exists()
