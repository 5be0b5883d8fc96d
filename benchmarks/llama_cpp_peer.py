"""llama.cpp on a Llama of equal size, run as a program of its own: `llama_cpp_peer.py JSON`.

It runs in the interpreter that has llama-cpp-python and gguf, and does not see this project. The model has
random weights and the shape that the settings give; its MLP has three matrices where nanochat's has two, so
its inner width is the multiple of 32 that comes closest to the same number of parameters. Prints one JSON
line: tokens per second and milliseconds per step for each format and number of streams.
"""

import ctypes
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

FORMATS = {"int8": "Q8_0", "bf16": "BF16", "float32": "F32"}


def write_model(path: Path, shape: dict[str, int], kind: str) -> int:
    """Writes a gguf file of random weights; returns its number of parameters."""
    import gguf
    import numpy as np

    width, layers, heads, vocab = shape["n_embd"], shape["n_layer"], shape["n_head"], shape["vocab_size"]
    kv = shape["n_kv_head"] * (width // heads)
    inner = shape["n_inner"]
    target = {
        "int8": gguf.GGMLQuantizationType.Q8_0,
        "bf16": gguf.GGMLQuantizationType.BF16,
        "float32": gguf.GGMLQuantizationType.F32,
    }[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape["sequence_len"])
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shape["n_kv_head"])
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)
    count = 0

    def matrix(name: str, rows: int, columns: int) -> None:
        nonlocal count
        count += rows * columns
        values = rng.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, target), raw_dtype=target)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))

    matrix("token_embd", vocab, width)
    matrix("output", vocab, width)
    norm("output_norm")
    for layer in range(layers):
        norm(f"blk.{layer}.attn_norm")
        norm(f"blk.{layer}.ffn_norm")
        for name, rows in (("q", width), ("k", kv), ("v", kv), ("output", width)):
            matrix(f"blk.{layer}.attn_{name}", rows, width)
        matrix(f"blk.{layer}.ffn_gate", inner, width)
        matrix(f"blk.{layer}.ffn_up", inner, width)
        matrix(f"blk.{layer}.ffn_down", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


class Session:
    """A context of llama.cpp for so many sequences, decoding greedily."""

    def __init__(self, lib, model, streams: int, length: int, prompt: int, threads: int) -> None:
        self.lib, self.streams = lib, streams
        params = lib.llama_context_default_params()
        params.n_ctx = streams * length
        params.n_seq_max = streams
        params.n_batch = max(512, streams * prompt)
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp could not make a context")
        self.sampler = lib.llama_sampler_init_greedy()
        self.batch = lib.llama_batch_init(params.n_batch, 0, 1)

    def generate(self, prompts: list[list[int]], new: int) -> float:
        """Seconds for `new` tokens of every prompt, all of one length, from empty caches."""
        lib = self.lib
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        started = time.perf_counter()
        tokens, last = [], []
        for sequence, prompt in enumerate(prompts):
            for position, id in enumerate(prompt):
                tokens.append((id, position, sequence, position == len(prompt) - 1))
            last.append(len(tokens) - 1)
        ids = self._step(tokens, last)
        for position in range(len(prompts[0]), len(prompts[0]) + new - 1):
            ids = self._step([(id, position, i, True) for i, id in enumerate(ids)], range(self.streams))
        return time.perf_counter() - started

    def _step(self, tokens: list[tuple[int, int, int, bool]], wanted) -> list[int]:
        """tokens: (id, position, sequence, wants logits). wanted: those whose next ids are returned."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (id, position, sequence, wants) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = id, position, wants
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
        if self.lib.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        return [self.lib.llama_sampler_sample(self.sampler, self.context, i) for i in wanted]

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)


def measure(path: Path, settings: dict) -> list[dict]:  # type: ignore[type-arg]
    """One row for each number of streams."""
    import llama_cpp as lib

    quiet = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not model:
        raise SystemExit("llama.cpp could not load the model")
    rows = []
    prompt, new = len(settings["prompts"][0]), settings["new"]
    for streams in settings["streams"]:
        session = Session(lib, model, streams, prompt + new + 8, prompt, settings["threads"])
        prompts = settings["prompts"][:streams]
        session.generate(prompts, new)
        seconds = [session.generate(prompts, new) for _ in range(settings["runs"])]
        session.close()
        median = statistics.median(seconds)
        rows.append(
            {
                "streams": streams,
                "tok_s": streams * new / median,
                "spread": (max(seconds) - min(seconds)) / median,
                "step_ms": 1e3 * median / new,
            }
        )
    return rows


def main() -> None:
    from importlib.metadata import version

    settings = json.loads(sys.argv[1])
    result: dict[str, object] = {"version": version("llama-cpp-python"), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(settings.get("folder") or folder) / f"equal-{settings['format']}.gguf"
        if not path.exists():
            write_model(path, settings["shape"], settings["format"])
        result["bytes"] = path.stat().st_size
        result["rows"] = measure(path, settings)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
