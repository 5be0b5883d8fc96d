"""transformers' greedy tokens for prompts of any length, run as a program of its own: `FILE NEW FOLDER...`.

FILE holds a list of prompts in JSON. It must not see this project: transformers looks for a package named
`kernels`, and ours is not the one it means. Prints one JSON line: for each folder and prompt the tokens, and
for each token by how much its logit exceeded the next best.
"""

import json
import sys
from pathlib import Path

sys.meta_path[:] = [
    finder for finder in sys.meta_path if "fastpath" not in getattr(finder, "__module__", str(finder))
]


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedModel

    def greedy(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        margins: list[float] = []
        ids, cache = torch.tensor([prompt]), None
        for _ in range(new):
            out = model(ids, past_key_values=cache, use_cache=True)
            best, order = out.logits[0, -1].topk(2)
            tokens.append(int(order[0]))
            margins.append(float(best[0] - best[1]))
            ids, cache = order[:1].reshape(1, 1), out.past_key_values
        return tokens, margins

    prompts, new = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    torch.set_num_threads(1)
    results = []
    with torch.inference_mode():
        for folder in sys.argv[3:]:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            results.append([greedy(model, prompt) for prompt in prompts])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
