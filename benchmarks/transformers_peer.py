"""transformers' `generate` on a folder, run as a program of its own: `transformers_peer.py FOLDER JSON`.

It must not see this project: transformers looks for a package named `kernels`, and ours is not the one it
means. Prints one JSON line: the greedy tokens of a check, and tokens per second for 1 and for 8 streams.
"""

import json
import statistics
import sys
import time

sys.meta_path[:] = [
    finder for finder in sys.meta_path if "fastpath" not in getattr(finder, "__module__", str(finder))
]
sys.path[:] = sys.path[1:]


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder, settings = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings["dtype"]))
    model.to(settings["device"]).eval()
    result: dict[str, object] = {}

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        ids = torch.tensor(prompts, device=settings["device"])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings["new"],
            min_new_tokens=settings["new"],
            do_sample=False,
        )
        return out[:, ids.size(1) :].tolist()

    with torch.inference_mode():
        result["tokens"] = generate(settings["prompts"][:1])[0]
        for rows in settings["rows"]:
            prompts = settings["prompts"][:rows]
            generate(prompts)
            seconds = []
            for _ in range(settings["runs"]):
                started = time.perf_counter()
                generate(prompts)
                seconds.append(time.perf_counter() - started)
            result[f"tok_s_{rows}"] = rows * settings["new"] / statistics.median(seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
