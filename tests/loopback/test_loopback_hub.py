"""The loopback Hub against the real clients: python -m pytest tests/loopback

If this module is green, a red end-to-end test is not the stand-in's fault.
"""

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from loopback.hub import LoopbackHub
from loopback.spaces import break_build

USERS = {
    "hf_alice": {"name": "alice", "role": "write", "orgs": ["acme"]},
    "hf_alice_reads": {"name": "alice", "role": "read"},
    "hf_alice_fine": {"name": "alice", "role": "fineGrained", "scopes": {"alice/detector": ["repo.write"]}},
    "hf_bob": {"name": "bob"},
}
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub", USERS) as hub:
        yield hub


@pytest.fixture
def api(hub):
    return hub.api("hf_alice")


@pytest.fixture
def detector(api, tmp_path):
    """A private model repository with one pushed folder, and that folder."""
    folder = tmp_path / "detector"
    (folder / "last-checkpoint").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text("---\nlicense: other\ntags: [crowd]\n---\n# Detector\n")
    (folder / "last-checkpoint" / "state.json").write_text('{"epoch": 1}')
    api.create_repo("alice/detector", private=True)
    api.upload_folder(repo_id="alice/detector", folder_path=folder)
    return folder


def log_of(hub, since, part):
    return [entry for entry in hub.requests[since:] if part in entry.path]


def raises_status(status, call, *args, **kwargs):
    with pytest.raises(HfHubHTTPError) as caught:
        call(*args, **kwargs)
    assert caught.value.response.status_code == status
    return str(caught.value)


# Repositories


def test_what_goes_up_comes_down_unchanged(api, detector, tmp_path):
    down = Path(api.snapshot_download("alice/detector", local_dir=tmp_path / "down"))
    for name in ("model.safetensors", "README.md", "last-checkpoint/state.json"):
        assert (down / name).read_bytes() == (detector / name).read_bytes()
    info = api.model_info("alice/detector")
    (weights,) = api.get_paths_info("alice/detector", ["model.safetensors"])
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert weights.blob_id != weights.lfs.sha256
    assert info.card_data.license == "other"
    assert info.private


def test_unchanged_files_send_no_bytes_and_make_no_commit(hub, api, detector):
    since, before = len(hub.requests), api.model_info("alice/detector").sha
    assert hub.uploaded("alice/detector") > len(WEIGHTS)
    api.upload_folder(repo_id="alice/detector", folder_path=detector)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="copy.safetensors", repo_id="alice/detector")
    assert not log_of(hub, since, "lfs-storage")
    assert hub.uploaded("alice/detector", since) < 10_000
    assert [c.title for c in api.list_repo_commits("alice/detector")][1] == "Upload folder using huggingface_hub"
    assert hub.repo("alice/detector").history("main")[1]["id"] == before
    assert hub.repo("alice/detector").empty_commits() == []


def test_a_corrupt_or_short_lfs_upload_is_refused(hub, api):
    """The client trusts its own hash; only the server can notice what happened on the way."""
    api.create_repo("alice/detector")
    repo, oid = hub.repo("alice/detector"), hashlib.sha256(WEIGHTS).hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(WEIGHTS)}]}
    auth = {"Authorization": "Bearer hf_alice"}
    answer = httpx2.post(f"{hub.url}/alice/detector.git/info/lfs/objects/batch", json=batch, headers=auth).json()
    actions = answer["objects"][0]["actions"]
    for wrong in (WEIGHTS[:-1], WEIGHTS[:-1] + b"x"):
        assert httpx2.put(actions["upload"]["href"], content=wrong).status_code == 400
        assert not repo.object(oid).exists()
    assert httpx2.post(actions["verify"]["href"], json=batch["objects"][0], headers=auth).status_code == 404
    header = {"key": "header", "value": {"summary": "never uploaded"}}
    file = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": oid, "size": len(WEIGHTS)}}
    body = json.dumps(header) + "\n" + json.dumps(file)
    assert (
        httpx2.post(f"{hub.url}/api/models/alice/detector/commit/main", content=body, headers=auth).status_code == 400
    )


