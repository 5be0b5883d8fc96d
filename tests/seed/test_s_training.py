"""S4 and S5: the loss in each of its forms, and what must not touch it. The gradients' finiteness is in
test_f1_padded, too."""

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from engine.config import Generation
from engine.flags import DEFAULTS
from engine.messages import SamplingParams
from engine.model import GPT, LOSS_REDUCTIONS
from kernels.autograd import CHUNK, cross_entropies
from tests.engine.checkpoints import GENERATIONS, make_model
from tests.engine.serving import Ask, answers, started
from tests.seed.test_k_stubs import FiveMethods

VOCAB = 512
TRAINING_FLAGS = {"use_flash_sdp", "use_fp32_logits"}  # those of the seed that training is to feel
# Every other flag away from its default, in a combination that a configuration takes.
INFERENCE: dict[str, object] = {
    "use_padded_attention": True,
    "use_flash3": False,
    "flash3_block_size": 64,
    "use_cta_clustering": True,
    "cta_cluster_size": 4,
    "cta_cluster_seq_threshold": 8,
    "kv_block_size": 32,
    "kv_page_size": 64,
    "enable_persistent_decode": True,
    "use_cuda_graphs": True,
    "use_te_weight_only": True,
    "te_weight_dtype": "bf16",
    "te_include_mlp": True,
    "use_clustered_attention_kernel": True,
    "clustered_attention_impl": "kernels.clustered_attention",
    "use_persistent_decode_kernel": True,
    "persistent_decode_impl": "kernels.persistent_decode",
    "allow_kernel_stub_fallback": True,
}


def trainable(generation: Generation = "G5", **dims: object) -> GPT:
    return make_model(generation, 5, **dims).requires_grad_(True).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """ids and targets, [2, 24], two of which are ignored."""
    tokens = torch.randint(VOCAB, (2, 25), generator=torch.Generator().manual_seed(3))
    targets = tokens[:, 1:].clone()
    targets[0, 4] = targets[1, 0] = -1
    return tokens[:, :-1], targets


Outcome = tuple[torch.Tensor, dict[str, torch.Tensor]]


def trained(model: GPT) -> Outcome:
    """The loss of the batch, and every gradient."""
    model.zero_grad(set_to_none=True)
    loss = model(*batch())
    loss.backward()
    return loss.detach(), {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_equal(one: Outcome, other: Outcome) -> None:
    """To the bit."""
    assert torch.equal(one[0], other[0]) and set(one[1]) == set(other[1])
    assert all(torch.equal(gradient, other[1][name]) for name, gradient in one[1].items())


@pytest.mark.parametrize("wide", [True, False], ids=["fp32 logits", "narrow logits"])
@pytest.mark.parametrize("reduction", LOSS_REDUCTIONS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_s4_gradients_are_finite_in_every_generation(
    generation: Generation, reduction: str, wide: bool
) -> None:
    model = trainable(generation, use_fp32_logits=wide, padded_vocab_size=VOCAB + 64)
    loss = model(*batch(), loss_reduction=reduction)  # type: ignore[arg-type]
    loss.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert not model.lm_head.weight.grad[VOCAB:].any()  # type: ignore[index, union-attr]


@pytest.mark.parametrize("wide", [True, False], ids=["fp32 logits", "narrow logits"])
def test_s4_reductions_are_those_of_one_loss(wide: bool) -> None:
    model = trainable(use_fp32_logits=wide)
    ids, targets = batch()
    each = model(ids, targets, loss_reduction="none")
    assert each.shape == (ids.numel(),) and not each[targets.reshape(-1) == -1].any()
    assert (each > 0).sum() == (targets != -1).sum()
    torch.testing.assert_close(model(ids, targets, loss_reduction="sum"), each.sum())
    mean = model(ids, targets)
    torch.testing.assert_close(mean, each.sum() / (targets != -1).sum())
    assert torch.equal(mean, model(ids, targets, loss_reduction="mean"))


def test_s4_reductions_with_padding_leave_it_out() -> None:
    model = trainable(use_padded_attention=True)
    ids, targets = batch()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 18:] = False
    each = model(ids, targets, attention_mask=mask, loss_reduction="none")
    alone = model(ids[:1, :18], targets[:1, :18], loss_reduction="none")
    assert each.shape == (ids.numel(),) and not each.view_as(ids)[0, 18:].any()
    torch.testing.assert_close(each.view_as(ids)[0, :18], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        model(ids, targets, attention_mask=mask, loss_reduction="sum"), each.sum(), rtol=1e-6, atol=0
    )


def test_s4_bad_arguments_are_named() -> None:
    model = trainable()
    ids, targets = batch()
    with pytest.raises(ValueError, match="loss_reduction is 'median', none of mean, sum, none"):
        model(ids, targets, loss_reduction="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"targets are \(2, 23\), the ids are \(2, 24\)"):
        model(ids, targets[:, :-1])
    for wide in (True, False):
        model.config.use_fp32_logits = wide
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            model(ids, torch.full_like(ids, VOCAB))


@pytest.mark.parametrize("flag", [*sorted(set(DEFAULTS) - TRAINING_FLAGS), "all"])
def test_s4_no_flag_of_inference_changes_training(flag: str) -> None:
    """Bit for bit, whether or not this device could serve with it."""
    assert set(INFERENCE) == set(DEFAULTS) - TRAINING_FLAGS
    assert all(value != DEFAULTS[name] for name, value in INFERENCE.items())
    model = trainable()
    before = trained(model)
    chosen = INFERENCE if flag == "all" else {flag: INFERENCE[flag]}
    assert_equal(before, trained(trainable(**chosen)))
    model.config = replace(model.config, **chosen)  # type: ignore[arg-type]
    assert_equal(before, trained(model))


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"use_padded_attention": True, "kv_block_size": 32, "kv_page_size": 64},
        {
            "use_clustered_attention_kernel": True,
            "clustered_attention_impl": "kernels.clustered_attention",
            "use_persistent_decode_kernel": True,
            "persistent_decode_impl": "kernels.persistent_decode",
        },
    ],
    ids=["none", "padding and pages", "own kernels"],
)
async def test_s4_a_model_that_has_served_trains_as_before(flags: dict[str, object]) -> None:
    model = trainable()
    before = trained(model)
    model.zero_grad(set_to_none=True)
    engine = await started(model, FiveMethods(), flags=flags, max_rows=2, num_blocks=32)
    try:
        params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
        await answers(engine, [Ask([5, 6, 7], params), Ask([9], params)], together=True)
        assert_equal(before, trained(model))  # while it serves, too
    finally:
        await engine.close()
    assert_equal(before, trained(model))


