"""One request through everything that a step may need, before the first real one."""

from engine.blocks import WRITE_OFF
from engine.messages import Request, SamplingParams
from engine.plan import Chunk, Plan
from engine.sequence import Sequence
from engine.steps import Runner


def rehearse(runner: Runner, strict: bool = False) -> None:
    """A prefill and a decode step, so that nothing is compiled, loaded or found wrong while serving. Raises
    what the steps raise; strict: and ValueError where they sample nothing, as after numbers that are none.

    It works on row 0 and block 0, of which the first is built anew for whoever gets it, and the other is
    nobody's.
    """
    params = SamplingParams(
        max_tokens=2,
        min_tokens=2,
        temperature=0.7,
        top_k=2,
        top_p=0.9,
        min_p=0.01,
        presence_penalty=0.1,
        logit_bias={0: 0.0},
        stop_token_ids=(1,),
        logprobs=1,
    )
    sequence = Sequence(Request(id=0, prompt=[0, 0], params=params))
    sequence.row, sequence.block_table = 0, [WRITE_OFF] * 3  # whatever the size of a block
    first = Chunk(sequence, 0, 0, 0, 2, True, False, sequence.block_table)
    second = first._replace(start=2, length=1, feeds_back=True)
    for what, plan in (
        ("prefill", Plan((first,), (sequence,), (), (), 2)),
        ("decode", Plan((second,), (), (), (), 1)),
    ):
        (token,) = runner.launch(plan).future.result().tokens
        if token.error is not None and strict:
            raise ValueError(f"the rehearsal's {what} step: {token.error}")
