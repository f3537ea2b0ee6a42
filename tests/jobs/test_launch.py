"""jobs/launch.py with the real clients against the loopback Hub; a job's `recipe` is a small script that stands in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from huggingface_hub import constants
from loopback.spaces import break_build
from published import publish

from jobs import job as job_room
from jobs import launch
from recipe.arguments import parse
from recipe.pace import MS_PER_IMAGE, Pace
from recipe.record import RunRecord
from recipe.training.run import fixed_settings

TRAIN = ["--data", "alice/crowd", "--backbone", "tiny", "--detr_init", "none", "--hub_model_id", "alice/detector"]


def start(*options, train=TRAIN):
    return launch.main(["--flavor", "a10g-large", *options, "--", *train])


def posts(hub):
    return [entry for entry in hub.requests if entry.method == "POST" and re.fullmatch(r"/api/jobs/alice", entry.path)]


def refused(hub, capsys, *options, train=TRAIN):
    """The one line with which a launch was refused before anything was started."""
    assert start(*options, train=train) == 2
    assert not posts(hub)
    said = capsys.readouterr()
    assert not said.out
    return said.err[said.err.index("error: ") :].strip()


# What is sent


SAME = ("command", "flavor", "labels", "volumes")
RENAMED = {"env": "environment", "timeout": "timeoutSeconds", "resource_group_id": "resourceGroupId"}


def test_a_dry_run_prints_the_very_job_that_would_start_and_starts_nothing(hub, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    extra = ["--env", "MODE=a=b", "--secret", "WANDB_API_KEY", "--ssh", "--resource-group-id", "group"]
    extra += ["--volume", "hf://datasets/alice/crowd@main:/data:ro", "--bucket", "alice/runs", "--timeout", "2h"]
    assert start(*extra, "--dry-run") == 0
    printed = json.loads(capsys.readouterr().out)
    assert not posts(hub)
    assert start(*extra, "--detach") == 0
    (sent,) = [job.spec for job in hub.jobs.all.values()]
    assert sent["secrets"] == {"HF_TOKEN": "hf_alice", "WANDB_API_KEY": "secret"}
    assert printed["secrets"] == ["HF_TOKEN", "WANDB_API_KEY"]
    carried = json.loads(sent["environment"].pop("RECIPE_JOB"))
    for request in (printed, carried, sent):
        assert re.fullmatch("[0-9a-f]{16}", request["labels"].pop("chain"))
    assert carried == printed
    for ours, theirs in {**dict(zip(SAME, SAME, strict=True)), **RENAMED}.items():
        assert sent[theirs] == printed[ours], ours
    assert printed["image"] == f"hf.co/spaces/{sent['spaceId']}" == "hf.co/spaces/alice/recipe"
    assert printed["timeout"] == 7200
    assert printed["env"] == {"MODE": "a=b"}
    assert sent["ssh"] == {"enabled": True}
    assert sent["volumes"][0] == {"type": "dataset", "source": "alice/crowd", "revision": "main", "mountPath": "/data",
                                  "readOnly": True}  # fmt: skip
    assert sent["volumes"][1]["mountPath"] == "/outputs/run"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "MODE"], "--env MODE: give NAME=VALUE"),
        (["--secret", "NOT_SET_HERE"], "--secret NOT_SET_HERE: not set here"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(hub, capsys, words, said):
    assert said in refused(hub, capsys, *words)


def test_every_command_that_is_printed_runs(hub, stand_in, tmp_path, capsys, monkeypatch):
    """Each as it stands, with the real `hf`, while the job runs; ssh alone would open a connection."""
    stand_in("print('begun', flush=True); time.sleep(60)")
    own = ["--flavor", "a10g-large", "--detach", "--ssh", "--", *TRAIN]
    monkeypatch.setattr(sys, "argv", ["jobs/launch.py", *own])
    assert launch.main(own) == 0
    printed = dict(re.findall(r"^(\w+(?: jobs)?) +((?:hf|python) .+)$", capsys.readouterr().err, re.MULTILINE))
    assert list(printed) == ["watch", "stats", "shell", "cancel", "all jobs", "resume"]
    said = {"watch": "begun", "stats": "CPU", "shell": "@ssh.hf.jobs", "cancel": "", "all jobs": "CANCELED"}
    env = hub.env("hf_alice", tmp_path / "home") | {"COLUMNS": "200"}
    watching = subprocess.Popen(shlex.split(printed.pop("watch")), env=env, stdout=subprocess.PIPE, text=True)
    assert watching.stdout.readline() == "begun\n"
    for name, command in printed.items():
        if name == "resume":  # starts a second job, the first having been cancelled
            assert launch.main(shlex.split(command)[2:]) == 0
            assert len(hub.jobs.all) == 2
        else:
            words = [*shlex.split(command), *(["--dry-run"] if name == "shell" else [])]
            done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert said[name] in done.stdout, (name, done.stdout)
    assert watching.wait(timeout=30) == 0


def test_a_try_is_one_short_job_that_pushes_nothing_and_is_no_link_of_the_training(hub, stand_in, capsys):
    stand_in("print(*sys.argv[1:])")
    assert start("--try") == 0
    lines = capsys.readouterr().out.splitlines()
    given = " ".join([*TRAIN, "--hub_model_id", "alice/detector"])
    assert lines[0] == f"doctor {given}"
    assert lines[1].startswith(f"train {given} --output_dir outputs/try --max_steps 60 ")
    assert "--push_to_hub false" in lines[1]
    (job,) = hub.jobs.all.values()
    assert job.spec["timeoutSeconds"] == 1800
    assert "model" not in job.spec["labels"]


def test_no_token_is_ever_printed(hub, stand_in, capsys):
    start("--dry-run")
    start()
    said = capsys.readouterr()
    assert "hf_alice" not in said.out + said.err


def test_a_token_on_the_command_line_is_refused(hub, capsys):
    said = refused(hub, capsys, train=[*TRAIN, "--hub_token", "hf_alice"])
    assert "as a secret" in said
    assert "hf_alice" not in said


def test_the_command_carries_the_users_flags_and_a_deadline_below_the_timeout(hub, capsys):
    start("--timeout", "10h", "--dry-run")
    command = json.loads(capsys.readouterr().out)["command"]
    assert command[: 2 + len(TRAIN)] == ["recipe", "train", *TRAIN]
    added = dict(zip(command[2 + len(TRAIN) :: 2], command[3 + len(TRAIN) :: 2], strict=False))
    assert 7 < float(added["--max_hours"]) < 9.7
    assert added["--hub_model_id"] == "alice/detector"


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://127.0.0.1:1?write_token=wt_secret"])
def test_a_trackio_server_of_ones_own_is_passed_on_as_a_secret(hub, capsys, monkeypatch, address):
    """`trackio show` prints its address with the token in it: so it is what people paste."""
    monkeypatch.setenv("TRACKIO_SERVER_URL", address)
    if "secret" not in address:
        monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "wt_secret")
    start("--dry-run")
    start("--detach")
    said = capsys.readouterr()
    (sent,) = [job.spec for job in hub.jobs.all.values()]
    assert sent["secrets"].pop("TRACKIO_SERVER_URL") == address
    token = {} if "secret" in address else {"TRACKIO_WRITE_TOKEN": "wt_secret"}
    assert sent["secrets"] == {"HF_TOKEN": "hf_alice"} | token
    assert json.loads(said.out)["secrets"] == ["HF_TOKEN", "TRACKIO_SERVER_URL", *token]
    assert "wt_secret" not in said.out + said.err + json.dumps(sent["environment"])
    assert "--trackio_space_id" not in sent["command"]


def test_help_answers_without_the_libraries():
    """Importing torch and transformers takes 10 s and more."""
    code = "import sys, jobs.launch; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    own = os.environ | {"PYTHONPATH": os.getcwd()}
    shown = subprocess.run(
        [sys.executable, "jobs/launch.py", "--help"], env=own, capture_output=True, text=True, check=True
    )
    assert "--until-done" in shown.stdout


# Started once


def test_a_refused_request_is_repeated_until_the_job_starts(hub):
    hub.fail(r"/api/jobs/alice$", method="POST", status=500, times=2)
    assert start() == 0
    assert len(posts(hub)) == 3
    assert len(hub.jobs.all) == 1


@pytest.mark.parametrize("lost", [{"status": 500}, {"drop": True}])
def test_a_lost_answer_starts_no_second_job(hub, lost):
    """The client repeats nothing, and a plain retry would start, and pay, the same job twice."""
    hub.fail(r"/api/jobs/alice$", method="POST", late=True, times=1, **lost)
    assert start() == 0
    assert len(hub.jobs.all) == len(posts(hub)) == 1


def test_a_refusal_for_good_is_said_at_once(hub, capsys):
    hub.fail(r"/api/jobs/alice$", method="POST", status=403)
    assert start() == 2
    assert len(posts(hub)) == 1
    assert "error: starting the job: the Hub does not take this token (403" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_told_while_it_is_waited_for_and_given_up_soon(hub, capsys, caplog, monkeypatch):
    """A job's own questions are asked for ten minutes, and these were, without a word."""
    monkeypatch.setattr("recipe.hub.PREFLIGHT", 2.0)
    monkeypatch.setattr(job_room, "PATIENCE", 20.0)
    hub.stop()
    began = time.monotonic()
    assert start("--dry-run") == 2
    assert time.monotonic() - began < 15
    assert re.search(r"asking the Hub who we are: .*refused; again in \d s", caplog.text)
    said = capsys.readouterr()
    assert re.fullmatch(r"error: asking the Hub who we are: the Hub cannot be reached \(.*refused\)\n", said.err)
    assert not said.out


