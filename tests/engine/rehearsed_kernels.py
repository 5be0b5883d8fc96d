"""Which kernels steps need that the rehearsal has not met, for networks of every kind, without a device.

test_rehearsal.py runs it in a process of its own: the driver of Triton is the process's. Prints a line each.
"""

import torch
import triton

from engine.config import GENERATIONS, GPTConfig
from engine.decoder import Decoder
from engine.gpu.cache import PagedKV
from engine.gpu.graphs import Buckets
from engine.gpu.inputs import device_inputs
from engine.gpu.linears import build_linears
from engine.gpu.network import Network
from engine.gpu.rows import DeviceRows
from engine.gpu.weights import network_weights
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.model import GPT
from kernels.backends.base import AttentionSpec
from kernels.backends.triton import RotatingTritonBackend
from kernels.kv8 import FORMAT
from kernels.triton.precompile import Missing, missing
from tests.kernels.triton.precompile_without_a_device import Device

ROWS, TOKENS, CONTEXT, BLOCK = 4, 64, 128, 16
CPU = torch.device("cpu")
QWEN: dict[str, object] = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "intermediate_size": 512,
}


def network_of(model: Decoder, eight_bits: bool) -> Network:
    weights, shape = network_weights(model), model.config
    rotary, dtype = weights.layers[0].rotary, weights.embedding.dtype
    spec = AttentionSpec(
        rotary.heads,
        rotary.kv_heads,
        rotary.head_dim,
        BLOCK,
        dtype,
        ROWS,
        CONTEXT,
        weights.embedding.device,
        eight_bits,
    )
    linears = build_linears(weights, "auto", TOKENS, True)
    rows = DeviceRows(ROWS, CONTEXT // BLOCK + 1, weights.vocab_size, CPU)
    network = Network(weights, linears, rows, RotatingTritonBackend(spec), TOKENS, ROWS)
    kept = FORMAT if eight_bits else dtype
    network.cache = PagedKV(shape.n_layer, 2, BLOCK, shape.n_kv_head, shape.head_dim, kept, CPU)
    network.pdl = True
    return network


def missed(model: Decoder, eight_bits: bool) -> tuple[Missing, Missing]:
    """Kernels of the rehearsal, and of all steps."""
    network, buffer = network_of(model, eight_bits), torch.zeros(10_000, dtype=torch.int32)
    inputs = {shape: device_inputs(buffer, shape) for shape in Buckets.up_to(ROWS, TOKENS).shapes()}
    with torch.inference_mode():
        with missing() as rehearsed:
            for shape, buffers in inputs.items():
                network.rehearse(shape, buffers)
        with missing() as needed:
            for shape, buffers in inputs.items():
                for full in (False, True):
                    network.step(shape, buffers, full)
    return rehearsed, needed


def main() -> None:
    triton.runtime.driver.set_active(Device())
    models: dict[str, Decoder] = {}
    for generation in GENERATIONS:
        for layers, pattern in ((3, "L"), (12, "L"), (20, "SSSL")):
            config = GPTConfig.for_generation(
                generation,
                n_layer=layers,
                n_head=4,
                n_kv_head=2,
                n_embd=256,
                vocab_size=512,
                sequence_len=CONTEXT,
                window_pattern=pattern,
            )
            models[f"{generation} of {layers} layers"] = GPT(config)
    models["qwen3"] = Llama(llama_config("qwen3", QWEN))
    for name, model in models.items():
        for dtype, eight_bits in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
            for parameter in model.parameters():  # as the loader has it: vectors of a GPT stay in float32
                matrix = parameter.dim() > 1 or isinstance(model, Llama)
                parameter.data = parameter.data.to(dtype if matrix else torch.float32)
            rehearsed, needed = missed(model, eight_bits)
            names = sorted({name for name, _ in set(needed.kernels) - set(rehearsed.kernels)})
            print(name, str(dtype), "fp8" if eight_bits else "own", len(needed), "missed:", *names)


if __name__ == "__main__":
    main()
