"""How many thread blocks share the keys of one query, as a hint to kernels that take one."""

# The seed's steps: from so many keys on at least so many blocks.
STEPS = ((4096, 4), (2048, 3))


def cluster_hint(keys: int, size: int, threshold: int, enabled: bool) -> int | None:
    """None when off or below the threshold; at it `size`, which grows with length."""
    if not enabled or keys < threshold:
        return None
    return max(size, next((least for length, least in STEPS if keys >= length), 1))