# Followed to its end


def test_the_exit_code_is_the_jobs(hub, stand_in, capsys):
    stand_in("print('out of memory'); sys.exit(41)")
    assert start() == 41
    said = capsys.readouterr()
    assert said.out == "out of memory\n"
    for line in ("dashboard ", "model ", "watch ", "cancel ", "resume "):
        assert f"\n{line}" in said.err


def test_a_job_killed_at_its_timeout_is_no_success(hub, stand_in):
    stand_in("time.sleep(60)")
    assert start("--timeout", "1s") == job_room.TIMEOUT_EXIT


def test_every_line_of_the_log_is_printed_once_though_connections_drop(hub, stand_in, capsys):
    """The client stops reading where the job ended meanwhile: the second drop leaves the end of the log unread."""
    stand_in("for n in range(300):\n    print('line', n, flush=True)\n    time.sleep(0.002)")
    hub.fail(r"/logs$", drop=True, after_bytes=900, times=2)
    assert start() == 0
    assert capsys.readouterr().out.splitlines() == [f"line {n}" for n in range(300)]
    assert len([entry for entry in hub.requests if entry.path.endswith("/logs")]) >= 3


def test_a_log_that_cannot_be_read_hides_neither_the_end_of_the_job_nor_its_exit_code(
    hub, stand_in, monkeypatch, capsys
):
    monkeypatch.setattr(job_room, "LOG_PATIENCE", 1.0)
    stand_in("sys.exit(41)")
    hub.fail(r"/logs$", status=500)
    assert start() == 41
    assert "the end of the log cannot be read" in capsys.readouterr().err