def test_a_stale_parent_commit_is_refused(api, detector):
    stale = api.model_info("alice/detector").sha
    add = {"repo_id": "alice/detector", "path_in_repo": "note.txt"}
    api.upload_file(path_or_fileobj=b"one", parent_commit=stale, **add)
    raises_status(412, api.upload_file, path_or_fileobj=b"two", parent_commit=stale, **add)


def test_a_commit_adds_and_deletes_together_or_not_at_all(api, detector):
    gone = CommitOperationDelete("last-checkpoint/")
    missing = CommitOperationDelete("never-there.txt")

    def note():
        return CommitOperationAdd("note.txt", b"hello")

    with pytest.raises(EntryNotFoundError):
        api.create_commit("alice/detector", [note(), missing], commit_message="half")
    assert not api.file_exists("alice/detector", "note.txt")
    api.create_commit("alice/detector", [note(), gone], commit_message="whole")
    files = api.list_repo_files("alice/detector")
    assert "note.txt" in files
    assert "last-checkpoint/state.json" not in files


def test_branches_tags_and_commits_name_their_own_state(hub, api, detector, tmp_path):
    api.create_tag("alice/detector", tag="epoch-01")
    api.create_branch("alice/detector", branch="try/wide")
    first = api.upload_file(
        path_or_fileobj=b"two", path_in_repo="note.txt", repo_id="alice/detector", revision="try/wide"
    ).oid
    cache = tmp_path / "cache"
    for revision in ("try/wide", first):
        file = api.hf_hub_download("alice/detector", "note.txt", revision=revision, cache_dir=cache)
        assert Path(file).read_bytes() == b"two"
    for revision in ("epoch-01", "main"):
        with pytest.raises(EntryNotFoundError):
            api.hf_hub_download("alice/detector", "note.txt", revision=revision, cache_dir=cache)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/detector", revision="epoch-02")
    raises_status(409, api.create_tag, "alice/detector", tag="epoch-01")
    raises_status(409, api.create_repo, "alice/detector")
    assert {ref.name for ref in api.list_repo_refs("alice/detector").branches} == {"main", "try/wide"}
    assert any("try%2Fwide" in entry.path for entry in hub.requests)
    api.delete_tag("alice/detector", tag="epoch-01")
    assert api.list_repo_refs("alice/detector").tags == []


def test_a_broken_card_is_refused(api, detector):
    card = b"---\nlicense: [other\n---\n"
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="alice/detector")


# Who may do what


def test_a_private_repo_is_hidden_from_others(hub, detector):
    for token in ("hf_bob", False):
        with pytest.raises(RepositoryNotFoundError):
            hub.api(token).model_info("alice/detector")
        with pytest.raises(RepositoryNotFoundError):
            hub.api(token).get_hf_file_metadata(url=f"{hub.url}/alice/detector/resolve/main/README.md")


def test_a_token_does_what_its_role_and_scopes_allow(hub, api, detector):
    reads, fine = hub.api("hf_alice_reads"), hub.api("hf_alice_fine")
    note = {"path_or_fileobj": b"x", "path_in_repo": "x.txt"}
    assert reads.whoami()["auth"]["accessToken"]["role"] == "read"
    assert "write token" in raises_status(403, reads.upload_file, repo_id="alice/detector", **note)
    raises_status(403, reads.create_repo, "alice/other")
    raises_status(403, reads.create_tag, "alice/detector", tag="epoch-01")
    raises_status(403, hub.api("hf_bob").create_repo, "acme/other")
    scoped = fine.whoami()["auth"]["accessToken"]["fineGrained"]["scoped"]
    assert scoped[0]["permissions"] == ["repo.write"]
    fine.upload_file(repo_id="alice/detector", **note)
    raises_status(403, fine.create_repo, "alice/other")
    raises_status(403, fine.run_job, image="python", command=["true"], namespace="alice")
    raises_status(401, hub.api("hf_unknown").model_info, "alice/detector")


