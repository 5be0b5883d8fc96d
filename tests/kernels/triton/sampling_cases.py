"""Random rows for the device sampler, and the torch reference run on the same parameters."""

from dataclasses import dataclass

import numpy as np
import torch

from kernels import sampling as reference
from kernels.activation import softcap as soft_capped
from kernels.philox import uniform
from kernels.triton.sampling import SampleOutput, SamplingRows, sample
from tests.kernels.triton.device import DEVICE, ints

BORDER = 1e-6  # how near a number may lie to the border of two tokens for either to be right


@dataclass(slots=True)
class Step:
    """logits: [entries, columns]. Rows and positions by entry; -1 is padding."""

    logits: torch.Tensor
    vocab: int
    entry_rows: list[int]
    positions: list[int]
    rows: SamplingRows
    out: SampleOutput
    softcap: float | None = None

    def run(self, *, full: bool, entries: list[int] | None = None) -> None:
        chosen = list(range(len(self.entry_rows))) if entries is None else entries
        sample(
            self.logits[chosen] if entries is not None else self.logits,
            ints([self.entry_rows[entry] for entry in chosen]),
            ints([self.positions[entry] for entry in chosen]),
            self.rows,
            self.out,
            vocab=self.vocab,
            softcap=self.softcap,
            full=full,
        )

    @property
    def tokens(self) -> list[int]:
        return self.out.tokens[: len(self.entry_rows)].tolist()

    @property
    def valid(self) -> list[int]:
        return self.out.valid[: len(self.entry_rows)].tolist()


def new_step(logits: torch.Tensor, vocab: int, softcap: float | None = None) -> Step:
    """One row for each entry, greedy; rows and entries are numbered differently."""
    entries = logits.size(0)
    rows = SamplingRows.allocate(entries + 3, vocab, DEVICE)
    out = SampleOutput.allocate(entries, vocab, DEVICE)
    order = [(7 * entry + 2) % (entries + 3) for entry in range(entries)]
    if len(set(order)) < entries:
        order = list(range(entries))[::-1]
    return Step(
        logits.to(DEVICE), vocab, order, [17 + 5 * entry for entry in range(entries)], rows, out, softcap
    )


def capped(step: Step) -> torch.Tensor:
    """What the reference samples from: [entries, vocab] float32 on the CPU."""
    logits = step.logits[:, : step.vocab].cpu()
    return logits.float() if step.softcap is None else soft_capped(logits, step.softcap)


def draws(step: Step) -> torch.Tensor:
    index = torch.tensor(step.entry_rows)
    seeds, choices = step.rows.seed.cpu()[index].numpy(), step.rows.choice.cpu()[index].long().numpy()
    return torch.from_numpy(uniform(seeds, choices, np.array(step.positions, dtype=np.int64)))


def batch_of(step: Step, full: bool) -> reference.SamplingBatch:
    """The same parameters in the reference's form, all of them given, neutral or not."""
    rows, index = step.rows, torch.tensor(step.entry_rows)

    def column(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu()[index]

    batch = reference.SamplingBatch(
        column(rows.temperature), column(rows.top_k).long(), column(rows.top_p), column(rows.min_p)
    )
    if not full:
        return batch
    if rows.prompt_seen is not None and rows.output_counts is not None:
        on = column(rows.penalised) != 0
        batch.repetition = torch.where(on, column(rows.repetition), 1.0)
        batch.presence = torch.where(on, column(rows.presence), 0.0)
        batch.frequency = torch.where(on, column(rows.frequency), 0.0)
        batch.prompt_seen = column(rows.prompt_seen) != 0
        batch.output_counts = column(rows.output_counts).int()
    biased, values, banned = [], [], []
    for entry, (row, position) in enumerate(zip(step.entry_rows, step.positions, strict=True)):
        count = int(rows.bias_count[row])
        biased += [(entry, id) for id in rows.bias_ids[row, :count].tolist()]
        values += rows.bias_values[row, :count].tolist()
        if position < int(rows.min_position[row]):
            banned += [(entry, id) for id in rows.stop_ids[row, : int(rows.stop_count[row])].tolist()]
    masked = [entry for entry, row in enumerate(step.entry_rows) if int(rows.masked[row])]
    if masked:
        words = rows.masks.cpu()[index[masked]].numpy().view(np.uint8)
        bits = np.unpackbits(words, axis=1, bitorder="little", count=step.vocab)
        batch.masked, batch.allowed = torch.tensor(masked), torch.from_numpy(bits).bool()
    if biased:
        batch.bias, batch.bias_values = torch.tensor(biased).unbind(1), torch.tensor(values)
    if banned:
        batch.banned = torch.tensor(banned).unbind(1)
    batch.logprob_rows, batch.logprob_count = torch.arange(len(index)), min(20, step.vocab)
    return batch


def expected(step: Step, *, full: bool) -> list[reference.Sampled]:
    """What the reference gives, with each uniform number as it is and moved down and up by BORDER."""
    number, results = draws(step), []
    for moved in (number, (number - BORDER).clamp(min=0), (number + BORDER).clamp(max=1 - 2**-53)):
        batch = batch_of(step, full)
        batch.uniform = moved
        results.append(reference.sample(capped(step).clone(), batch))
    return results


def assert_tokens(step: Step, results: list[reference.Sampled]) -> None:
    allowed = [{int(result.tokens[entry]) for result in results} for entry in range(len(step.entry_rows))]
    for entry, token in enumerate(step.tokens):
        assert token in allowed[entry], (entry, token, allowed[entry])
    assert step.valid == results[0].valid.int().tolist()
    exact = [int(token) for token in results[0].tokens]
    assert sum(a != b for a, b in zip(exact, step.tokens, strict=True)) <= 1 + len(exact) // 1000


def randomise(step: Step, seed: int) -> None:
    """Each row draws, or not, each filter at random, most of them off."""
    generator = np.random.default_rng(seed)
    rows = step.rows
    count = rows.temperature.size(0)

    def pick(values: list[float], target: torch.Tensor) -> None:
        chosen = torch.from_numpy(generator.choice(np.array(values), count)).to(target.dtype)
        target.copy_(chosen.to(DEVICE))

    pick([0.0, 1e-9, 0.3, 0.8, 1.0, 1.0, 1.7, 4.0], rows.temperature)
    pick([0, 0, -1, 1, 3, 50, 200, step.vocab, step.vocab + 7], rows.top_k)
    pick([1.0, 1.0, 1.0, 0.95, 0.5, 1e-4, 0.9999], rows.top_p)
    pick([0.0, 0.0, 0.0, 0.02, 0.5, 1.0, 1e-6], rows.min_p)
    rows.seed.copy_(torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, count)).to(DEVICE))
    pick([0, 1, 2, 127], rows.choice)
