"""What projections with static scales are calibrated with: text of several kinds, and ids of every kind.

A scale must fit the largest number that a projection will see. Text shows what is usual; rare tokens, which
it lacks, have the oddest embeddings, so half of the passages are ids spread over the vocabulary.
"""

from engine.terminals import NanochatTokenizer

LENGTH = 48  # tokens of a passage
COUNT = 16  # passages, every second one of text
STRIDE = 0.6180339887498949  # of the vocabulary, from one id to the next: all of it is covered evenly

TEXT = """The river was high that spring, and nobody crossed it before noon. "Wait," she said, "until the
ferryman has had his breakfast." So they sat on the stones, counted the barges, and argued about the price of
salt. In the evening a wind came up from the south-west; by midnight the bridge was gone.

def average(values: list[float]) -> float:
    if not values:
        raise ValueError("there is nothing to average")
    return sum(values) / len(values)

Question: A train leaves at 9:40 and needs 2 hours and 35 minutes. When does it arrive?
Answer: 9:40 + 2:35 = 12:15, a quarter past twelve.

| city | inhabitants | height above the sea |
| --- | --- | --- |
| Oslo | 717,710 | 23 m |
| Quito | 1,763,275 | 2,850 m |

{"name": "pump 7", "state": "running", "pressure": [1.013, 0.998, 1.021], "since": "2024-03-01T06:00:00Z"}

Im Herbst werden die Tage kürzer, und der Nebel steht bis zum Mittag über den Feldern. Le chat dort sur la
chaise; la pluie ne le dérange pas. El mercado abre a las ocho. Снег лежал до апреля.
春になると、川の水が増える。

Dear Dr. Hansen, thank you for your letter of 4 June. We have looked into the matter, and we are sorry to say
that the parcel was returned to the sender on 28 May because the address was not complete. Yours sincerely, M.

1. Wash the rice until the water stays clear. 2. Bring 1.5 l of water to the boil. 3. Add salt, oil & rice.
4. Turn the heat down, and do NOT lift the lid for 17 minutes!!! 5. Serve with beans, lime and coriander.

The cell membrane is a double layer of lipids in which proteins float. Ions cannot cross it by themselves:
channels let them through, and pumps, driven by ATP, carry them against their gradient. Without these the
potential of about -70 mV, on which every nerve and muscle depends, would be lost within minutes.
"""


def passages(tokenizer: NanochatTokenizer, vocab_size: int) -> list[list[int]]:
    """COUNT passages of LENGTH ids, each begun as a document where the model knows how. Ids that it has no
    embedding for are left out.
    """
    bos = tokenizer.get_bos_token_id()
    if bos >= vocab_size:
        bos = 0
    text = [id for id in tokenizer.encode(TEXT) if 0 <= id < vocab_size] or [bos]
    each, found = LENGTH - 1, 0
    made: list[list[int]] = []
    for index in range(COUNT // 2):
        first = index * each
        made.append([bos, *(text[(first + offset) % len(text)] for offset in range(each))])
        spread = [int((found + offset + 1) * STRIDE % 1.0 * vocab_size) for offset in range(each)]
        made.append([bos, *spread])
        found += each
    return made
