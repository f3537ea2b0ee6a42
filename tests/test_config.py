"""Settings are refused before hours are spent, and defaults stand in one place."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import fields

import evaluated
import pytest
from transformers import TrainingArguments

from recipe.arguments import METRICS, REFUSED, parse
from recipe.cli import COMMANDS
from recipe.config import PILOT, PILOT_CPU, RANGES, TRAINING, Config, split_flags
from recipe.schema import UserError


def test_the_full_preset_is_the_contracts():
    args = parse(["--data", "here"])
    assert (args.num_queries, args.encoder_layers, args.decoder_layers, args.d_model) == (300, 6, 6, 256)
    assert (args.shortest_edge, args.longest_edge) == (960, 1536)
    assert (args.hflip, args.affine, args.rotate, args.shear, args.translate) == (0.5, 0.4, 5, 3, 0.03)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm, args.warmup_steps) == (1e-4, 1e-4, 0.1, 0.05)
    assert (args.num_train_epochs, args.save_total_limit, args.dataloader_num_workers) == (10, 8, 8)
    assert args.metric_for_best_model == "eval_map"
    assert args.load_best_model_at_end
    assert args.hub_private_repo
    assert args.trackio_static_space_id is False
    assert args.logging_nan_inf_filter is False


def test_the_pilot_changes_only_what_it_says():
    args = parse(["--preset", "pilot"])
    differing = {flag.name for flag in fields(Config) if getattr(args, flag.name) != flag.default}
    assert differing == {"preset", *PILOT, *PILOT_CPU}
    assert (args.logging_steps, args.warmup_steps) == (1, 0)


def test_a_flag_beats_the_preset_and_the_default():
    args = parse(["--preset", "pilot", "--backbone", "here", "--learning_rate", "3e-4"])
    assert (args.backbone, args.learning_rate) == ("here", 3e-4)


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        (["--data", "x"], "outputs/run"),
        (["--preset", "pilot"], "outputs/pilot"),
        (["--data", "x", "--output_dir", "y"], "y"),
    ],
)
def test_the_folder_of_a_run_is_the_recipes_own_default(flags, folder):
    """transformers has a flag of this name too, whose default is trainer_output."""
    assert parse(flags).output_dir == folder


def test_every_flag_may_be_written_with_dashes():
    """Fails where only transformers takes them: --output-dir went to its arguments and the run lay in two folders."""
    flags = ["--preset", "pilot", "--output-dir", "a-folder", "--max-hours=2", "--learning-rate", "3e-4"]
    args = parse(flags)
    assert (args.output_dir, args.max_hours, args.learning_rate) == ("a-folder", 2, 3e-4)


def test_a_run_is_pushed_where_a_repo_is_named_unless_that_is_refused():
    def pushes(*flags):
        return parse(["--preset", "pilot", *flags]).push_to_hub

    assert not pushes()
    assert pushes("--hub_model_id", "me/crowd")
    assert pushes("--push_to_hub")
    assert not pushes("--hub_model_id", "me/crowd", "--push_to_hub", "false")


def test_the_best_is_the_lowest_miss_rate_and_the_highest_of_all_else(tmp_path):
    for metric in ("eval_mr2_head", "eval_map_50"):
        args = parse(["--preset", "pilot", "--metric_for_best_model", metric])
        assert args.greater_is_better == (metric == "eval_map_50")
    assert set(METRICS) == set(evaluated.evaluate(evaluated.crowd(tmp_path)).compute())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "x", "--num_queries", "0"], ["--num_queries 0", "from 1 to 3000"]),
        (["--data", "x", "--hflip", "1.5"], ["--hflip 1.5", "from 0 to 1"]),
        (["--data", "x", "--longest_edge", "100"], ["--longest_edge 100", "--shortest_edge"]),
        (["--data", "x", "--d_model", "100"], ["--d_model 100", "multiple of the 8"]),
        (["--data", "x", "--max_hours", "0"], ["--max_hours", "above 0"]),
        (["--data", "x", "--scale_min", "2"], ["--scale_min 2.0", "above --scale_max"]),
        (["--preset", "huge"], ["huge", "full", "pilot"]),
        ([], ["--data is missing", "data_prep pack"]),
        (["--dta", "x"], ["--data is missing", "Did you mean --data by --dta?"]),
        (["--data", ""], ["--data ''", "must not be empty"]),
        (["--data", "x", "--shortest_edge", "1", "--longest_edge", "1"], ["--shortest_edge 1", "from 32"]),
        (["--data", "x", "--rotate", "nan"], ["--rotate nan", "from 0 to 180"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it_and_exit_code_2(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        split_flags(flags)
    assert error.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning_rte", "1"], ["--learning_rte", "--learning_rate"]),
        (["--lr", "1"], ["unknown flag --lr. Did you mean --learning_rate by --lr?"]),
        (["--dataloader_num_workers", "-1"], ["--dataloader_num_workers -1", "from 0 to 256"]),
        (["--eval_strategy", "sometimes"], ["sometimes"]),
        (["--save_strategy", "no"], ["load_best_model_at_end"]),
        (["--num_train_epochs", "many"], ["many"]),
        (["--metric_for_best_model", "eval_mAP"], ["--metric_for_best_model eval_mAP", "eval_map,", "eval_ji_head"]),
        (["--num_train_epochs", "-3"], ["--num_train_epochs -3", "above 0"]),
        (["--max_grad_norm", "nan"], ["--max_grad_norm nan"]),
        (["--learning_rate", "inf"], ["--learning_rate inf", "from 0 to 1"]),
        (["--save_total_limit", "1"], ["--save_total_limit 1", "from 2"]),
        (["--dataloader_num_workers", "100000"], ["--dataloader_num_workers 100000"]),
        (["--report_to", "wandb"], ["--report_to wandb", "not installed"]),
        (["--save_strategy", "best"], ["--save_strategy best", "epoch or steps"]),
        (["--eval_steps", "nan"], ["--eval_steps nan"]),
        (["--accelerator_config", "nowhere.json"], ["nowhere.json"]),
    ],
)
def test_a_wrong_flag_of_transformers_is_refused_with_a_suggestion(flags, words):
    with pytest.raises(UserError) as error:
        parse(["--preset", "pilot", *flags])
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


HARMFUL = {"resume_from_checkpoint": "checkpoint-8", "hub_revision": "draft", "hub_strategy": "end", "data_seed": "7"}
HARMFUL |= {"label_smoothing_factor": "0.1", "average_tokens_across_devices": "false"}
HARMFUL |= {"train_sampling_strategy": "sequential", "fsdp": "full_shard", "deepspeed": "zero.json"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_flag_that_would_be_ignored_is_refused_with_what_holds_instead(name):
    with pytest.raises(UserError) as error:
        parse(["--preset", "pilot", f"--{name}", HARMFUL.get(name, "true")])
    assert f"--{name} " in str(error.value)
    assert REFUSED[name] in str(error.value)


def test_every_replaced_default_is_still_a_flag_of_transformers():
    """Fails when a release renames one: evaluation_strategy, warmup_ratio and logging_dir went that way."""
    assert set(TRAINING) | set(RANGES) <= {flag.name for flag in fields(TrainingArguments)}


@pytest.mark.parametrize("words", ["data_prep", "recipe.cli", *(f"recipe.cli {command}" for command in COMMANDS)])
def test_help_of_every_command_answers_at_once_and_imports_no_torch(words):
    """Two seconds are allowed here, for a busy machine; benchmarks/startup.py measures it."""
    module, *command = words.split()
    code = (
        f"import runpy, sys; sys.argv = ['x', *{command}, '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'cv2', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
    assert time.monotonic() - start < 2
