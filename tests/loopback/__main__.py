"""The stand-in by hand: PYTHONPATH=tests python -m loopback FOLDER (see README.md)."""

import contextlib
import sys
import time
from pathlib import Path

from loopback.hub import SWITCHES, LoopbackHub

with LoopbackHub(Path(sys.argv[1]), {"hf_alice": {"name": "alice"}}) as hub, contextlib.suppress(KeyboardInterrupt):
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_alice", "HF_HOME": f"{sys.argv[1]}/home", **SWITCHES}
    sys.stdout.write("".join(f"export {name}={value}\n" for name, value in variables.items()))
    sys.stdout.flush()
    while True:
        time.sleep(60)
