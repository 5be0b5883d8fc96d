"""`bad_words`: the tokens that spell them are kept out of an answer by a bias that nothing outweighs."""

from dataclasses import replace

from app.http.errors import RequestError, Unsupported
from app.http.fields import shown
from app.requests.sampling import MAX_BIASES, Sampling
from app.requests.text import TextService

# Not infinite, so that no arithmetic with it makes a NaN; in float32 with room for every penalty.
NEVER = -1e30


async def forbid(sampling: Sampling, text: TextService) -> Sampling:
    """`sampling` with a bias against the tokens of its bad words, alone and behind a space.

    A word that either of the two spellings takes several tokens for cannot be kept out token by token, unless
    one of them is forbidden already: Unsupported. RequestError where the biases become too many.
    """
    if not sampling.bad_words:
        return sampling
    spelled = [(word, " " + word) for word in sampling.bad_words]
    encoded = await text.encode([spelling for pair in spelled for spelling in pair], bos=False)
    forbidden = {ids[0] for ids in encoded if len(ids) == 1}
    for at, ids in enumerate(encoded):
        if forbidden.isdisjoint(ids):
            word = sampling.bad_words[at // 2]
            why = f"'{shown(word)}' is more than one token, and only single tokens can be kept out."
            raise Unsupported(f"bad_words[{at // 2}]", why)
    bias = {**sampling.logit_bias, **dict.fromkeys(sorted(forbidden), NEVER)}
    if len(bias) > MAX_BIASES:
        message = f"'bad_words' and 'logit_bias' together name more than {MAX_BIASES} tokens."
        raise RequestError("out_of_range", message, "bad_words")
    return replace(sampling, logit_bias=bias)
