"""The loopback Hub's machines: a job is a local subprocess of its command, on an empty disk, with a time limit.

The command sees what a job on the Hub sees: its environment and secrets, JOB_ID, ACCELERATOR, CPU_CORES and MEMORY, no
token but one passed as a secret, and a home that is gone at the end. At its timeout, when it is cancelled, and when
`Jobs.kill` plays a lost machine, the whole process group gets SIGKILL with no warning.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from loopback.store import Repo, now

DEFAULT_TIMEOUT = 30 * 60  # seconds, as on the Hub
ENDED = ("COMPLETED", "ERROR", "CANCELED")
FLAVORS = {  # name: vCPU, RAM in GB, disk in GB, accelerator, its memory in GB, $ per hour (August 2026)
    "cpu-basic": (2, 16, 50, None, 0, 0.01),
    "cpu-upgrade": (8, 32, 50, None, 0, 0.03),
    "t4-small": (4, 15, 50, "T4", 16, 0.40),
    "l4x1": (8, 30, 400, "L4", 24, 0.80),
    "a10g-small": (4, 15, 110, "A10G", 24, 1.00),
    "a10g-large": (12, 46, 200, "A10G", 24, 1.50),
    "l40sx1": (8, 62, 380, "L40S", 48, 1.80),
    "a100-large": (12, 142, 1000, "A100", 80, 2.50),
}


class Job:
    """One job: `info` is what the Hub tells of it, `spec` what was asked for (secrets included), `log` its lines."""

    def __init__(self, root: Path, spec: dict[str, Any], owner: str, user: str) -> None:
        asked = ("dockerImage", "spaceId", "command", "arguments", "environment", "flavor", "volumes")
        self.root, self.spec, self.log = root, spec, []
        self.info: dict[str, Any] = {key: spec[key] for key in asked if key in spec} | {
            "id": uuid.uuid4().hex[:24],
            "createdAt": now(),
            "owner": {"id": owner, "name": owner, "type": "user" if owner == user else "org"},
            "initiator": {"type": "user", "id": user, "name": user},
            "retry": spec.get("attempts", 1) - 1,
            "secrets": dict.fromkeys(spec.get("secrets", {}), ""),
            "labels": spec.get("labels", {}),
            "status": {"stage": "SCHEDULING", "message": None},
        }
        self.process: subprocess.Popen[str] | None = None
        self.killed = threading.Event()
        self.verdict: tuple[str, str | None] = ("ERROR", None)  # how it ends once it is killed

    @property
    def stage(self) -> str:
        return self.info["status"]["stage"]

    @property
    def ended(self) -> bool:
        return self.stage in ENDED

    def describe(self) -> dict[str, Any]:
        times = [self.info.get(key) or now() for key in ("createdAt", "startedAt", "finishedAt")]
        created, started, finished = (datetime.fromisoformat(t).timestamp() for t in times)
        durations = {"schedulingSecs": int(started - created), "runningSecs": int(finished - started)}
        ssh = {"sshUrl": f"ssh://{self.info['id']}@ssh.hf.jobs"} if self.spec.get("ssh") else {}
        durations["totalSecs"] = int(finished - created)
        return {**self.info, "durations": durations, "status": {**self.info["status"], **ssh}}

    def run(self, schedule_seconds: float, env: dict[str, str]) -> None:
        """For a thread: wait for a machine, run the command up to `attempts` times, note how it ended."""
        self.killed.wait(schedule_seconds)
        limit = self.spec.get("timeoutSeconds", DEFAULT_TIMEOUT)
        timer = threading.Timer(limit, self.kill, ("ERROR", "Job timeout"))
        timer.daemon = True
        timer.start()
        code = 0
        for _ in range(self.spec.get("attempts", 1)):
            if not self.killed.is_set():
                code = self._attempt(env)
            if code == 0 or self.killed.is_set():
                break
        timer.cancel()
        failed = ("ERROR", f"Job failed with exit code: {code}. Reason: Error")
        stage, message = self.verdict if self.killed.is_set() else failed if code else ("COMPLETED", None)
        self.info["finishedAt"], self.info["status"] = now(), {"stage": stage, "message": message}

    def _attempt(self, env: dict[str, str]) -> int:
        home = self.root / "machines" / self.info["id"]
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        for volume in self.spec.get("volumes") or ():
            self._mount(Path(volume["mountPath"]), volume)
        self.note(f"===== Job started at {now()} =====")
        try:
            self.process = subprocess.Popen(
                [*self.spec["command"], *self.spec.get("arguments", [])],
                cwd=home,
                env=self._environment(home, env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self.note(str(error))
            return 127
        self.info.setdefault("startedAt", now())
        self.info["status"] = {"stage": "RUNNING", "message": None}
        reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        reader.start()
        if self.killed.is_set():  # while it started
            self._kill_group()
        code = self.process.wait()
        self._kill_group()  # with its first process a container ends, whatever else ran in it
        reader.join()
        shutil.rmtree(home, ignore_errors=True)
        return code if code >= 0 else 128 - code

    def _mount(self, target: Path, volume: dict[str, Any]) -> None:
        """A bucket as a link, a repo as a read-only copy of a revision; only below the folder for temporary files."""
        if not target.is_relative_to(tempfile.gettempdir()) or target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if volume["type"] == "bucket":
            bucket = self.root / "buckets" / volume["source"] / volume.get("path", "")
            bucket.mkdir(parents=True, exist_ok=True)
            target.symlink_to(bucket)
            return
        repo, revision = Repo(self.root, f"{volume['type']}s", volume["source"]), volume.get("revision", "main")
        for path in repo.snapshot(revision)["files"]:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(repo.read(path, revision))
            (target / path).chmod(0o444)

    def _environment(self, home: Path, env: dict[str, str]) -> dict[str, str]:
        cpus, ram, _, gpu, _, _ = FLAVORS[self.spec["flavor"]]
        machine = {"JOB_ID": self.info["id"], "ACCELERATOR": gpu or "none"}
        machine |= {"CPU_CORES": str(cpus), "MEMORY": f"{ram}Gi"}
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        base = {"PATH": path, "HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": str(home), "LANG": "C.UTF-8"}
        given = {**self.spec.get("environment", {}), **self.spec.get("secrets", {})}
        return {**base, **env, **{key: str(value) for key, value in given.items()}, **machine}

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.note(line.rstrip("\n"))

    def note(self, line: str) -> None:
        self.log.append({"timestamp": now(), "data": line})

    def kill(self, stage: str, message: str | None) -> None:
        if not self.ended:
            self.verdict = (stage, message)
            self.killed.set()
            self._kill_group()

    def _kill_group(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Jobs:
    """All jobs of one Hub; they are gone with it."""

    def __init__(self, root: Path, schedule_seconds: float, env: dict[str, str]) -> None:
        self.root, self.schedule_seconds, self.extra = root, schedule_seconds, env
        self.env: dict[str, str] = {}  # the Hub's address; filled in when it listens
        self.all: dict[str, Job] = {}
        self._threads: list[threading.Thread] = []

    def start(self, spec: dict[str, Any], owner: str, user: str) -> Job:
        job = Job(self.root, spec, owner, user)
        self.all[job.info["id"]] = job
        env = {**self.env, **self.extra}
        thread = threading.Thread(target=job.run, args=(self.schedule_seconds, env), daemon=True)
        self._threads.append(thread)
        thread.start()
        return job

    def kill(self, job_id: str) -> None:
        """The machine is lost: SIGKILL to everything that the job started."""
        self.all[job_id].kill("ERROR", "Job failed with exit code: 137. Reason: Error")

    def kill_all(self) -> None:
        for job_id in self.all:
            self.kill(job_id)
        for thread in self._threads:
            thread.join(timeout=10)
