"""Programs that start as vLLM does: a quick one that answers nothing, and one that really answers.

    python -m tests.chip_core.evaluation.generators.fake_vllm --version
    python -m tests.chip_core.evaluation.generators.fake_vllm serve MODEL --host … --port …

The second is transformers' own server in fp32 on the CPU behind vLLM's names, key and endpoints for
adapters, which it merges: transformers' server loads none itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]

#: Listens, names its model, and ends by itself where it is told to.
QUICK = """#!{python} -S
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if sys.argv[1:] == ["--version"]:
    sys.exit(print("vllm 0.0.1"))
named = dict(zip(sys.argv, sys.argv[1:]))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        key = self.headers.get("Authorization") == "Bearer " + os.environ["VLLM_API_KEY"]
        known = self.path == "/health" or key
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps({{"data": [{{"id": named["--served-model-name"]}}]}}).encode())
try:
    server = HTTPServer((named["--host"], int(named["--port"])), Handler)
except OSError as error:
    sys.exit(str(error))
print("pid", os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), *sys.argv[1:], flush=True)
server.serve_forever()
"""

#: Really answers.
REAL = """#!/bin/sh
[ "$1" = --version ] && echo 0.0.2 && exit
PYTHONPATH={root} exec {python} -m tests.chip_core.evaluation.generators.fake_vllm "$@"
"""


def write_program(folder: Path, text: str) -> Path:
    """Leave a program in a folder; return it."""
    program = folder / "vllm"
    program.write_text(text.format(python=sys.executable, root=ROOT))
    program.chmod(0o755)
    return program


def main() -> None:
    """Serve as vLLM does."""
    import requests
    import torch
    from transformers import GenerationConfig

    from chip_core.config.trial import ModelConfig
    from chip_core.models import loading
    from chip_core.models.adapters import merge_adapters

    from .transformers_server import Server

    torch.set_num_threads(1)
    base, named = sys.argv[2], dict(zip(sys.argv, sys.argv[1:], strict=False))
    folder, models = Path(tempfile.mkdtemp(prefix="merged-")), {named["--served-model-name"]: base}
    inner = Server()
    inner.start()

    def load(name: str, adapter: str) -> None:
        model, processor = loading.load(ModelConfig(path=base), trained=Path(adapter))
        merge_adapters(model).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        models[name] = str(folder / name)
        print("loaded", name, adapter, flush=True)

    def asked(body: dict[str, Any]) -> tuple[int, Any]:
        name = body["model"]
        if name not in models:
            return 404, {"error": {"message": f"no model {name}"}}
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=body["max_tokens"],
            eos_token_id=body["stop_token_ids"],
            pad_token_id=body["stop_token_ids"][0],
        )
        content = json.dumps(body["messages"][0]["content"])
        print("asked", name, hashlib.sha256(content.encode()).hexdigest(), flush=True)
        given = {"messages": body["messages"], "max_tokens": body["max_tokens"]}
        given |= {"model": models[name], "generation_config": settings.to_json_string()}
        said = requests.post(f"{inner.url}/chat/completions", json=given, timeout=300)
        return said.status_code, {**said.json(), "model": name}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": name} for name in models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
                self.reply(401, {})
            elif self.path == "/v1/load_lora_adapter":
                load(body["lora_name"], body["lora_path"])
                self.reply(200, "loaded")
            elif self.path == "/v1/unload_lora_adapter":
                del models[body["lora_name"]]
                self.reply(200, "taken out")
            else:
                self.reply(*asked(body))

        def reply(self, status: int, value: Any) -> None:
            held = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(held)))
            self.end_headers()
            self.wfile.write(held)

        def log_message(self, format: str, *given: Any) -> None:
            pass

    assert named["--host"] == "127.0.0.1" and named["--dtype"] == "float32"
    ThreadingHTTPServer((named["--host"], int(named["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