def test_a_gated_model_shows_its_name_and_keeps_its_files(hub, api):
    api.create_repo("acme/backbone")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="acme/backbone")
    hub.gate("acme/backbone")
    bob, file = hub.api("hf_bob"), f"{hub.url}/acme/backbone/resolve/main/config.json"
    assert bob.model_info("acme/backbone").gated == "manual"
    for refused in (lambda: bob.get_hf_file_metadata(url=file), lambda: bob.auth_check("acme/backbone")):
        with pytest.raises(GatedRepoError):
            refused()
    assert api.get_hf_file_metadata(url=file).size == 2


# Faults


def test_a_429_with_retry_after_is_waited_for(hub, api, detector):
    fault, since, start = hub.fail("/preupload/", status=429, times=1), len(hub.requests), time.time()
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="alice/detector")
    assert time.time() - start >= 1.0
    assert [(e.status, e.injected) for e in log_of(hub, since, "/preupload/")] == [(429, "429"), (200, None)]
    assert fault.hits == 1


def test_a_commit_is_not_retried_and_a_lost_answer_is_not_a_lost_commit(hub, api, detector):
    """create_commit's own POST has no retry in the client: this is what the recipe must add."""
    upload = {"path_in_repo": "x.txt", "repo_id": "alice/detector"}
    hub.fail("/commit/", status=500, times=1)
    raises_status(500, api.upload_file, path_or_fileobj=b"1", **upload)
    assert not api.file_exists("alice/detector", "x.txt")
    hub.fail("/commit/", drop=True, late=True, times=1)
    with pytest.raises(Exception, match="disconnected"):
        api.upload_file(path_or_fileobj=b"2", **upload)
    assert hub.repo("alice/detector").read("x.txt") == b"2"


def test_a_connection_dropped_mid_body_leaves_nothing_half(hub, api, tmp_path):
    api.create_repo("alice/detector")
    hub.fail("lfs-storage", drop=True, after_bytes=300_000, times=1)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.safetensors", repo_id="alice/detector")
    first, second = log_of(hub, 0, "lfs-storage")
    assert (first.status, first.injected) == (None, "drop")
    assert 300_000 < first.bytes_in < len(WEIGHTS) == second.bytes_in
    hub.fail("/resolve/", method="GET", drop=True, after_bytes=300_000, times=1)
    file = api.hf_hub_download("alice/detector", "w.safetensors", cache_dir=tmp_path / "cache")
    assert Path(file).read_bytes() == WEIGHTS
    cut, whole = (entry for entry in log_of(hub, 0, "/resolve/") if entry.method == "GET")
    assert (cut.bytes_out, whole.bytes_out) == (300_000, len(WEIGHTS))
    headers = {"Authorization": "Bearer hf_alice", "Range": "bytes=300000-300009"}
    part = httpx2.get(f"{hub.url}/alice/detector/resolve/main/w.safetensors", headers=headers)
    assert (part.status_code, part.content) == (206, WEIGHTS[300_000:300_010])


def test_a_hang_ends_in_the_clients_timeout_and_a_delay_in_an_answer(hub):
    hub.fail("whoami", hang=0.5, times=1)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(f"{hub.url}/api/whoami-v2", timeout=0.2)
    hub.fail("whoami", delay=0.2, times=1)
    start = time.time()
    assert httpx2.get(f"{hub.url}/api/whoami-v2").status_code == 401
    assert time.time() - start >= 0.2


def test_a_storm_strikes_its_share_in_every_way_and_heals(hub):
    storm = hub.storm(0.3, seed=1, hang=0.01)
    with httpx2.Client() as client:
        for _ in range(200):
            with contextlib.suppress(httpx2.TransportError):
                client.get(f"{hub.url}/api/jobs/hardware")
    assert 40 <= storm.hits <= 80
    assert {entry.injected for entry in hub.requests} == {None, "500", "503", "429", "drop", "hang"}
    hub.heal()
    assert httpx2.get(f"{hub.url}/api/jobs/hardware").status_code == 200


def test_an_outage_ends_and_the_client_finds_the_hub_again(hub, api, detector):
    hub.stop()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(hub.url)
    hub.start()
    assert api.model_info("alice/detector").id == "alice/detector"