async def test_s4_nor_does_a_flag_that_cannot_be_had() -> None:
    model = trainable()
    before = trained(model)
    for flags in (
        {"use_te_weight_only": True},
        {"use_cuda_graphs": True},
        {"enable_persistent_decode": True},
    ):
        with pytest.raises((ImportError, ValueError)):
            await started(model, FiveMethods(), flags=flags, max_rows=2, num_blocks=32)
        assert_equal(before, trained(model))


def exact(raw: torch.Tensor, targets: torch.Tensor, cap: float) -> torch.Tensor:
    capped = cap * torch.tanh(raw / cap)
    return torch.nn.functional.cross_entropy(capped, targets, ignore_index=-1, reduction="none")


@pytest.mark.parametrize("chunk", [CHUNK, 90], ids=["at once", "in chunks"])
def test_s4_losses_of_narrow_logits_against_float64(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of logits in bfloat16, with a gradient of its own for each row."""
    monkeypatch.setattr("kernels.autograd.CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    raw = (20 * torch.randn(7, 40, generator=generator)).bfloat16().requires_grad_(True)
    targets = torch.tensor([0, 29, -1, 3, 4, -1, 6])
    up = torch.randn(7, generator=generator)
    found = cross_entropies(raw, targets, 15.0, 30)
    found.backward(up)
    wide = raw.detach()[:, :30].double().requires_grad_(True)
    wanted = exact(wide, targets, 15.0)
    wanted.backward(up.double())
    torch.testing.assert_close(found.double(), wanted.detach(), rtol=0, atol=1e-5)
    assert raw.grad is not None and wide.grad is not None
    assert (
        raw.grad.dtype == torch.bfloat16 and not raw.grad[:, 30:].any() and not raw.grad[targets == -1].any()
    )
    torch.testing.assert_close(raw.grad[:, :30].double(), wide.grad, rtol=2**-8, atol=1e-6)


def test_s4_gradients_of_narrow_logits_are_the_derivative() -> None:
    """In float32 against plain torch: the loss, and every gradient of the model."""
    narrow, wide = trainable(use_fp32_logits=False), trainable(use_fp32_logits=True)
    one, other = trained(narrow), trained(wide)
    torch.testing.assert_close(one[0], other[0], rtol=1e-6, atol=0)
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=1e-7)


def test_s5_fp32_logits_decide_what_the_loss_is_computed_from() -> None:
    """With them float32 logits are kept for the way back; without, those of the network's dtype alone."""
    for wide in (True, False):
        model = trainable("G1", use_fp32_logits=wide).bfloat16()
        kept: list[torch.dtype] = []

        def note(tensor: torch.Tensor, kept: list[torch.dtype] = kept) -> torch.Tensor:
            if tensor.dim() == 2 and tensor.size(-1) == VOCAB and tensor.size(0) == 48:
                kept.append(tensor.dtype)
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(*batch())
        assert loss.dtype == torch.float32
        assert set(kept) == ({torch.float32} if wide else {torch.bfloat16})


def test_s5_flash_sdp_and_fp32_logits_change_the_loss_by_rounding_only() -> None:
    outcomes: dict[tuple[bool, bool], Outcome] = {}
    for flash in (True, False):
        for wide in (True, False):
            model = trainable("G1", use_flash_sdp=flash, use_fp32_logits=wide).bfloat16()
            outcomes[flash, wide] = trained(model)
    losses = [loss.item() for loss, _ in outcomes.values()]
    assert all(math.isfinite(loss) for loss in losses) and max(losses) - min(losses) < 0.02
    for name, reference in outcomes[False, True][1].items():
        for _, gradients in outcomes.values():
            distance = (gradients[name].float() - reference.float()).norm() / reference.float().norm()
            assert distance < 0.05, name