def test_ctrl_c_detaches_and_leaves_the_job_alone(hub, stand_in, capsys):
    stand_in("print('begun', flush=True); time.sleep(30)")

    def interrupt():
        while not any(job.log[1:] for job in hub.jobs.all.values()):
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert start() == launch.DETACHED_EXIT
    (job,) = hub.jobs.all.values()
    assert job.stage == "RUNNING"
    assert f"hf jobs cancel alice/{job.info['id']}" in capsys.readouterr().err


def test_without_until_done_a_deadline_is_passed_on(hub, stand_in):
    stand_in("sys.exit(75)")
    assert start() == 75


# Refused before it costs anything


def test_without_a_token_it_is_told_how_to_get_one(hub, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert start() == 2
    assert re.match("error: no token.*`hf auth login`, or set HF_TOKEN", capsys.readouterr().err)


def test_an_unknown_machine_lists_those_there_are(hub, capsys):
    said = refused(hub, capsys, "--flavor", "a10g-huge")
    assert re.search(
        r"--flavor a10g-huge: HF Jobs has .*, a10g-large, .*; `hf jobs hardware` shows their prices", said
    )


def test_a_token_that_only_reads_is_refused(hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    assert "can only read" in refused(hub, capsys)


def test_a_fine_grained_token_needs_the_right_to_start_jobs(hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    assert "no write permission on alice (job.write)" in refused(hub, capsys)
    hub.users["hf_fine"]["scopes"] = {"alice": ["repo.write", "job.write"]}
    assert start("--dry-run") == 0


def test_somebody_elses_namespace_is_refused(hub, capsys):
    assert "alice cannot write there (job.write), only under alice" in refused(hub, capsys, "--namespace", "bob")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("tests", "a job sees no folder of this machine"),
        ("alice/nothing", "no such repo, or this token may not read it"),
        ("alice/pictures", "holds no data/train-*.parquet"),
    ],
)
def test_data_that_a_job_could_not_read_is_refused(hub, capsys, data, words):
    publish(hub.api("hf_alice"), "alice/pictures", {"0.jpg": "x"}, "dataset")
    assert words in refused(hub, capsys, train=["--data", data, "--backbone", "tiny", "--detr_init", "none"])


def test_a_dataset_repo_that_is_mounted_is_looked_at_and_read_where_it_is_mounted(hub, capsys):
    """Without a download: `--data` is then a folder of the job."""
    train = ["--data", "/data", *TRAIN[2:]]
    assert "a job sees no folder of this machine" in refused(hub, capsys, train=train)
    volume = ["--volume", "hf://datasets/alice/crowd@main:/data"]
    assert start(*volume, "--dry-run", train=train) == 0
    said = capsys.readouterr()
    assert "data       alice/crowd {'train': 3600, 'validation': 360}" in said.err
    sent = json.loads(said.out)
    assert sent["command"][2:4] == ["--data", "/data"]
    assert sent["volumes"] == [
        {"type": "dataset", "source": "alice/crowd", "mountPath": "/data", "revision": "main"},
    ]
    volume[1] = "hf://datasets/alice/nothing:/data"
    assert "--data alice/nothing: no such repo" in refused(hub, capsys, *volume, train=train)


def test_a_packed_folder_is_sent_to_a_private_repo_where_the_user_agrees_and_refused_else(hub, packed, capsys):
    train = ["--data", str(packed), *TRAIN[2:]]
    assert "`--upload-data USER/NAME` sends it to a private dataset repo" in refused(hub, capsys, train=train)
    assert "holds no manifest.json" in refused(hub, capsys, "--upload-data", "alice/new", train=["--data", "tests"])
    assert start("--upload-data", "alice/new", "--dry-run", train=train) == 0
    said = capsys.readouterr()
    assert "alice may create alice/new, privately" in said.err
    assert "{'train': 8, 'validation': 4}" in said.err
    assert not hub.api("hf_alice").repo_exists("alice/new", repo_type="dataset")
    assert start("--upload-data", "alice/new", "--detach", train=train) == 0
    sent = hub.repo("alice/new", "datasets")
    assert sent.state["private"]
    assert {"manifest.json", "data/train-00000-of-00001.parquet"} <= set(sent.snapshot("main")["files"])
    (job,) = hub.jobs.all.values()
    assert dict(zip(job.spec["command"], job.spec["command"][1:], strict=False))["--data"] == "alice/new"


@pytest.mark.parametrize("flag", ["backbone", "detr_init", "init_from", "augmentation"])
def test_a_file_of_this_machine_is_refused_whatever_flag_names_it(hub, capsys, tmp_path, flag):
    said = refused(hub, capsys, train=[*TRAIN, f"--{flag}", str(tmp_path)])
    assert f"--{flag} {tmp_path}: a job sees no file of this machine; give a Hub repo, or --volume" in said


def test_a_gated_backbone_whose_licence_was_not_accepted_is_refused(hub, capsys):
    hub.api("hf_bob").create_repo("bob/backbone")
    hub.gate("bob/backbone")
    train = ["--data", "alice/crowd", "--detr_init", "none", "--backbone", "bob/backbone"]
    assert "is gated: accept its licence" in refused(hub, capsys, train=train)


@pytest.mark.parametrize(("flag", "value"), [("num_queries", "7"), ("learning_rate", "0.5"), ("seed", "7")])
def test_a_model_repo_with_a_run_of_other_settings_is_refused(hub, capsys, flag, value):
    """The job would refuse it too, once it was paid for."""
    settings = fixed_settings(parse([*TRAIN, f"--{flag}", value], on_gpu=True)) | {"processes": 1, "bf16": False}
    record = {"fixed_settings": settings, "settings": {}, "dataset": {}} | {"run_name": "run", "run_id": "1"}
    record |= {"started": "2026"}
    files = {
        "last-checkpoint/run.json": json.dumps(record),
        "last-checkpoint/trainer_state.json": '{"global_step": 4}',
    }
    publish(hub.api("hf_alice"), "alice/detector", files)
    assert re.search(rf"other settings: {flag} was {value}, now \S+\. Give", refused(hub, capsys))
    assert start("--dry-run", train=[*TRAIN, f"--{flag}", value]) == 0
    assert "the job resumes it" in capsys.readouterr().err


def test_a_model_repo_with_something_else_is_refused(hub, capsys):
    publish(hub.api("hf_alice"), "alice/detector", {"model.safetensors": "x"})
    assert "holds something else" in refused(hub, capsys)


def test_an_image_that_was_not_built_is_refused(hub, capsys):
    said = refused(hub, capsys, "--image", "hf.co/spaces/alice/nothing")
    assert "(no such Space for this token); `python jobs/publish_image.py alice/nothing` builds it" in said
    break_build(hub, "alice/recipe", "no space left")
    assert "not built (BUILD_ERROR)" in refused(hub, capsys)


@pytest.mark.parametrize(
    ("image", "moves"),
    [
        ("hf.co/spaces/alice/recipe", True),
        ("ghcr.io/alice/recipe:v1", True),
        ("ghcr.io/alice/recipe@sha256:12", False),
    ],
)
def test_an_image_is_sent_as_it_is_named_and_said_to_stay_the_same_only_by_its_digest(hub, capsys, image, moves):
    """The Hub's client resolves no tag, so the launcher cannot either."""
    assert start("--image", image, "--dry-run") == 0
    said = capsys.readouterr()
    assert ("only NAME@sha256:... stays the same" in said.err) == moves
    assert ("must be public in its registry" in said.err) == ("ghcr.io" in image)
    assert json.loads(said.out)["image"] == image


def test_a_wrong_training_flag_is_refused_before_the_hub_is_asked(hub, capsys):
    assert "unknown flag --learning_rat" in refused(hub, capsys, train=[*TRAIN, "--learning_rat", "1"])
    with contextlib.suppress(SystemExit):
        assert start(train=[*TRAIN, "--hflip", "2"]) == 2
    assert not [entry for entry in hub.requests if "whoami" in entry.path]


def test_what_only_the_gpu_of_the_job_can_say_is_not_refused_here(hub, capsys):
    """Here there is no GPU: transformers refuses each of these on this machine."""
    assert "--fp16 True: not in this recipe" in refused(hub, capsys, train=[*TRAIN, "--fp16", "true"])
    assert start("--dry-run", train=[*TRAIN, "--tf32", "true", "--bf16", "true", "--use_cpu", "false"]) == 0


# Time and costs: 3,600 + 360 images, so that one image a second makes 1.1 hours an epoch


@pytest.mark.parametrize(("timeout", "holds"), [("1h", False), ("12h", True)])
def test_where_one_job_does_not_hold_the_training_the_launcher_says_what_does(hub, capsys, timeout, holds):
    start("--pace", "1", "--timeout", timeout, "--dry-run")
    assert ("with --until-done a job whose time is up starts the next" in capsys.readouterr().err) != holds


def test_the_timeout_follows_from_the_pace_and_so_do_the_costs(hub, capsys):
    start("--pace", "1", "--dry-run", train=[*TRAIN, "--num_train_epochs", "4"])
    said = capsys.readouterr()
    assert "4.4 h, $6.60, for 4 epochs at 1.00 images/s" in said.err
    assert 4.4 < json.loads(said.out)["timeout"] / 3600 <= 7


@pytest.mark.parametrize(("steps", "words"), [(45, "0.1 h, $0.17, for 0.1 epochs"), (1800, "4.4 h, $6.60, for 4 ep")])
def test_max_steps_counts_in_place_of_the_epochs(hub, capsys, steps, words):
    """450 steps of 8 images are an epoch. transformers trains for max_steps, also beyond num_train_epochs."""
    train = [*TRAIN, "--num_train_epochs", "2", "--max_steps", str(steps)]
    assert start("--pace", "1", "--timeout", "8h", "--dry-run", train=train) == 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--pace-from", "--pace_from"])
def test_the_pace_of_another_gpu_is_carried_over_as_an_estimate(hub, capsys, tmp_path, flag):
    """Flags are written with dashes or underscores, as those of `recipe train`; a folder's name stays as it is."""
    pace = vars(Pace(2.0, "1 x NVIDIA RTX 4000 SFF Ada Generation, 20 GiB", 1, 1, 1))
    RunRecord("run", "1", "2026", settings={}, fixed_settings={}, dataset={}, pace=pace).write(tmp_path)
    start(f"{flag}={tmp_path}", "--dry-run")
    said = capsys.readouterr().err
    assert "the pace is an estimate, from 1 x NVIDIA RTX 4000 SFF Ada" in said
    assert f"at {2.0 * MS_PER_IMAGE['RTX 4000 SFF Ada'] / MS_PER_IMAGE['A10G']:.2f} images/s" in said


def test_a_dry_run_with_a_pace_lists_what_every_machine_would_take_cheapest_first(hub, capsys):
    start("--pace", "5", "--dry-run")
    found = re.findall(r"^(\S+) +1 x \w+ +([\d.]+) h +\$ *([\d.]+)$", capsys.readouterr().err, re.MULTILINE)
    costs = [float(cost) for _, _, cost in found]
    assert costs == sorted(costs)
    assert {name: hours for name, hours, _ in found}["a10g-large"] == "2.5"  # 2.2 h and the start
    assert {"a10g-small", "l4x1", "a100-large"} < {name for name, _, _ in found}


def test_without_a_measured_pace_hours_and_costs_are_arithmetic_and_the_launcher_says_so(hub, capsys):
    start("--dry-run")
    said = capsys.readouterr().err
    assert "the pace is arithmetic, for ViT-L at 960x1536" in said
    assert f"at {1000 / MS_PER_IMAGE['A10G']:.2f} images/s" in said
    start("--dry-run", "--flavor", "t4-small")
    assert "time       unknown" in capsys.readouterr().err
