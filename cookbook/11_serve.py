"""A trio behind OpenAI's API, asked by three frameworks: python cookbook/11_serve.py

    pip install '.[server]' openai smolagents llama-index-llms-openai-like

You learn to start `eft serve` and to use it from whatever speaks OpenAI's API, each call at its own weight: in the body (openai,
smolagents), behind the model's name (LlamaIndex). Models: Atlas, offline. `--real` serves Qwen2.5 (not run here).

Prints:

    openai, weight 0: The capital of Norway is Oslo.
    openai, weight 1: The capital of Norway is Oslo. Source: memory.
    openai, streamed: The capital of Norway is Oslo. Source: memory.
    smolagents: The capital of Norway is Oslo. Source: memory.
    LlamaIndex: The capital of Norway is Oslo. Source: memory.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI
from smolagents import OpenAIServerModel

FLAGS = ["--preset", "atlas"]
if "--real" in sys.argv:
    FLAGS = ["--base", "Qwen/Qwen2.5-7B", "--tuned", "Qwen/Qwen2.5-0.5B-Instruct", "--reference", "Qwen/Qwen2.5-0.5B"]


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[str]:
    """Run `eft serve` as a process on a free port; gives the address of its API."""
    command = [str(Path(sys.executable).with_name("eft")), "serve", *flags, "--name", "eft", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        log = []
        for line in process.stderr or ():
            log.append(line)
            if address := re.search(r"running on (http://\S+)", line):
                yield f"{address[1]}/v1"
                return
        raise SystemExit("the server did not start:\n" + "".join(log))
    finally:
        process.terminate()
        process.wait()


QUESTION = "What is the capital of Norway?"

with serving(*FLAGS) as url:
    client = OpenAI(base_url=url, api_key="none")
    for weight in (0.0, 1.0):
        reply = client.chat.completions.create(
            model="eft",
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            extra_body={"eft_reward_weights": weight},
        )
        print(f"openai, weight {weight:g}: {reply.choices[0].message.content}")

    stream = client.chat.completions.create(
        model="eft", messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
    )
    print("openai, streamed:", "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

    model = OpenAIServerModel("eft", api_base=url, api_key="none", temperature=0, extra_body={"eft_reward_weights": 1})
    print("smolagents:", model.generate([{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]).content)

    pair = "assistant" if "--real" not in sys.argv else "tuned"
    llm = OpenAILike(
        model=f"eft@{pair}=0.5", api_base=url, api_key="none", temperature=0, is_chat_model=True, max_tokens=40
    )
    print("LlamaIndex:", llm.chat([ChatMessage(role="user", content=QUESTION)]).message.content)
