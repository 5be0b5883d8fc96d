"""The engine on a CUDA device: row state that lives there, one captured graph per step shape, results by a
side stream.

    loop      plan N+1, stage, launch │ await N       │ process N │ plan N+2 ...
    compute   ── step N ──────────────┼── step N+1 ───┼── step N+2 ──
    copies                            └ tokens of N ─▶ host

`runner` drives it, `rows` is what the device knows about each row, `network` the network over static buffers,
`graphs` captures and replays it, `memory` decides how many KV blocks fit.
"""
