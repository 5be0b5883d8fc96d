"""How good the model is: `python -m training.evaluate --model models/ --data DIR` measures a shipped folder.

questions: prompts that programs make. items: multiple choice and short answers from held-out documents.
documents: what training leaves out because an item comes from it. scoring: right or wrong. loss: likelihoods.
answering: greedy and sampled answers from the server's own engine. report: all of it together.
"""
