"""Tiny models of transformers' own making, run as a program of its own: `ROOT NEW`.

ROOT/cases.json holds {name: config.json of transformers 4}, ROOT/prompts.json a list of prompts. For each
case a model with seeded random weights is saved to ROOT/name, as transformers 5 writes it, with
answers.safetensors: `logits.I` of the prompt I at every position, `tokens.I` and `margins.I`, the NEW greedy
tokens that follow and by how much the logit of each exceeded the next best. It must not see this project:
transformers looks for a package named `kernels`, and ours is not the one it means.
"""

import json
import sys
from pathlib import Path

sys.meta_path[:] = [
    finder for finder in sys.meta_path if "fastpath" not in getattr(finder, "__module__", str(finder))
]


def main() -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    def answers(model: PreTrainedModel, prompt: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out = model(torch.tensor([prompt]), use_cache=True)
        logits, tokens, margins = out.logits[0].clone(), [], []
        for _ in range(new):
            best, order = out.logits[0, -1].topk(2)
            tokens.append(order[0])
            margins.append(best[0] - best[1])
            out = model(order[:1].reshape(1, 1), past_key_values=out.past_key_values, use_cache=True)
        return logits, torch.stack(tokens), torch.stack(margins)

    root, new = Path(sys.argv[1]), int(sys.argv[2])
    prompts = json.loads((root / "prompts.json").read_text())
    torch.set_num_threads(1)
    with torch.inference_mode():
        for seed, (name, raw) in enumerate(json.loads((root / "cases.json").read_text()).items()):
            config = AutoConfig.for_model(**raw)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                values = torch.randn(parameter.shape, generator=generator)
                vector = parameter.dim() == 1
                parameter.copy_(1 + 0.3 * values if vector else values * parameter.size(-1) ** -0.5)
            model.save_pretrained(root / name)
            found: dict[str, torch.Tensor] = {}
            for index, prompt in enumerate(prompts):
                for what, part in zip(("logits", "tokens", "margins"), answers(model, prompt), strict=True):
                    found[f"{what}.{index}"] = part
            save_file(found, root / name / "answers.safetensors")


if __name__ == "__main__":
    main()
