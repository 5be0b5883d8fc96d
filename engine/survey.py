"""`python -m engine.survey FILE`: what a server would serve and what would keep it from that, told without
reading a weight.

Standard input has the JSON of an `EngineConfig`; FILE gets a JSON list of `Finding`s.
"""

import os
import sys
from pathlib import Path

import msgspec
import torch

from engine.backend import DEFAULT_BLOCK_SIZE, most_tokens
from engine.checkpoint import CheckpointError, CheckpointMeta
from engine.cores import free_cores
from engine.cpu import DEFAULT_ROWS
from engine.llama import Llama
from engine.loader import outline_model
from engine.memory import block_bytes, free_memory, pool_blocks
from engine.messages import EngineConfig
from engine.messages.finding import Finding
from engine.model import GPT
from engine.precheck import verdict
from engine.text import ChatMessage, StandInTokenizer, Tokenizer, TokenizerError, load_chat_template
from engine.text.template import NoTemplate
from engine.worker import EXIT_MODEL, EXIT_USAGE, DeviceMissing, choose_device

SAMPLE = "Hello, world"
_BYTES = {"bf16": 2, "int8": 1, "fp8": 1}
_GIB = 1 << 30


def survey(config: EngineConfig) -> list[Finding]:
    """Everything that can be told without loading; what depends on a thing that is wrong is left out."""
    device, found = _device(config)
    findings = [found]
    reason = verdict(msgspec.to_builtins(config)) if device is not None else ""
    if reason:
        findings.append(Finding("fast paths", "wrong", reason, _mender(reason, config), EXIT_USAGE))
    try:
        model, tokenizer, meta = outline_model(
            config.model,
            source=config.source,
            tag=config.tag,
            step=config.step,
            overrides=dict(config.overrides),
            load_format=config.load_format,
        )
    except TokenizerError as error:
        return [*findings, Finding("tokenizer", "wrong", str(error), "--model", EXIT_MODEL)]
    except (CheckpointError, ValueError, OSError) as error:
        return [
            *findings,
            Finding("model", "wrong", str(error), _mender(str(error), config) or "--model", EXIT_MODEL),
        ]
    findings += [_model(model, meta), *_texts(tokenizer, meta)]
    return [*findings, *_sizes(config, device, model, meta)]


def _device(config: EngineConfig) -> tuple[str | None, Finding]:
    try:
        device = choose_device(config.device)
    except DeviceMissing as error:
        return None, Finding("device", "wrong", str(error), "--device", EXIT_USAGE)
    if device.startswith("cuda"):
        about = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    else:
        threads = config.threads or free_cores()
        about = f"{threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    return device, Finding("device", "ok", f"{device}: {about}")


def _model(model: GPT | Llama, meta: CheckpointMeta) -> Finding:
    count = sum(parameter.numel() for parameter in model.parameters())
    size = sum(file.stat().st_size for file in meta.files.weights)
    parts = [f"{meta.name} ({meta.generation}, {count / 1e6:.1f} M parameters)"]
    files = f"{len(meta.files.weights)} file{'s' * (len(meta.files.weights) > 1)}"
    parts.append(f"{files}, {size / 1e6:,.1f} MB" if size else "random weights")
    return Finding("model", "ok", f"{', '.join(parts)}, in {meta.files.folder}")


def _texts(tokenizer: Tokenizer, meta: CheckpointMeta) -> list[Finding]:
    """The tokenizer and the chat template at work on a few words."""
    if isinstance(tokenizer, StandInTokenizer) or meta.path is None:
        return [
            Finding("tokenizer", "note", "none there; a stand-in serves, whose text means nothing", "--model")
        ]
    back = tokenizer.decode(tokenizer.encode(SAMPLE))
    size = f"{tokenizer.get_vocab_size():,} tokens"
    if back.strip() == SAMPLE:
        findings = [Finding("tokenizer", "ok", size)]
    else:
        findings = [Finding("tokenizer", "note", f"{size}; it reads {SAMPLE!r} as {back!r}", "--model")]
    try:
        template = load_chat_template(meta.path, tokenizer)
        if isinstance(template, NoTemplate):
            says = "none: /v1/chat/completions answers 400, /v1/completions works"
            return [*findings, Finding("chat template", "note", says, "--model")]
        ids = template.render([ChatMessage("user", SAMPLE)])
    except TokenizerError as error:
        return [*findings, Finding("chat template", "wrong", str(error), "--model", EXIT_MODEL)]
    except ValueError as error:
        return [
            *findings,
            Finding("chat template", "note", f"it refuses a plain question: {error}", "--model"),
        ]
    return [*findings, Finding("chat template", "ok", f"{SAMPLE!r} becomes {len(ids)} tokens")]


def _sizes(
    config: EngineConfig, device: str | None, model: GPT | Llama, meta: CheckpointMeta
) -> list[Finding]:
    """The context, and on a CPU the KV pool; whether weights and pool fit the memory that is free."""
    try:
        length = most_tokens(model.config, config.max_model_len)
    except ValueError as error:
        return [Finding("context", "wrong", str(error), "--max-model-len", EXIT_MODEL)]
    findings = [Finding("context", "ok", f"{length:,} tokens")]
    if device is None:
        return findings
    cpu = device == "cpu"
    width = _width(config, cpu, meta)
    needed = width * sum(parameter.numel() for parameter in model.parameters())
    if not cpu:
        free: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        free = free_memory()
        kept = torch.float32 if width == 4 else torch.bfloat16
        block = config.block_size or model.config.kv_block_size or DEFAULT_BLOCK_SIZE
        try:
            blocks = pool_blocks(model.config, config, block, config.max_rows or DEFAULT_ROWS, length, kept)
        except ValueError as error:
            return [*findings, Finding("KV pool", "wrong", str(error), "--max-model-len", EXIT_MODEL)]
        findings.append(Finding("KV pool", "ok", f"{(blocks - 1) * block:,} tokens in blocks of {block}"))
        needed += blocks * block_bytes(model.config, block, kept)
    says = f"about {needed / _GIB:.1f} GiB needed" + ("" if free is None else f", {free / _GIB:.1f} GiB free")
    if free is not None and needed > free:
        return [*findings, Finding("memory", "note", says, "--num-blocks" if cpu else "--weight-dtype")]
    return [*findings, Finding("memory", "ok", says)]


def _width(config: EngineConfig, cpu: bool, meta: CheckpointMeta) -> int:
    """Bytes of most weights, as the settings and the file have them."""
    if config.weight_dtype != "auto":
        return _BYTES[config.weight_dtype]
    if config.dtype == "auto" and cpu:
        return 1 if meta.stored == "int8" else 4
    return 4 if config.dtype == "float32" else 2


def _mender(message: str, config: EngineConfig) -> str:
    """The flag of the setting that a message complains of; "" where it names none that was given."""
    named = {name: name for name in config.flags}
    named |= {name: name for name in ("kv_dtype", "decode_path") if getattr(config, name) != "auto"}
    named |= {"model_tag": repr(config.tag), "source": repr(config.source), "step": f"step {config.step}"}
    for name, text in named.items():
        if text in message:
            return "--" + name.replace("_", "-")
    return "--model-override" if any(name in message for name in config.overrides) else ""


if __name__ == "__main__":
    findings = survey(msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig))
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(findings))
    os._exit(0)  # a function of the user's may have left threads behind
