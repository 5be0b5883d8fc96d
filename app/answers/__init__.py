"""From token ids to the bytes of an answer, in the shape of each dialect."""