# Clients in processes of their own


def client(hub, tmp_path, *command):
    env = hub.env("hf_alice", tmp_path / "home")
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_the_hf_command_downloads_a_tag(hub, api, detector, tmp_path):
    api.create_tag("alice/detector", tag="epoch-02")
    api.upload_file(path_or_fileobj=b"later", path_in_repo="model.safetensors", repo_id="alice/detector")
    out = tmp_path / "out"
    done = client(hub, tmp_path, "hf", "download", "alice/detector", "--revision", "epoch-02", "--local-dir", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == WEIGHTS


DATASETS_AND_TRANSFORMERS = """
import datasets, huggingface_hub
huggingface_hub.create_repo("alice/crowd", repo_type="dataset", private=True)
rows = datasets.Dataset.from_dict({"image_id": [1, 2, 3]})
rows.push_to_hub("alice/crowd", split="train")
rows.select(range(2)).push_to_hub("alice/crowd", split="validation")
print({name: list(split["image_id"]) for name, split in datasets.load_dataset("alice/crowd").items()})
head = huggingface_hub.dataset_info("alice/crowd").sha
print(next(iter(datasets.load_dataset("alice/crowd", split="train", streaming=True, revision=head))))

import transformers
sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
config = transformers.BertConfig(**sizes)
model = transformers.BertModel(config)
for epoch in (1, 2):
    model.embeddings.word_embeddings.weight.data.fill_(epoch)
    model.push_to_hub("alice/tiny", private=True)
    huggingface_hub.create_tag("alice/tiny", tag=f"epoch-0{epoch}")
again = transformers.AutoModel.from_pretrained("alice/tiny", revision="epoch-01")
print(again.embeddings.word_embeddings.weight[2, 0].item())
"""


def test_datasets_and_transformers_push_and_load_by_repo_id(hub, tmp_path):
    done = client(hub, tmp_path, sys.executable, "-c", DATASETS_AND_TRANSFORMERS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:3] == [
        "{'train': [1, 2, 3], 'validation': [1, 2]}",
        "{'image_id': 1}",
        "1.0",
    ]
    assert [e.path for e in hub.requests if e.status == 404 and "resolve" not in e.path and e.repo is None] == []


# Jobs and Spaces

SHOW = """
import os
names = ("JOB_ID", "ACCELERATOR", "CPU_CORES", "MEMORY", "HF_TOKEN", "HF_ENDPOINT", "EPOCHS")
print(" ".join(f"{name}={os.environ.get(name)}" for name in names), flush=True)
"""


def test_a_job_runs_its_command_with_its_secrets_and_can_be_followed(hub, api):
    job = api.run_job(
        image="hf.co/none",
        command=[sys.executable, "-c", SHOW],
        flavor="a10g-large",
        env={"EPOCHS": 3},
        secrets={"HF_TOKEN": "hf_alice"},
        labels={"run": "one"},
    )
    lines = list(api.fetch_job_logs(job_id=job.id, follow=True))
    machine = "ACCELERATOR=A10G CPU_CORES=12 MEMORY=46Gi"
    assert lines == [f"JOB_ID={job.id} {machine} HF_TOKEN=hf_alice HF_ENDPOINT={hub.url} EPOCHS=3"]
    done = api.inspect_job(job_id=job.id)
    assert done.status.stage == "COMPLETED"
    assert done.secrets == {"HF_TOKEN": ""}
    assert "hf_alice" not in json.dumps(hub.jobs.all[job.id].info)


def test_a_log_goes_on_after_a_dropped_connection(hub, api):
    """The client asks first whether the job has ended, and lets the rest go if so: hence a job that runs on."""
    fault = hub.fail("/logs$", drop=True, after_bytes=200, times=1)
    command = [sys.executable, "-c", "import time\nfor i in range(20): print(i, flush=True); time.sleep(0.07)"]
    job = api.run_job(image="python", command=command)
    assert list(api.fetch_job_logs(job_id=job.id, follow=True)) == [str(i) for i in range(20)]
    assert fault.hits == 1


def test_a_job_ends_as_its_command_its_timeout_or_its_owner_decides(hub, api):
    """Nothing warns the command at the timeout: the trap would be run, had there been a SIGTERM."""
    trap = ["sh", "-c", "trap 'echo warned' TERM; echo on; while :; do sleep 0.05; done"]
    late = api.run_job(image="python", command=trap, timeout=1)
    busy, lost = (api.run_job(image="python", command=["sleep", "60"]) for _ in range(2))
    failed = api.run_job(image="python", command=["sh", "-c", "echo try; exit 75"], attempts=2)
    missing = api.run_job(image="python", command=["no-such-command"])
    api.cancel_job(job_id=busy.id)
    hub.jobs.kill(lost.id)
    ends = [(job.status.stage, job.status.message) for job in wait(api, late, busy, lost, failed, missing)]
    assert ends == [
        ("ERROR", "Job timeout"),
        ("CANCELED", None),
        ("ERROR", "Job failed with exit code: 137. Reason: Error"),
        ("ERROR", "Job failed with exit code: 75. Reason: Error"),
        ("ERROR", "Job failed with exit code: 127. Reason: Error"),
    ]
    assert list(api.fetch_job_logs(job_id=late.id)) == ["on"]
    assert list(api.fetch_job_logs(job_id=failed.id)) == ["try", "try"]
    assert hub.jobs.all[lost.id].process.poll() == -9


def wait(api, *jobs):
    return api.wait_for_job([job.id for job in jobs], poll_interval=0.05, timeout=20)


def test_jobs_are_listed_by_label_and_stage_and_others_jobs_are_not_seen(hub, api):
    one = api.run_job(image="python", command=["true"], labels={"run": "one"})
    two = api.run_job(image="python", command=["sleep", "60"], labels={"run": "two", "kind": "crowd"})
    wait(api, one)

    def listed(**filters):
        return [job.id for job in api.list_jobs(namespace="alice", **filters)]

    assert listed() == [two.id, one.id]
    assert listed(labels={"run": "two", "kind": "crowd"}) == [two.id]
    assert listed(labels={"run": "three"}) == []
    assert listed(status="COMPLETED") == [one.id]
    assert listed(status=["RUNNING", "SCHEDULING"]) == [two.id]
    raises_status(403, hub.api("hf_bob").inspect_job, job_id=one.id, namespace="alice")


def test_a_job_that_cannot_be_is_refused_and_does_not_run(hub, api):
    with pytest.raises(BadRequestError, match="a10g-large"):
        api.run_job(image="python", command=["true"], flavor="a10g-huge")
    with pytest.raises(BadRequestError, match="label"):
        api.run_job(image="python", command=["true"], labels={"run": "a b"})
    with pytest.raises(HfHubHTTPError):
        api.run_job(image="hf.co/spaces/alice/none", command=["true"])
    assert hub.jobs.all == {}
    prices = {flavor.name: flavor.unit_cost_usd * 60 for flavor in api.list_jobs_hardware()}
    assert prices["a10g-large"] == pytest.approx(1.5)


def test_a_space_builds_runs_and_shows_why_it_does_not(hub, api):
    space = {"repo_id": "alice/image", "repo_type": "space"}
    api.create_repo(**space, space_sdk="docker", private=True)
    assert api.get_space_runtime("alice/image").stage == "NO_APP_FILE"
    api.upload_file(path_or_fileobj=b"FROM python\nRUN make\n", path_in_repo="Dockerfile", **space)
    assert api.get_space_runtime("alice/image").stage == "BUILDING"
    assert api.wait_for_space("alice/image", poll_interval=0.1).stage == "RUNNING"
    break_build(hub, "alice/image", "make: no rule")
    log = list(api.fetch_space_logs("alice/image", build=True, follow=True))
    assert log[1:] == ["--> FROM python\n", "--> RUN make\n", "--> ERROR: make: no rule\n"]
    assert api.get_space_runtime("alice/image").stage == "BUILD_ERROR"
